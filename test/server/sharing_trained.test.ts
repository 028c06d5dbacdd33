// Runs that share a GPU, with the real trainer on a tiny model: what they compute is what they compute alone, bit for bit,
// whoever steps between their steps, and whoever took their place for a while.

import { suite } from "uvu";
import * as assert from "uvu/assert";
import { Priority } from "../../proto/gen/thaw/v1/run_pb.ts";
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import { createEngine } from "../../src/trainer/engine.ts";
import { testDevice } from "../support/gpu.ts";
import {
  describeEvent,
  eventsUntil,
  reaches,
  type TestServer,
  testServer,
  withInputs,
} from "../support/thaw_server.ts";

const { RUNNING, SUCCEEDED } = RunState;
const STEPS = 30n;
const SPEC = {
  model: "models/m",
  dataset: "datasets/d",
  steps: STEPS,
  batchSize: 4n,
  maxInputTokens: 4n,
  maxTargetTokens: 4n,
  dropout: 0.1,
  optimizer: { learningRate: 1e-2 },
  evaluation: { everySteps: 10n },
};
/** Of one run and the other. */
const SEEDS = [7n, 8n];

const test = suite("trained sharing");
let server: TestServer;

test.before(async () => {
  const flags = ["--max-runs-on-gpu", "2"];
  const trainer = createEngine(await testDevice());
  server = await testServer({ trainer, memoryBytes: 2n ** 40n, flags });
  await withInputs(server.thaw);
});
test.after(() => server.stop());

/** What each step and each evaluation of an ended run came to. */
async function figures(run: string): Promise<readonly (readonly [string, number, number])[]> {
  const events = await eventsUntil(server.thaw, run, reaches(SUCCEEDED));
  return events.flatMap((event) => {
    if (event.event.case === "metrics")
      return [[describeEvent(event), event.event.value.loss, event.event.value.gradientNorm] as const];
    if (event.event.case === "evaluation")
      return [[describeEvent(event), event.event.value.loss, event.event.value.tokenAccuracy] as const];
    return [];
  });
}

test("two runs that take turns, one of them taken off the GPU and put back, do what each does alone", async () => {
  const { thaw } = server;
  const alone = [];
  for (const [i, seed] of SEEDS.entries()) {
    await thaw.runs.createRun({ runId: `alone-${i}`, spec: { ...SPEC, seed } });
    alone.push(await figures(`runs/alone-${i}`));
  }
  assert.not.equal(alone[0], alone[1]);

  for (const [i, seed] of SEEDS.entries()) {
    const priority = [Priority.NORMAL, Priority.LOW][i];
    await thaw.runs.createRun({ runId: `shared-${i}`, spec: { ...SPEC, seed }, priority });
    await eventsUntil(thaw, `runs/shared-${i}`, reaches(RUNNING));
    if (i === 0) await thaw.runs.pauseRun({ name: "runs/shared-0" });
  }
  await thaw.runs.resumeRun({ name: "runs/shared-0" });
  await eventsUntil(thaw, "runs/shared-1", ({ step }) => step >= 3n);
  await thaw.runs.createRun({ runId: "high", spec: { ...SPEC, steps: 2n }, priority: Priority.HIGH });
  const shared = await Promise.all(SEEDS.map((_, i) => figures(`runs/shared-${i}`)));
  assert.equal(shared, alone);

  const told = (await eventsUntil(thaw, "runs/shared-1", reaches(SUCCEEDED))).map(describeEvent);
  assert.ok(told.includes("PREEMPTED"), told.join());
  const [first, second] = await Promise.all(
    [0, 1].map(async (i) => {
      const events = await eventsUntil(thaw, `runs/shared-${i}`, reaches(SUCCEEDED));
      return events
        .filter(({ event }) => event.case === "metrics")
        .map(({ time }) => Number(time!.seconds) + time!.nanos / 1e9);
    }),
  );
  assert.ok(first[0] < second.at(-1)! && second[0] < first.at(-1)!, "they were on the GPU together");
});

test.run();
