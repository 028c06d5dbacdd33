// The thaw command as scripts and people meet it: exit codes, output when piped, Ctrl-C. Each case is a process of its own
// against a fake server.

import { type ChildProcess, spawn } from "node:child_process";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { constants, tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { create, type MessageInitShape, toJson } from "@bufbuild/protobuf";
import { status } from "@grpc/grpc-js";
import { test } from "uvu";
import * as assert from "uvu/assert";
import { DatasetFormatSchema } from "../../proto/gen/thaw/v1/dataset_pb.ts";
import { Preset } from "../../proto/gen/thaw/v1/group_pb.ts";
import { OptimizerOptionsSchema, RunSpecSchema, ScheduleKind } from "../../proto/gen/thaw/v1/run_pb.ts";
import {
  type CreateRunRequest,
  type ForkRunRequest,
  ListRunsResponseSchema,
  type SteerRunResponseSchema,
} from "../../proto/gen/thaw/v1/run_service_pb.ts";
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import { invalidArgument, refusal } from "../../src/server/rpc/errors.ts";
import { fakeServer, stopFakes } from "./support/fake_server.ts";

const file = (name: string) => fileURLToPath(new URL(`../../clients/cli/${name}`, import.meta.url));
const THAW = "Deno" in globalThis ? ["run", "-A", file("main.ts")] : [file("thaw.mjs")];

interface Outcome {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs the command away from the repository; `during` sees the process and what it has printed so far. */
function thaw(
  server: string,
  args: readonly string[],
  { input = "", during }: { input?: string; during?: (child: ChildProcess, stdout: string) => void } = {},
): Promise<Outcome> {
  const env = { ...process.env, THAW_SERVER: server, TZ: "UTC" };
  const child = spawn(process.execPath, [...THAW, ...args], { env, cwd: tmpdir(), stdio: "pipe" });
  const output = { stdout: "", stderr: "" };
  for (const name of ["stdout", "stderr"] as const) {
    child[name].setEncoding("utf8").on("data", (text: string) => {
      output[name] += text;
      during?.(child, output.stdout);
    });
  }
  child.stdin.end(input);
  return new Promise((resolve) => {
    // Deno reports the exit code 130 as the signal it stands for.
    child.on("close", (code, signal) => resolve({ code: code ?? 128 + constants.signals[signal!], ...output }));
  });
}

const state = (revision: number, to: RunState) => ({
  revision: BigInt(revision),
  step: BigInt(revision),
  event: { case: "state" as const, value: { to } },
});
const batch = (...events: ReturnType<typeof state>[]) => ({ reply: { case: "events" as const, value: { events } } });

test.after.each(stopFakes);

test("exit codes tell scripts what went wrong, and every problem is printed without a stack", async () => {
  const fail = (code: status) => refusal(code, "REASON", `the message of ${status[code]}`);
  const server = await fakeServer({
    runs: {
      getRun({ name }) {
        if (name === "runs/fields") {
          throw invalidArgument([
            { field: "spec.steps", message: "must be at least 1" },
            { field: "spec.model", message: "models/x is unknown" },
          ]);
        }
        if (name === "runs/none") throw fail(status.NOT_FOUND);
        throw new Error("secret");
      },
      pauseRun() {
        throw fail(status.FAILED_PRECONDITION);
      },
      createRun() {
        throw refusal(status.RESOURCE_EXHAUSTED, "QUEUE_FULL", "64 runs are queued", {}, 2);
      },
    },
  });
  const cases: [string[], number, RegExp][] = [
    [
      ["runs", "get", "fields"],
      3,
      /^thaw: INVALID_ARGUMENT\n {2}spec.steps: must be at least 1\n {2}spec.model: models\/x is unknown\n$/,
    ],
    [["runs", "get", "none"], 4, /^thaw: NOT_FOUND: the message of NOT_FOUND\n$/],
    [
      ["runs", "get", "broken"],
      1,
      /^thaw: INTERNAL: internal error\n {2}the server's log has more under request_id=\S+\n$/,
    ],
    [["runs", "pause", "a"], 5, /^thaw: FAILED_PRECONDITION: /],
    [["runs", "create", "--model", "m"], 7, /64 runs are queued\n {2}try again in 2 s/],
    [
      ["--server", "127.0.0.1:1", "runs", "list"],
      6,
      /^thaw: UNAVAILABLE: no server at 127\.0\.0\.1:1; "thaw serve" starts one\n$/,
    ],
    [["runs", "pause"], 2, /missing required argument 'run'/],
    [["runs", "create", "--steps", "many"], 2, /whole number/],
    [["groups", "set", "a", "--drop-optimizer-state"], 2, /train what\?/],
    [["runs", "create", "--spec", "/dev/null"], 2, /is no RunSpec/],
    [["data", "upload", "/missing/train.jsonl"], 1, /^thaw: ENOENT.*\n$/],
  ];
  for (const [args, code, stderr] of cases) {
    const outcome = await thaw(server.address, args);
    assert.is(outcome.code, code, `${args.join(" ")}: ${outcome.stderr}`);
    assert.match(outcome.stderr, stderr);
    assert.not.match(outcome.stderr, /\n {4}at |secret/);
    assert.is(outcome.stdout, "", args.join(" "));
  }
  const json = await thaw(server.address, ["runs", "get", "none", "--json"]);
  assert.is(json.code, 4);
  assert.is(JSON.parse(json.stderr).error.reason, "REASON");
});

test("a list of several pages is one table, or one JSON document", async () => {
  type Page = MessageInitShape<typeof ListRunsResponseSchema>;
  const pages: Record<string, Page> = {
    "": {
      nextPageToken: "2",
      runs: [
        {
          name: "runs/first",
          state: RunState.RUNNING,
          step: 5n,
          spec: { model: "models/mini", dataset: "datasets/glue", steps: 100n },
          metrics: { loss: 0.25 },
          trainable: { selection: { preset: Preset.NON_MOE } },
          createTime: { seconds: 0n },
        },
      ],
    },
    "2": { runs: [{ name: "runs/b", state: RunState.FAILED, error: { code: 8, message: "full" } }] },
  };
  const server = await fakeServer({
    runs: {
      listRuns: ({ pageToken, states }) => create(ListRunsResponseSchema, states.length ? {} : pages[pageToken]),
    },
  });
  const text = await thaw(server.address, ["runs", "list"]);
  assert.is(
    text.stdout,
    [
      "RUN    STATE     STEP  LOSS  TRAINS      MODEL  DATASET  CREATED",
      "first  RUNNING  5/100  0.25  non_moe     mini   glue     1970-01-01 00:00:00",
      "b      FAILED     0/?        everything",
      "",
    ].join("\n"),
  );
  const json = await thaw(server.address, ["--json", "runs", "list"]);
  assert.equal(
    JSON.parse(json.stdout).runs.map((run: { name: string; state: string }) => [run.name, run.state]),
    [
      ["runs/first", "RUN_STATE_RUNNING"],
      ["runs/b", "RUN_STATE_FAILED"],
    ],
  );
  assert.is((await thaw(server.address, ["runs", "list", "--state", "paused"])).stdout, "no runs\n");
});

test("a run is created from a file with the flags on top, and only what was said is sent", async () => {
  const requests: CreateRunRequest[] = [];
  const server = await fakeServer({
    runs: {
      createRun(request) {
        requests.push(request);
        return { run: { name: "runs/made", state: RunState.QUEUED, queuePosition: 2n } };
      },
    },
  });
  const spec = { model: "models/file", steps: "10", optimizer: { learningRate: 0.5, schedule: { warmupSteps: "3" } } };
  const flags =
    "--model mini --id made --label a=b --label c=d --train moe --schedule linear --dropout 0 --seed 4294967295";
  const { code, stdout } = await thaw(server.address, ["runs", "create", "--spec", "-", ...flags.split(" ")], {
    input: JSON.stringify(spec),
  });
  assert.is(code, 0);
  assert.is(stdout, "runs/made QUEUED (2 ahead)\n");
  const [{ runId, labels, spec: sent }] = requests;
  assert.equal({ runId, labels }, { runId: "made", labels: { a: "b", c: "d" } });
  assert.equal([sent?.model, sent?.steps, sent?.seed, sent?.dropout], ["models/mini", 10n, 4294967295n, 0]);
  assert.is(sent?.optimizer?.learningRate, 0.5);
  assert.equal([sent?.optimizer?.schedule?.kind, sent?.optimizer?.schedule?.warmupSteps], [ScheduleKind.LINEAR, 3n]);
  assert.is(sent?.optimizer?.algorithm.case, undefined);
  assert.is(sent?.trainable?.selection?.preset, Preset.MOE);
  assert.equal([sent?.losses, sent?.evaluation, sent?.checkpoints], [undefined, undefined, undefined]);
});

test("a run's optimizer, routing and losses come from flags, and a flag that the optimizer lacks is refused", async () => {
  const requests: CreateRunRequest[] = [];
  const server = await fakeServer({
    runs: {
      createRun(request) {
        requests.push(request);
        return { run: { name: "runs/made", state: RunState.QUEUED } };
      },
    },
  });
  const create = (flags: string) =>
    thaw(server.address, ["runs", "create", "--spec", "-", ...flags.split(" ")], {
      input: JSON.stringify({ optimizer: { adamw: { beta1: 0.5 } }, losses: { zCoefficient: 0 } }),
    });
  const routing =
    "--top-k 2 --gate-normalization top_k --second-expert-policy random --priority batch_prioritized " +
    "--group tokens:64 --encoder-choice experts --selection-bias 2e-3 --train-capacity factor_k:1.25 --eval-capacity fixed:9";
  const losses = "--f-counts all_k --layer-reduction mean --vocabulary-z-coefficient 1e-4 --label-smoothing 0.1";
  const adafactor = "--optimizer adafactor --decay-rate 0.7 --min-dimension-to-factor 16 --weight-decay 0.5";
  const made = await create(
    `${adafactor} ${routing} ${losses} --expert-dropout 0.4 --batching packed --mix a,datasets/b --mixing-cap 9`,
  );
  assert.is(made.code, 0, made.stderr);
  const [{ spec }] = requests;
  const json = spec && (toJson(RunSpecSchema, spec) as Record<string, unknown>);
  assert.equal(json, {
    expertDropout: 0.4,
    batching: "BATCHING_PACKED",
    mixture: { datasets: ["datasets/a", "datasets/b"], cap: "9" },
    optimizer: { adafactor: { decayRate: 0.7, minDimensionToFactor: "16", weightDecay: 0.5 } },
    routing: {
      topK: 2,
      gateNormalization: "GATE_NORMALIZATION_TOP_K",
      secondExpertPolicy: "SECOND_EXPERT_POLICY_RANDOM",
      priority: "ROUTING_PRIORITY_BATCH_PRIORITIZED",
      group: "ROUTING_GROUP_TOKENS",
      groupTokens: "64",
      encoderChoice: "ROUTING_CHOICE_EXPERTS",
      selectionBias: { updateRate: 2e-3 },
      trainCapacity: { factorK: { factor: 1.25 } },
      evalCapacity: { fixed: { slots: "9" } },
    },
    losses: {
      zCoefficient: 0,
      fCounts: "F_COUNTS_ALL_K",
      layerReduction: "LAYER_REDUCTION_MEAN",
      vocabularyZCoefficient: 1e-4,
      labelSmoothing: 0.1,
    },
  });
  const kept = await create("--beta2 0.9");
  assert.is(kept.code, 0, kept.stderr);
  assert.equal(requests[1].spec?.optimizer && toJson(OptimizerOptionsSchema, requests[1].spec.optimizer), {
    adamw: { beta1: 0.5, beta2: 0.9 },
  });
  const other = await create("--momentum 0.9");
  assert.is(other.code, 2);
  assert.match(other.stderr, /--momentum is not of adamw; --optimizer sgd has it/);
  assert.is(requests.length, 2);
});

test("a fork's mask is what its flags say, zeros included", async () => {
  const requests: ForkRunRequest[] = [];
  const server = await fakeServer({
    runs: {
      forkRun(request) {
        requests.push(request);
        return { run: { name: "runs/made", state: RunState.QUEUED, sourceCheckpoint: request.sourceCheckpoint } };
      },
    },
  });
  const checkpoint = "runs/s/checkpoints/step-2";
  const fork = (flags: string) => thaw(server.address, ["runs", "fork", checkpoint, ...flags.split(" ")]);
  const made = await fork("--id f --seed 0 --warmup-steps 0 --weight-decay 0 --optimizer sgd --train moe --keep-best");
  assert.is(made.code, 0, made.stderr);
  assert.is(made.stdout, `runs/made QUEUED, from ${checkpoint}\n`);
  const [{ runId, sourceCheckpoint, spec, updateMask, resetOptimizerState }] = requests;
  assert.equal([runId, sourceCheckpoint, resetOptimizerState], ["f", checkpoint, false]);
  assert.equal(updateMask?.paths, [
    "seed",
    "optimizer.schedule.warmup_steps",
    "evaluation.overfitting.keep_best",
    "trainable",
    "optimizer.sgd.weight_decay",
  ]);
  assert.equal([spec?.optimizer?.algorithm.case, spec?.trainable?.selection?.preset], ["sgd", Preset.MOE]);
  await fork("--optimizer adafactor --reset-optimizer-state");
  assert.equal([requests[1].updateMask?.paths, requests[1].resetOptimizerState], [["optimizer.adafactor"], true]);
  assert.is((await fork("--model other")).code, 2);
});

test("generation draws or searches as the flags say, never both", async () => {
  const asked: unknown[] = [];
  const server = await fakeServer({
    models: {
      async *generate({ decoding }) {
        const { $typeName, ...value } = decoding.value ?? { $typeName: undefined };
        asked.push({ case: decoding.case, ...value });
        yield { generation: { text: "out" } };
      },
    },
  });
  const ask = (flags: string) => thaw(server.address, ["models", "generate", "m", "in", ...flags.split(" ")]);
  assert.is((await ask("--max-new-tokens 4")).stdout, "out\n");
  assert.is((await ask("--temperature 0.5 --top-p 0.9 --seed 7")).code, 0);
  assert.is((await ask("--beams 3 --length-penalty 0")).code, 0);
  assert.is((await ask("--beams 3 --seed 7")).code, 2);
  assert.equal(asked, [
    { case: undefined },
    { case: "sample", temperature: 0.5, topP: 0.9, seed: 7n },
    { case: "beam", beams: 3, lengthPenalty: 0 },
  ]);
});

test("a piped watch prints a line per event, resumes by itself, and its exit code is the run's", async () => {
  let watches = 0;
  let last: RunState = RunState.SUCCEEDED;
  const server = await fakeServer({
    runs: {
      getRun: ({ name }) => ({ run: { name, spec: { steps: 3n } } }),
      async *watchRun({ afterRevision }) {
        if (watches++ === 0) {
          yield batch(state(1, RunState.QUEUED), state(2, RunState.RUNNING));
          throw refusal(status.UNAVAILABLE, "STOPPING", "the server is stopping");
        }
        assert.is(afterRevision, 2n);
        yield batch(state(3, last));
      },
    },
  });
  const good = await thaw(server.address, ["runs", "watch", "a"]);
  assert.is(good.code, 0);
  assert.equal(good.stdout.match(/r\d .*/g), ["r1  step 1  QUEUED", "r2  step 2  RUNNING", "r3  step 3  SUCCEEDED"]);
  assert.match(good.stderr, /connection lost \(the server is stopping\); trying again in/);
  watches = 0;
  last = RunState.FAILED;
  const bad = await thaw(server.address, ["runs", "watch", "runs/a", "--json"]);
  assert.is(bad.code, 1);
  const events = bad.stdout
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
  assert.equal(
    events.map(({ revision, state }) => `${revision} ${state.to}`),
    ["1 RUN_STATE_QUEUED", "2 RUN_STATE_RUNNING", "3 RUN_STATE_FAILED"],
  );
});

test("watching an ended run after its last event still exits as the run ended", async () => {
  const server = await fakeServer({
    runs: {
      getRun: ({ name }) => ({ run: { name, state: name === "runs/good" ? RunState.SUCCEEDED : RunState.CANCELLED } }),
      async *watchRun() {},
    },
  });
  assert.is((await thaw(server.address, ["runs", "watch", "good", "--after", "9"])).code, 0);
  assert.is((await thaw(server.address, ["runs", "watch", "bad", "--after", "9"])).code, 1);
});

test("Ctrl-C detaches from a watch, never stops the run, and says how to come back", async () => {
  let cancels = 0;
  const untilLeft = (signal: AbortSignal) => new Promise((resolve) => signal.addEventListener("abort", resolve));
  const server = await fakeServer({
    runs: {
      getRun: ({ name }) => ({ run: { name, spec: { steps: 100n } } }),
      cancelRun() {
        cancels++;
        return {};
      },
      async *watchRun(_, { signal }) {
        yield batch(state(1, RunState.RUNNING), state(2, RunState.RUNNING));
        await untilLeft(signal);
      },
      async *startRun(_, { signal }) {
        yield { reply: { case: "created" as const, value: { run: { name: "runs/a", spec: { steps: 100n } } } } };
        yield batch(state(1, RunState.RUNNING), state(2, RunState.RUNNING));
        await untilLeft(signal);
      },
    },
  });
  for (const args of [
    ["watch", "a"],
    ["start", "--model", "m"],
  ]) {
    let sent = false;
    const { code, stderr } = await thaw(server.address, ["runs", ...args], {
      during(child, stdout) {
        if (sent || !/r2 /.test(stdout)) return;
        sent = true;
        child.kill("SIGINT");
      },
    });
    assert.is(code, 130, stderr);
    assert.match(stderr, `thaw runs watch runs/a --after 2 --server ${server.address}`);
    assert.match(stderr, "runs/a goes on");
  }
  assert.is(cancels, 0);
});

test("steering by lines: commands go in order, refusals do not end the stream", async () => {
  const seen: string[] = [];
  const server = await fakeServer({
    runs: {
      getRun: ({ name }) => ({ run: { name, revision: 1n, spec: { steps: 9n } } }),
      async *steerRun(requests): AsyncGenerator<MessageInitShape<typeof SteerRunResponseSchema>> {
        let number = 0n;
        for await (const { command } of requests) {
          seen.push(command.case ?? "");
          if (command.case === "watch") continue;
          number++;
          const refused = { code: status.FAILED_PRECONDITION, message: "it is PAUSED" };
          const value = { commandNumber: number, effectiveStep: 4n };
          yield command.case === "pause"
            ? { reply: { case: "acknowledgement", value: { ...value, result: { case: "error", value: refused } } } }
            : { reply: { case: "acknowledgement", value: { ...value, result: { case: "setTrainable", value: {} } } } };
        }
        yield batch(state(2, RunState.SUCCEEDED));
      },
    },
  });
  const outcome = await thaw(server.address, ["runs", "steer", "a"], { input: "pause\nfly\ntrain ffn --router on\n" });
  assert.is(outcome.code, 0, outcome.stderr);
  assert.equal(seen, ["watch", "pause", "setTrainable"]);
  assert.match(outcome.stderr, "command 1: FAILED_PRECONDITION: it is PAUSED");
  assert.match(outcome.stderr, "fly is none of pause");
  assert.match(outcome.stderr, "command 2: setTrainable at step 4");
});

test("data upload takes files named after their split, named files and folders", async () => {
  const folder = await mkdtemp(join(tmpdir(), "thaw-cli-"));
  await writeFile(join(folder, "train.jsonl"), "train\n");
  await writeFile(join(folder, "test.jsonl"), "test\n");
  await writeFile(join(folder, "val.jsonl"), "val\n");
  await writeFile(join(folder, "own.json"), "{}");
  await writeFile(join(folder, "text.txt"), "Once.\n");
  await mkdir(join(folder, "parquet"));
  await writeFile(join(folder, "parquet", "train.parquet"), "PAR1");
  const splits: string[][] = [];
  const headers: unknown[] = [];
  const server = await fakeServer({
    datasets: {
      async uploadDataset(requests) {
        const names: string[] = [];
        for await (const { part } of requests) {
          if (part.case === "split") names.push(part.value.name);
          if (part.case === "dataset")
            headers.push([DatasetFormatSchema.value[part.value.format].localName, part.value.task.value]);
        }
        splits.push(names);
        return { dataset: { name: "datasets/d", splits: [{ name: "train", examples: 1200n }], sizeBytes: 2048n } };
      },
    },
  });
  const train = join(folder, "train.jsonl");
  const cases: [string[], string[]][] = [
    [[folder], ["train", "validation", "test"]],
    [
      [train, `validation=${train}`, "--task", "superglue/rte"],
      ["train", "validation"],
    ],
    [[join(folder, "val.jsonl"), "--task", join(folder, "own.json")], ["validation"]],
    [[join(folder, "parquet")], ["train"]],
    [[train, "--format", "parquet"], ["train"]],
    [[`train=${join(folder, "text.txt")}`], ["train"]],
  ];
  for (const [paths] of cases) {
    const { code, stdout, stderr } = await thaw(server.address, ["data", "upload", ...paths]);
    assert.is(code, 0, stderr);
    assert.is(stdout, "datasets/d  train 1,200, 2.0 KiB\n");
  }
  assert.equal(
    splits,
    cases.map(([, names]) => names),
  );
  assert.equal(headers, [
    ["JSONL", undefined],
    ["JSONL", "superglue/rte"],
    ["JSONL", "{}"],
    ["PARQUET", undefined],
    ["PARQUET", undefined],
    ["PLAIN_TEXT", undefined],
  ]);
  const twice = await thaw(server.address, ["data", "upload", folder, train]);
  assert.is(twice.code, 2);
  assert.match(twice.stderr, "the split train is given twice");
  const mixed = await thaw(server.address, ["data", "upload", train, `test=${join(folder, "parquet/train.parquet")}`]);
  assert.is(mixed.code, 2);
  assert.match(mixed.stderr, "a dataset has one format");
  await rm(folder, { recursive: true });
});

test("streamed assignments: bars for people, every token as JSON", async () => {
  const server = await fakeServer({
    routing: {
      async *streamAssignments() {
        yield {};
        for (const sequence of [1n, 2n, 5n]) {
          yield {
            sequence,
            dropped: sequence === 5n ? 2n : 0n,
            assignments: {
              source: 1,
              step: 12n,
              stack: 1,
              layer: 3,
              expertCount: 4,
              topK: 2,
              tokenCount: 2n,
              exampleIds: new Uint8Array([9, 0, 0, 0, 9, 0, 0, 0]),
              positions: new Uint8Array([0, 0, 0, 0, 1, 0, 0, 0]),
              expertIdBytes: 1,
              expertIds: new Uint8Array([0, 3, 0, 1]),
              keptBits: new Uint8Array([0b0111]),
            },
          };
        }
      },
    },
  });
  const text = await thaw(server.address, ["routes", "stream", "a"]);
  const line = "step 12  encoder.3  training  2 tokens  load █▅▁▅ [2 1 0 1]  1 dropped";
  assert.is(text.stdout, `${line}\n`.repeat(3));
  assert.match(text.stderr, "3 slices, 2 dropped on the way");
  const json = await thaw(server.address, ["routes", "stream", "a", "--json", "--limit", "1"]);
  assert.is(json.code, 0);
  const slice = JSON.parse(json.stdout);
  assert.equal(
    [slice.exampleIds, slice.positions, slice.expertIds, slice.kept],
    [
      [9, 9],
      [0, 1],
      [
        [0, 3],
        [0, 1],
      ],
      [
        [1, 1],
        [1, 0],
      ],
    ],
  );
});

test.run();
