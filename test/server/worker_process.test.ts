// The GPU process as the server sees it: a child that speaks frames on its pipes, with a real trainer on this machine's
// adapter, CPU or not.

import { type ChildProcess, spawn } from "node:child_process";
import { mkdir, mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { CheckpointReason } from "../../proto/gen/thaw/v1/checkpoint_pb.ts";
import { ParameterKind, Preset } from "../../proto/gen/thaw/v1/group_pb.ts";
import { FromWorkerSchema, ToWorkerSchema } from "../../proto/gen/thaw/worker/v1/worker_pb.ts";
import { gpuEnvironment } from "../../src/kernels/device/launch.ts";
import { childWorker } from "../../src/server/gpu/connection.ts";
import { decodeFrames, encodeFrame } from "../../src/server/worker/frames.ts";
import { type WorkerClient, type WorkerRequest, workerClient } from "../support/worker_client.ts";

const MODEL = new URL("../../../shared/fixtures/switch-tiny", import.meta.url).pathname;
const MAIN = new URL("../../src/server/worker/main.ts", import.meta.url).pathname;
const UNREAD_WRITER = new URL("../support/unread_writer.ts", import.meta.url).pathname;
const RUN = "runs/r";

const test = suite("worker process");
const children = new Set<ChildProcess>();
let folder = "";

test.before(async () => {
  folder = await mkdtemp(join(tmpdir(), "thaw-worker-"));
  await mkdir(join(folder, "checkpoints"));
  // The same few sequences over and over: a loss that must fall.
  const line = (i: number) => JSON.stringify({ input_ids: [5 + i, 9, 20 + i, 7], target_ids: [30 + i, 12] });
  const lines = Array.from({ length: 8 }, (_, i) => line(i)).join("\n");
  await writeFile(join(folder, "train.jsonl"), lines);
  await writeFile(join(folder, "validation.jsonl"), lines);
});
test.after(async () => {
  for (const child of children) child.kill("SIGKILL");
  await rm(folder, { recursive: true });
});

interface Child {
  readonly client: WorkerClient;
  readonly process: ChildProcess;
  readonly exited: Promise<number | null>;
}

/** Starts a script under the runtime of this test, with the environment a GPU process needs. */
function launch(script: string, stderr: "inherit" | "pipe" = "inherit") {
  const runtime = "Deno" in globalThis ? ["run", "-A"] : ["--import", "tsx"];
  const env = { ...process.env, ...gpuEnvironment().env };
  const child = spawn(process.execPath, [...runtime, script], { env, stdio: ["pipe", "pipe", stderr] });
  children.add(child);
  const exited = new Promise<number | null>((resolve) => {
    child.once("exit", (code) => {
      children.delete(child);
      resolve(code);
    });
  });
  return { child, exited };
}

function start(): Child {
  const { child, exited } = launch(MAIN);
  const client = workerClient((message) => child.stdin!.write(encodeFrame(ToWorkerSchema, message)));
  void (async () => {
    for await (const message of decodeFrames(FromWorkerSchema, child.stdout!)) client.accept(message);
  })();
  return { client, process: child, exited };
}

const openRun = (spec: object, more: object = {}): WorkerRequest => ({
  case: "openRun",
  value: {
    run: RUN,
    spec: {
      model: "models/m",
      dataset: "datasets/d",
      steps: 6n,
      batchSize: 4n,
      maxInputTokens: 8n,
      maxTargetTokens: 4n,
      optimizer: { learningRate: 1e-2 },
      dropout: 0,
      ...spec,
    },
    modelDirectory: MODEL,
    datasets: [
      {
        name: "datasets/d",
        splitFiles: { train: join(folder, "train.jsonl"), validation: join(folder, "validation.jsonl") },
      },
    ],
    checkpointsDirectory: join(folder, "checkpoints"),
    ...more,
  },
});

test("a real run: describe, plan, train, freeze, export; killed, it goes on to the same bits", async () => {
  const first = start();
  const { client } = first;
  const hello = await client.until(({ message: m }) => (m.case === "hello" ? m.value : undefined));
  assert.is(hello.protocolVersion, 1);
  assert.match(hello.adapter?.line ?? "", /adapter .* through dawn/);
  assert.ok(hello.versions.thaw && hello.processId > 0n);

  const described = await client.reply(client.send({ case: "describeModel", value: { directory: MODEL } }));
  if (described.case !== "description") return assert.unreachable();
  const total = described.value.parameters;
  assert.is(
    described.value.groups.reduce((sum, group) => sum + group.parameters, 0n),
    total,
  );

  const plan = { selection: { preset: Preset.ATTENTION } };
  const model = { directory: MODEL, batchSize: 4n, maxInputTokens: 8n, maxTargetTokens: 4n };
  const pricing = { target: { target: { case: "model" as const, value: model } }, plan };
  const priced = await client.reply(client.send({ case: "planTrainable", value: pricing }));
  if (priced.case !== "trainable") return assert.unreachable();
  assert.is(priced.value.before?.trainableParameters, total);
  assert.ok(priced.value.after!.optimizerBytes < priced.value.before!.optimizerBytes);
  const sgd = { optimizer: { algorithm: { case: "sgd" as const, value: {} } } };
  const stateless = await client.reply(client.send({ case: "planTrainable", value: { ...pricing, spec: sgd } }));
  if (stateless.case !== "trainable") return assert.unreachable();
  assert.is(stateless.value.before?.optimizerBytes, 0n, "SGD without momentum keeps no state");

  const evaluation = { atStart: true, splits: ["validation"] };
  const opened = await client.reply(
    client.send(openRun({ evaluation, checkpoints: { everySteps: 4n } }, { paused: true })),
  );
  if (opened.case !== "opened") return assert.unreachable();
  assert.is(opened.value.cost?.trainableParameters, total);
  assert.is(opened.value.data?.examples, 8n);
  const dispatches = opened.value.kernels.reduce((sum, { dispatches }) => sum + dispatches, 0n);
  assert.is(dispatches, opened.value.cost?.dispatches);

  const includes = { includeTokenIds: true, includeGates: true };
  await client.reply(client.send({ case: "subscribeRoutes", value: { run: RUN, ...includes } }));
  const frozen = await client.reply(client.send({ case: "setTrainable", value: { run: RUN, plan } }));
  if (frozen.case !== "trainable") return assert.unreachable();
  assert.is(frozen.value.effectiveStep, 0n);
  assert.ok(
    frozen.value.matched.every(({ kind }) =>
      [ParameterKind.ATTENTION_SELF, ParameterKind.ATTENTION_CROSS].includes(kind as 2 | 3),
    ),
  );
  await client.reply(client.send({ case: "resume", value: { run: RUN } }));
  await client.update("finished");

  const told = client.updates().filter(({ update }) => update.case !== "routes");
  assert.equal(
    told.map(({ step, update }) => `${update.case} ${step}`),
    [
      "preparation 0",
      "preparation 0",
      "trainable 0",
      "evaluation 0",
      "metrics 1",
      "metrics 2",
      "metrics 3",
      "metrics 4",
      "checkpoint 4",
      "metrics 5",
      "metrics 6",
      "checkpoint 6",
      "evaluation 6",
      "finished 6",
    ],
  );
  const [start0, end] = told.flatMap(({ update }) => (update.case === "evaluation" ? [update.value.loss] : []));
  assert.ok(end < start0, `loss ${start0} → ${end}`);
  const slice = await client.update("routes");
  const n = Number(slice.tokenCount);
  assert.ok(n > 0);
  assert.equal(
    [slice.exampleIds, slice.positions, slice.tokenIds, slice.expertIds, slice.gates].map((bytes) => bytes.length),
    [4 * n, 4 * n, 4 * n, n, 2 * n],
  );

  const exported = join(folder, "exported");
  await mkdir(exported);
  const target = { target: { case: "run", value: RUN } } as const;
  const written = await client.reply(client.send({ case: "exportModel", value: { target, directory: exported } }));
  assert.ok(written.case === "written" && written.value.sizeBytes > 4n * total);
  const again = await client.reply(client.send({ case: "describeModel", value: { directory: exported } }));
  assert.ok(again.case === "description" && again.value.parameters === total);
  // The fixture has no tokenizer, which is the caller's mistake to hear of.
  const text = client.send({ case: "generate", value: { target, inputs: ["a"], maxNewTokens: 2n } });
  assert.is((await client.failure(text)).case, "input");

  const checkpoint = await client.update("checkpoint");
  assert.is(checkpoint.reason, CheckpointReason.POLICY);
  assert.ok((await readdir(checkpoint.directory)).includes("training.json"));
  first.process.kill("SIGKILL");
  await first.exited;
  const second = start();
  const resume = { resumeDirectory: checkpoint.directory };
  const resumed = await second.client.reply(second.client.send(openRun({ evaluation }, resume)));
  if (resumed.case !== "opened") return assert.unreachable();
  assert.is(resumed.value.step, 4n);
  assert.is(resumed.value.trainable?.selection?.preset, Preset.ATTENTION);
  await second.client.update("finished");
  assert.equal(losses(second), losses(first).slice(4));
  second.process.stdin?.end();
  assert.is(await second.exited, 0, "the end of its input ends the worker");
});

/** Step and loss of every step a worker took. */
const losses = ({ client }: Child) =>
  client.updates().flatMap(({ step, update }) => (update.case === "metrics" ? [`${step}: ${update.value.loss}`] : []));

test("the setting of device memory reaches the process, which says it and holds runs to it", async () => {
  const gpuMemoryBytes = 1_000_000;
  const connection = childWorker({ adapter: undefined, gpuMemoryBytes }, () => undefined)();
  const client = workerClient((message) => connection.send(message));
  const reading = (async () => {
    for await (const message of connection.messages) client.accept(message);
  })();
  try {
    const hello = await client.until(({ message: m }) => (m.case === "hello" ? m.value : undefined));
    assert.is(hello.memoryBytes, BigInt(gpuMemoryBytes));
    const error = await client.failure(client.send(openRun({})));
    if (error.case !== "outOfMemory") return assert.unreachable(error.case);
    assert.is(error.value.availableBytes, BigInt(gpuMemoryBytes));
    assert.ok(error.value.neededBytes > error.value.availableBytes);
    client.send({ case: "shutdown", value: {} });
    assert.is(await connection.ended, "exit code 0");
  } finally {
    connection.kill();
    await reading;
  }
});

test("Shutdown ends the worker", async () => {
  const { client, exited } = start();
  client.send({ case: "shutdown", value: {} });
  assert.is(await exited, 0);
});

test("a server that does not read holds nothing up, and loses nothing", async () => {
  // 8 MiB is more than any pipe holds: if writing waited, the child could say nothing before it is read.
  const { child, exited } = launch(UNREAD_WRITER, "pipe");
  const said = await new Promise<string>((resolve) => child.stderr?.once("data", (data) => resolve(String(data))));
  const backlog = Number(/backlog (\d+)/.exec(said)?.[1]);
  assert.ok(backlog > 4 * 2 ** 20, `${said}: what nobody reads waits in the child, and the child goes on`);
  child.stdin?.write("end\n");
  let received = 0;
  for await (const { message } of decodeFrames(FromWorkerSchema, child.stdout!)) if (message.case === "log") received++;
  assert.is(received, 8, "everything sent arrives before the end");
  assert.is(await exited, 0);
});

test("what is no frame ends the worker with a reason", async () => {
  const { client, process: child, exited } = start();
  child.stdin?.write("hello?\n".repeat(20));
  const line = await client.until(({ message: m }) => (m.case === "log" ? m.value.message : undefined));
  assert.match(line, /not a stream of thaw\.worker\.v1\.ToWorker frames/);
  assert.is(await exited, 1);
});

test.run();
