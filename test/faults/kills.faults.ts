// kill -9 of the server, or of its GPU process, at every failpoint of logging and checkpointing: whatever the moment, the
// log has no gap, keeps everything that anybody was told, and the run ends with the losses of one that nothing happened to.
//
// Every case must die at its point: a point that the workload does not pass fails its case.

import { suite } from "uvu";
import * as assert from "uvu/assert";
import { RpcError, type Thaw } from "../../clients/typescript/index.ts";
import { Preset } from "../../proto/gen/thaw/v1/group_pb.ts";
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import type { Failpoint } from "../../src/failpoints.ts";
import { stateName } from "../../src/server/runs/states.ts";
import { describeEvent, eventsUntil, reaches } from "../support/thaw_server.ts";
import { checkCheckpoints, checkLog, lossesOf, reader, story, unbrokenLosses } from "./support/promises.ts";
import { random, SEEDS } from "./support/random.ts";
import { type Prepared, prepare } from "./support/served.ts";

/** Where each point is passed. */
export const KILLED: readonly (readonly [Failpoint, "server" | "gpu"])[] = [
  ["log.before_write", "server"],
  ["log.in_transaction", "server"],
  ["log.after_commit", "server"],
  ["checkpoint.begun", "gpu"],
  ["checkpoint.before_tensor", "gpu"],
  ["checkpoint.before_sync", "gpu"],
  ["checkpoint.before_state", "gpu"],
  ["checkpoint.before_rename", "gpu"],
  ["checkpoint.renamed", "gpu"],
  ["checkpoint.before_publish", "server"],
  ["checkpoint.published", "server"],
  ["checkpoint.indexed", "server"],
  ["checkpoint.before_discard", "server"],
  ["worker.step", "gpu"],
];
/** Each point is passed at least so often in the workload. */
const PASSINGS = 3;

const SPEC = {
  model: "models/m",
  dataset: "datasets/d",
  steps: 12n,
  checkpoints: { everySteps: 2n, keepLast: 2n },
};
const { SUCCEEDED } = RunState;

const test = suite("kills");
let prepared: Prepared;
let unbroken: number[] = [];

test.before(async () => {
  prepared = await prepare();
  unbroken = await unbrokenLosses(prepared, SPEC);
  assert.is(unbroken.length, 12);
});
test.after(() => prepared.clean());

/** Reads on after what `into` has, until the run has ended or the server is gone. */
async function follow(thaw: Thaw, into: ReturnType<typeof reader>): Promise<void> {
  const watch = async (): Promise<void> => {
    for await (const { reply } of thaw.runs.watchRun({ name: "runs/r", afterRevision: into.revision })) {
      if (reply.case === "events") into.take(reply.value.events);
    }
  };
  await unlessItDies(watch());
}

/** The answer, or none of a server that is gone. */
async function unlessItDies<T>(call: Promise<T>): Promise<T | undefined> {
  try {
    return await call;
  } catch (error) {
    if (error instanceof RpcError) return undefined;
    throw error;
  }
}

/** Commands by chance, until one does not get through. What was acknowledged is returned, as it must stand in the log. */
async function steer(thaw: Thaw, seed: number): Promise<string[]> {
  const chance = random(seed);
  const acknowledged: string[] = [];
  const presets = [Preset.FFN, Preset.MOE, Preset.ALL];
  const commands = [
    async () => {
      const plan = { selection: { preset: chance.pick(presets) } };
      const { report } = await thaw.groups.setTrainable({ name: "runs/r", plan });
      acknowledged.push(`trainable ${report?.effectiveStep}`);
    },
    async () => {
      const { checkpoint } = await thaw.checkpoints.saveCheckpoint({ run: "runs/r" });
      acknowledged.push(`checkpoint ${checkpoint?.step}`);
    },
    async () => {
      const { run } = await thaw.runs.pauseRun({ name: "runs/r" });
      acknowledged.push(stateName(run!.state));
      await thaw.runs.resumeRun({ name: "runs/r" });
    },
  ];
  const some = async (): Promise<void> => {
    for (let i = 0; i < 2; i++) await chance.pick(commands)();
  };
  await unlessItDies(some());
  return acknowledged;
}

for (const seed of SEEDS) {
  const [point, where] = KILLED[seed % KILLED.length];
  const chance = random(seed);
  const count = 1 + chance.below(PASSINGS);
  test(`seed ${seed}: kill -9 of the ${where} at ${point}, passing ${count}`, async () => {
    const data = await prepared.copy();
    const points = `${point}:exit:${count}`;
    const variable = where === "server" ? "THAW_FAILPOINTS" : "FAKE_GPU_FAILPOINTS";
    const told = reader();
    let served = await prepared.start(data, { [variable]: points });
    const first = served;
    const creation = { runId: "r", spec: SPEC, requestId: "create" };
    const created = await unlessItDies(served.thaw.runs.createRun(creation));
    const [, acknowledged] = await Promise.all([follow(served.thaw, told), steer(served.thaw, seed)]);
    if (where === "server") {
      assert.is(await served.ended, "SIGKILL", `the server did not die at ${point}: ${story(told.seen)}`);
      served = await prepared.start(data);
      // Sent again, as by a client that had no answer: it is the same run.
      const { run } = await served.thaw.runs.createRun(creation);
      assert.equal(run, created?.run ?? run);
    }
    const log = await eventsUntil(served.thaw, "runs/r", reaches(SUCCEEDED)).catch((error) => {
      throw new Error(`${error.message}\n${first.said()}\n${served.said()}`);
    });
    if (where === "gpu") assert.ok(first.gpuProcesses.length === 2, `the GPU process did not die: ${story(log)}`);
    checkLog(log, told.seen);
    assert.equal(lossesOf(log), unbroken);
    const kept = new Set(log.map(describeEvent));
    for (const one of acknowledged) assert.ok(kept.has(one), `${one} was acknowledged and is lost: ${story(log)}`);
    const { run } = await served.thaw.runs.getRun({ name: "runs/r" });
    assert.is(run?.step, 12n);
    await served.end("SIGKILL");
    await checkCheckpoints(data, run!);
  });
}

test.run();
