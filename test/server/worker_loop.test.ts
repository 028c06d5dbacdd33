// The step loop against a trainer that computes nothing: order, policy, pausing, failing, giving up.

import { mkdir, mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { CheckpointReason } from "../../proto/gen/thaw/v1/checkpoint_pb.ts";
import { OverfittingReportSchema } from "../../proto/gen/thaw/v1/event_pb.ts";
import { Preset } from "../../proto/gen/thaw/v1/group_pb.ts";
import { RoutingChoice } from "../../proto/gen/thaw/v1/routing_pb.ts";
import { EvaluationMetric, NonFinitePolicy, RunSpecSchema } from "../../proto/gen/thaw/v1/run_pb.ts";
import { FromWorkerSchema, type RunUpdate } from "../../proto/gen/thaw/worker/v1/worker_pb.ts";
import { DeviceLostError } from "../../src/kernels/device/errors.ts";
import { fillRunSpec } from "../../src/server/worker/convert/run_spec.ts";
import type { Outbox } from "../../src/server/worker/outbox.ts";
import { createWorker, type GpuWorker } from "../../src/server/worker/worker.ts";
import { InputError, MemoryError } from "../../src/trainer/types.ts";
import {
  EVERYTHING,
  type FakeEngine,
  type FakeEngineOptions,
  fakeEngine,
  fakeHost,
  writeFakeCheckpoint,
} from "../support/fake_engine.ts";
import { type WorkerClient, type WorkerRequest, workerClient } from "../support/worker_client.ts";

const RUN = "runs/r";

interface Started {
  readonly engine: FakeEngine;
  readonly client: WorkerClient;
  readonly worker: GpuWorker;
  readonly ended: Promise<void>;
  /** A folder for this test's files. */
  readonly folder: string;
  /** How often it collected what closed runs have left. */
  collected(): number;
  open(spec?: MessageInitShape<typeof RunSpecSchema>, more?: object): bigint;
}

/** Runs a test against a fresh worker, then shuts it down and expects that to work. */
const test = suite("worker loop");
function scenario(name: string, options: FakeEngineOptions, body: (started: Started) => Promise<void>): void {
  test(name, async () => {
    const folder = await mkdtemp(join(tmpdir(), "thaw-worker-"));
    const engine = fakeEngine(options);
    const client: WorkerClient = workerClient((message) => worker.receive(message));
    let collections = 0;
    const outbox = {
      send: (message) => client.accept(create(FromWorkerSchema, { message })),
      log: () => undefined,
      backlogBytes: 0,
      end: () => Promise.resolve(),
    } satisfies Outbox;
    const worker = createWorker(engine, fakeHost, outbox, undefined, () => collections++);
    const ended = worker.run();
    const open: Started["open"] = (spec, more) =>
      client.send({
        case: "openRun",
        value: {
          run: RUN,
          spec: { model: "models/m", dataset: "datasets/d", steps: 5n, ...spec },
          modelDirectory: "/m",
          datasets: [
            { name: "datasets/d", splitFiles: { train: "/d/train.jsonl", validation: "/d/validation.jsonl" } },
          ],
          checkpointsDirectory: folder,
          ...more,
        },
      });
    try {
      await body({ engine, client, worker, ended, folder, open, collected: () => collections });
      client.send({ case: "shutdown", value: {} });
      await ended;
    } finally {
      worker.stop();
      await rm(folder, { recursive: true });
    }
  });
}

const say = ({ step, update }: RunUpdate): string => {
  if (update.case === "checkpoint") return `checkpoint ${update.value.reason} at ${step}`;
  return `${update.case} at ${step}`;
};
const run = (kind: "pause" | "resume" | "closeRun"): WorkerRequest => ({ case: kind, value: { run: RUN } });
const target = { target: { case: "run", value: RUN } } as const;

let secondBegins: () => void = () => undefined;
const second = new Promise<void>((resolve) => {
  secondBegins = resolve;
});
/** Step 1 takes until step 2 has begun and a third would have had time to. */
async function overlapping(step: number): Promise<void> {
  if (step === 2) secondBegins();
  if (step > 2) return;
  await second;
  await new Promise((resolve) => setTimeout(resolve, 20));
}
scenario("what a closed run has left is collected when it has gone", {}, async ({ client, open, collected }) => {
  await client.reply(open());
  await client.update("finished");
  assert.is(collected(), 0);
  client.send(run("closeRun"));
  await client.failure(client.send(run("pause"))); // answered after what the close brought
  assert.is(collected(), 1);
});

scenario("a run steps to its end, two steps in flight", { beforeStep: overlapping }, async (started) => {
  const { engine, client, open } = started;
  await client.reply(open());
  await client.update("finished");
  assert.equal(client.updates().map(say), [
    ...[1, 2, 3, 4, 5].map((step) => `metrics at ${step}`),
    `checkpoint ${CheckpointReason.FINAL} at 5`,
    "evaluation at 5",
    "finished at 5",
  ]);
  assert.is(engine.mostInFlight(), 2);
  assert.ok(engine.calls.includes("evaluate validation 256 at 5"));
});

scenario("the policy's checkpoints and evaluations fall on their steps", {}, async ({ client, open, folder }) => {
  const evaluation = { everySteps: 2n, splits: ["validation", "train"], atStart: true };
  await client.reply(open({ evaluation, checkpoints: { everySteps: 3n } }));
  await client.update("finished");
  const rest = client.updates().map(say);
  assert.equal(
    rest.filter((line) => !line.startsWith("metrics")),
    [
      ...[0, 0, 2, 2].map((step) => `evaluation at ${step}`),
      `checkpoint ${CheckpointReason.POLICY} at 3`,
      ...[4, 4].map((step) => `evaluation at ${step}`),
      `checkpoint ${CheckpointReason.FINAL} at 5`,
      ...[5, 5].map((step) => `evaluation at ${step}`),
      "finished at 5",
    ],
  );
  assert.ok(rest.indexOf("evaluation at 2") > rest.indexOf("metrics at 2"));
  assert.ok(rest.indexOf("evaluation at 2") < rest.indexOf("metrics at 3"));
  const written = client.updates().flatMap(({ update }) => (update.case === "checkpoint" ? [update.value] : []));
  const names = await readdir(folder);
  assert.equal(names.sort(), written.map(({ directory }) => directory.slice(folder.length + 1)).sort());
  const saved = JSON.parse(await readFile(join(written[0].directory, "training.json"), "utf8"));
  assert.is(saved.step, 3);
});

const reports = (client: { updates(): RunUpdate[] }) =>
  client.updates().flatMap(({ update }) => (update.case === "overfitting" ? [update.value] : []));

scenario(
  "the overfitting watch reports both losses, keeps the best and ends the run when its patience does",
  { score: (step) => [0, 0.5, 0.8, 0.8, 0.7, 0.9][step], loss: (step) => 1 / step },
  async ({ client, open }) => {
    const overfitting = { metric: EvaluationMetric.ACCURACY, patience: 2n, keepBest: true };
    await client.reply(open({ steps: 9n, evaluation: { everySteps: 1n, splits: ["validation"], overfitting } }));
    await client.update("finished");
    assert.equal(
      reports(client).map((r) => [Number(r.step), r.trainLoss, r.bestValue, Number(r.bestStep), r.stops]),
      [
        [1, 1, 0.5, 1, false],
        [2, 1 / 2, 0.8, 2, false],
        [3, 1 / 3, 0.8, 2, false],
        [4, 1 / 4, 0.8, 2, true],
      ],
    );
    assert.ok(reports(client).every((r) => r.gap === r.validationLoss - r.trainLoss!));
    assert.equal(
      client
        .updates()
        .map(say)
        .filter((line) => line.startsWith("checkpoint") || line.startsWith("finished")),
      [
        `checkpoint ${CheckpointReason.BEST} at 1`,
        `checkpoint ${CheckpointReason.BEST} at 2`,
        `checkpoint ${CheckpointReason.FINAL} at 4`,
        "finished at 4",
      ],
    );
  },
);

for (const [what, known, expected] of [
  [
    "a best before the checkpoint stands",
    { step: 2n, bestStep: 1n, bestValue: 0.9, evaluationsSinceBest: 1n },
    [0.9, 1],
  ],
  ["a best at the checkpoint is found again", { step: 2n, bestStep: 2n, bestValue: 0.9 }, [0.8, 2]],
] as const)
  scenario(
    `the watch of a run that goes on: ${what}`,
    { score: (step) => [0, 0.5, 0.8, 0.6, 0.6, 0.6][step] },
    async ({ client, open, folder }) => {
      const checkpoint = join(folder, "step-2");
      await mkdir(checkpoint);
      await writeFakeCheckpoint(checkpoint, { step: 2, plan: EVERYTHING });
      const overfitting = { metric: EvaluationMetric.ACCURACY };
      await client.reply(
        open(
          { evaluation: { everySteps: 1n, splits: ["validation"], overfitting } },
          { resumeDirectory: checkpoint, overfitting: create(OverfittingReportSchema, known) },
        ),
      );
      await client.update("finished");
      const last = reports(client).at(-1)!;
      assert.equal([last.bestValue, Number(last.bestStep)], [...expected]);
    },
  );

scenario(
  "a step that is not finite is skipped where the policy says so",
  { loss: (step) => (step === 2 ? Number.NaN : 1) },
  async ({ client, open }) => {
    await client.reply(open({ nonFinite: NonFinitePolicy.SKIP }));
    await client.update("finished");
    const warnings = client
      .updates()
      .flatMap(({ step, update }) => (update.case === "warning" ? [[step, update.value.reason]] : []));
    assert.equal(warnings, [[2n, "NON_FINITE_STEP_SKIPPED"]]);
  },
);

scenario("a run that only skips fails", { loss: () => Number.POSITIVE_INFINITY }, async ({ client, open }) => {
  await client.reply(open({ steps: 100n, nonFinite: NonFinitePolicy.SKIP }));
  const failed = await client.update("failed");
  assert.is(failed.error?.error.case, "input");
  assert.is(client.updates().at(-1)?.step, 8n);
});

scenario(
  "a run that is to go back says so, is closed, and reports nothing of the step in flight behind",
  { loss: (step) => (step === 2 ? Number.NaN : 1) },
  async ({ engine, client, open }) => {
    await client.reply(open({ steps: 9n, nonFinite: NonFinitePolicy.ROLLBACK, checkpoints: { everySteps: 2n } }));
    const { error } = (await client.update("failed")).error!;
    if (error.case !== "diverged") return assert.unreachable(error.case);
    assert.is(error.value.step, 2n);
    assert.match(error.value.message, /^training diverged at step 2: the loss is NaN, the total loss is NaN$/);
    const seen = client.updates().map(({ step, update }) => `${update.case} ${step}`);
    assert.equal(seen, ["metrics 1", "metrics 2", "failed 2"], "no checkpoint of it either");
    await client.reply(open({}, { passedOverSteps: 2n, paused: true }));
    assert.is(engine.calls.filter((call) => call === "close").length, 1);
    assert.is(engine.configs.at(-1)?.passedOverSteps, 2);
  },
);

scenario("a resumed run goes on under its checkpoint's plan", {}, async ({ engine, client, open, folder }) => {
  const plan = { ...EVERYTHING, selection: { preset: "moe" as const, add: [], remove: [] } };
  const checkpoint = join(folder, "step-2");
  await mkdir(checkpoint);
  await mkdir(join(folder, ".partial-step-4"));
  await writeFakeCheckpoint(checkpoint, { step: 2, plan });
  const policy = { evaluation: { everySteps: 2n }, checkpoints: { everySteps: 2n } };
  const opened = await client.reply(open(policy, { resumeDirectory: checkpoint }));
  if (opened.case !== "opened") return assert.unreachable();
  assert.is(opened.value.step, 2n);
  assert.is(opened.value.trainable?.selection?.preset, Preset.MOE);
  await client.update("finished");
  assert.equal(client.updates().map(say).slice(0, 3), ["evaluation at 2", "metrics at 3", "metrics at 4"]);
  assert.is(engine.calls[0], "openRun resumed");
  assert.not.ok((await readdir(folder)).includes(".partial-step-4"), "what was half-written is swept");
});

scenario("a run starts from another run's checkpoint as from a model", {}, async ({ engine, client, open }) => {
  await client.reply(open({}, { initialDirectory: "/checkpoint", paused: true }));
  assert.is(engine.configs[0].modelDirectory, "/checkpoint");
  assert.equal(engine.calls, ["openRun"]);
});

scenario("pause stops between two steps, requests are served, resume goes on", {}, async ({ engine, client, open }) => {
  await client.reply(open({ steps: 1_000_000n, checkpoints: { everySteps: 0n } }));
  await client.update("metrics");
  const paused = await client.reply(client.send(run("pause")));
  if (paused.case !== "stepping") return assert.unreachable();
  const { step } = paused.value;
  assert.ok(step > 0n);
  assert.is(client.updates().at(-1)?.step, step, "metrics of every step before the pause have arrived");
  const evaluation = await client.reply(
    client.send({ case: "evaluate", value: { target, file: "/f", split: "test", maxExamples: 3n } }),
  );
  assert.is(evaluation.case, "evaluation");
  assert.ok(engine.calls.includes(`evaluate test 3 at ${step}`));
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.is(client.updates().at(-1)?.step, step, "a paused run stands still");
  await client.reply(client.send(run("resume")));
  await client.until(({ message: m }) => (m.case === "update" && m.value.step > step + 2n) || undefined);
  const closed = await client.reply(client.send(run("closeRun")));
  assert.ok(closed.case === "stepping" && closed.value.step > step);
  assert.is(engine.calls.at(-1), "close");
  assert.is((await client.failure(client.send(run("pause")))).case, "wrongState");
});

scenario("a freeze plan takes effect between two steps, update before answer", {}, async ({ engine, client, open }) => {
  await client.reply(open({ steps: 1_000_000n }));
  await client.update("metrics");
  const plan = { selection: { preset: Preset.FFN } };
  const result = await client.reply(client.send({ case: "setTrainable", value: { run: RUN, plan } }));
  if (result.case !== "trainable") return assert.unreachable();
  const kinds = client.messages.map(({ message: m }) => (m.case === "update" ? m.value.update.case : m.case));
  assert.is(kinds.indexOf("trainable") + 1, kinds.lastIndexOf("reply"), "nothing between update and answer");
  const change = await client.update("trainable");
  assert.is(change.plan?.selection?.preset, Preset.FFN);
  const at = engine.calls.indexOf("setTrainable");
  assert.is(engine.calls[at - 1], `step ${result.value.effectiveStep}`);
  const priced = await client.reply(client.send({ case: "planTrainable", value: { target, plan } }));
  assert.is(priced.case, "trainable");
});

const refused = new InputError([{ field: "trainable.preset", message: "matches no parameter of this model" }]);
scenario("a refused plan leaves the run as it was", { setTrainableError: refused }, async ({ client, open }) => {
  await client.reply(open());
  const failure = await client.failure(client.send({ case: "setTrainable", value: { run: RUN } }));
  assert.is(failure.case, "input");
  await client.update("finished");
});

const broken = new Error("half-way");
scenario("a plan that breaks off half-way ends the run", { setTrainableError: broken }, async ({ client, open }) => {
  await client.reply(open({ steps: 1_000_000n }));
  const failure = await client.failure(client.send({ case: "setTrainable", value: { run: RUN } }));
  assert.is(failure.case, "internal");
  assert.is((await client.update("failed")).error?.error.case, "internal");
});

const losses: [string, number][] = [
  ["NaN", Number.NaN],
  ["Infinity", Number.POSITIVE_INFINITY],
];
for (const [what, bad] of losses) {
  const loss = (step: number) => (step >= 3 ? bad : 1);
  scenario(`a loss of ${what} fails the run, saying where`, { loss }, async ({ engine, client, open, folder }) => {
    await client.reply(open({ steps: 50n, checkpoints: { everySteps: 3n } }));
    const { error } = await client.update("failed");
    if (error?.error.case !== "input") return assert.unreachable();
    assert.match(error.error.value.problems[0].message, new RegExp(`diverged at step 3: the loss is ${what}`));
    assert.equal(client.updates().map(say), ["metrics at 1", "metrics at 2", "metrics at 3", "failed at 3"]);
    assert.equal(await readdir(folder), [], "no checkpoint holds what diverged");
    await client.reply(open({}, { run: "runs/next", paused: true }));
    assert.equal(engine.calls.slice(-2), ["close", "openRun"]);
  });
}

const throws = (error: Error) => (step: number) => {
  if (step === 2) throw error;
};
for (const [kind, error] of [
  ["outOfMemory", new MemoryError(10, 5, 1)],
  ["internal", new Error("kernel")],
  ["deviceLost", new DeviceLostError("reset")],
] as const) {
  scenario(`a step that fails with ${kind} fails the run`, { beforeStep: throws(error) }, async ({ client, open }) => {
    await client.reply(open({ steps: 50n }));
    assert.is((await client.update("failed")).error?.error.case, kind);
    assert.equal(client.updates().map(say), ["metrics at 1", "failed at 1"]);
  });
}

scenario("several runs take turns by their weights", {}, async ({ client, open }) => {
  const runs = { "runs/r": 1, "runs/heavy": 4 };
  for (const [run, weight] of Object.entries(runs)) {
    await client.reply(open({ steps: 1_000_000n, checkpoints: { everySteps: 0n } }, { run, weight, paused: true }));
  }
  for (const run of Object.keys(runs)) client.send({ case: "resume", value: { run } });
  const stepsOf = (run: string) =>
    client.updates().filter((update) => update.run === run && update.update.case === "metrics").length;
  while (stepsOf("runs/r") < 50) await new Promise((resolve) => setTimeout(resolve, 1));
  const [light, heavy] = [stepsOf("runs/r"), stepsOf("runs/heavy")];
  // Two turns make a step, and two steps are in flight: each count may be off by a few.
  assert.ok(Math.abs(heavy - 4 * light) <= 12, `${light} and ${heavy}`);
  await client.reply(client.send({ case: "closeRun", value: { run: "runs/heavy" } }));
  const before = stepsOf("runs/r");
  while (stepsOf("runs/r") < before + 10) await new Promise((resolve) => setTimeout(resolve, 1));
  const closed = stepsOf("runs/heavy");
  await client.reply(client.send({ case: "pause", value: { run: "runs/r" } }));
  assert.is(stepsOf("runs/heavy"), closed);
});

let failsAt = Number.POSITIVE_INFINITY;
scenario(
  "a run that fails leaves the others be",
  {
    beforeStep: (step) => {
      if (step === failsAt) throw new Error("kernel");
    },
  },
  async ({ client, open }) => {
    await client.reply(open({ steps: 8n }, { run: "runs/short", paused: true }));
    await client.reply(open({ steps: 100n }, { run: "runs/long", paused: true }));
    failsAt = 50;
    for (const run of ["runs/short", "runs/long"]) client.send({ case: "resume", value: { run } });
    await client.update("failed");
    await client.update("finished");
    const ends = client.updates().filter(({ update }) => update.case === "failed" || update.case === "finished");
    assert.equal(
      ends.map(({ run, update }) => [run, update.case]),
      [
        ["runs/short", "finished"],
        ["runs/long", "failed"],
      ],
    );
    await client.reply(client.send({ case: "closeRun", value: { run: "runs/short" } }));
  },
);

scenario("a run is open once, and only known names are", {}, async ({ client, open }) => {
  await client.reply(open({}, { paused: true }));
  assert.is((await client.failure(open({}, { paused: true }))).case, "wrongState");
  const stranger = client.send({ case: "pause", value: { run: "runs/other" } });
  assert.is((await client.failure(stranger)).case, "wrongState");
});

scenario("generation streams batch by batch, also during a run", {}, async ({ engine, client, open }) => {
  await client.reply(open({ steps: 1_000_000n, batchSize: 2n }));
  const inputs = ["a", "b", "c"];
  const id = client.send({
    case: "generate",
    value: {
      target,
      inputs,
      maxNewTokens: 4n,
      includeRoutes: true,
      decoding: { case: "sample", value: { topP: 0.5, seed: 4294967295n } },
    },
  });
  await client.reply(id);
  const replies = client.messages.flatMap(({ message: m }) =>
    m.case === "reply" && m.value.id === id && m.value.result.case === "generation"
      ? [{ more: m.value.more, ...m.value.result.value }]
      : [],
  );
  assert.equal(
    replies.map(({ more, inputIndex, text, routes }) => [more, inputIndex, text, routes[0].exampleIds[0]]),
    [
      [true, 0n, "A", 0],
      [true, 1n, "B", 1],
      [false, 2n, "C", 2],
    ],
  );
  assert.equal(
    engine.calls.filter((call) => call.startsWith("generate")),
    ["generate a b", "generate c"],
  );
  const drawn = { kind: "sample", temperature: 1, topP: 0.5 };
  assert.equal(engine.generations, [
    { maxNewTokens: 4, decoding: { ...drawn, seed: 4294967295 } },
    { maxNewTokens: 4, decoding: { ...drawn, seed: 1 } },
  ]);
});

scenario("a model stays open for the next question, until a run needs its place", {}, async (started) => {
  const { engine, client, open } = started;
  const model = { directory: "/m", checkpointDirectory: "/c", batchSize: 2n, maxInputTokens: 8n, maxTargetTokens: 8n };
  const ask = () =>
    client.send({
      case: "generate",
      value: { target: { target: { case: "model", value: model } }, inputs: ["a"], maxNewTokens: 4n },
    });
  await client.reply(ask());
  await client.reply(ask());
  await client.reply(open({}, { paused: true }));
  assert.equal(engine.calls, ["openModel /c", "generate a", "generate a", "close", "openRun"]);
});

scenario("a model routes as it is asked to, and is opened anew to route otherwise", {}, async ({ engine, client }) => {
  const model = { checkpointDirectory: "/c", batchSize: 2n, maxInputTokens: 8n, maxTargetTokens: 8n };
  const filled = fillRunSpec(create(RunSpecSchema), []).routing;
  const ask = (encoderChoice: RoutingChoice) => {
    const value = { ...model, routing: { ...filled, encoderChoice } };
    const target = { target: { case: "model" as const, value } };
    return client.send({ case: "generate", value: { target, inputs: ["a"], maxNewTokens: 4n } });
  };
  await client.reply(ask(RoutingChoice.EXPERTS));
  await client.reply(ask(RoutingChoice.EXPERTS));
  await client.reply(ask(RoutingChoice.TOKENS));
  const opened = engine.calls.filter((call) => call.startsWith("openModel"));
  assert.equal(opened, ["openModel /c encoder experts", "openModel /c encoder tokens"]);
});

scenario("a directory is filled durably", {}, async ({ client, open, folder }) => {
  await client.reply(open({}, { paused: true }));
  for (const [request, names] of [
    ["saveCheckpoint", ["config.json", "model.safetensors", "optimizer.safetensors", "training.json"]],
    ["exportModel", ["config.json"]],
  ] as const) {
    const directory = join(folder, request);
    await mkdir(directory);
    const id =
      request === "saveCheckpoint"
        ? client.send({ case: request, value: { run: RUN, directory } })
        : client.send({ case: request, value: { target, directory } });
    const written = await client.reply(id);
    assert.ok(written.case === "written" && written.value.sizeBytes > 0n);
    assert.equal((await readdir(directory)).sort(), names);
  }
});

let release: () => void = () => undefined;
const held = () => new Promise<void>((resolve) => (release = resolve));
scenario("a request is given up while it waits and while it works", { beforeInference: held }, async (started) => {
  const { engine, client, open } = started;
  await client.reply(open({ batchSize: 1n }, { paused: true }));
  const working = client.send({ case: "generate", value: { target, inputs: ["a", "b"], maxNewTokens: 4n } });
  const waiting = client.send({ case: "evaluate", value: { target, file: "/f", split: "test" } });
  const after = client.send(run("pause"));
  await new Promise((resolve) => setTimeout(resolve, 20));
  client.send({ case: "cancelRequest", value: { id: waiting } });
  client.send({ case: "cancelRequest", value: { id: working } });
  client.send({ case: "cancelRequest", value: { id: 99n } });
  assert.is((await client.failure(waiting)).case, "cancelled");
  assert.is((await client.failure(working)).case, "cancelled");
  release();
  await client.reply(after);
  assert.equal(engine.calls, ["openRun", "generate a"], "the second batch was never begun");
});

const tokenised = { total: 9, truncatedInputs: 0, truncatedTargets: 0 };
const slowly: FakeEngineOptions = {
  async whileOpening(onEncoding) {
    onEncoding("/d/train.jsonl", { ...tokenised, encoded: 1 });
    await held();
    onEncoding("/d/train.jsonl", { ...tokenised, encoded: 2 });
  },
};
scenario(
  "a run that is given up while its data is tokenised is not opened",
  slowly,
  async ({ engine, client, open }) => {
    const opening = open();
    await client.update("preparation");
    client.send({ case: "cancelRequest", value: { id: opening } });
    assert.is((await client.failure(opening)).case, "cancelled");
    release();
    const again = open();
    await client.until(() => engine.calls.length === 2 || undefined);
    release();
    await client.reply(again);
    assert.equal(engine.calls.slice(0, 2), ["openRun", "openRun"], "nothing was there to be closed");
  },
);

scenario("what cannot be understood fails by itself", {}, async ({ client }) => {
  const cases: WorkerRequest[] = [
    { case: undefined } as unknown as WorkerRequest,
    { case: "evaluate", value: { file: "/f" } },
  ];
  for (const request of cases) assert.is((await client.failure(client.send(request))).case, "internal");
  const missing = client.send({ case: "describeModel", value: { directory: "/nowhere" } });
  assert.is((await client.failure(missing)).case, "input");
});

scenario("requests before Shutdown are still carried out", {}, async ({ engine, client, open, ended }) => {
  await client.reply(open({ steps: 1_000_000n }));
  const pause = client.send(run("pause"));
  client.send({ case: "shutdown", value: {} });
  const late = client.send(run("resume"));
  await ended;
  await client.reply(pause);
  assert.is(engine.calls.at(-1), "close");
  const answered = client.messages.some(
    ({ message: m }) => m.case !== "update" && (m.value as { id?: bigint })?.id === late,
  );
  assert.not.ok(answered);
});

scenario("a lost device fails the run and every request", { beforeInference: held }, async (started) => {
  const { client, open, worker } = started;
  await client.reply(open({}, { paused: true }));
  const working = client.send({ case: "evaluate", value: { target, file: "/f", split: "test" } });
  const waiting = client.send(run("resume"));
  await new Promise((resolve) => setTimeout(resolve, 20));
  worker.fail(new DeviceLostError("reset"));
  for (const id of [working, waiting]) assert.is((await client.failure(id)).case, "deviceLost");
  assert.is((await client.update("failed")).error?.error.case, "deviceLost");
  release();
});

test.run();
