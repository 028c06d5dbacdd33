// Processes that stop: a GPU process that hangs, which nothing but the bound on its progress ends, and a server that is told
// to end while it trains.

import process from "node:process";
import { setTimeout as delay } from "node:timers/promises";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import { describeEvent, eventsUntil, reaches } from "../support/thaw_server.ts";
import { lossesOf, story, unbrokenLosses } from "./support/promises.ts";
import { type Prepared, prepare } from "./support/served.ts";

const { SUCCEEDED } = RunState;
const STEPS = 40;
const SPEC = {
  model: "models/m",
  dataset: "datasets/d",
  steps: BigInt(STEPS),
  checkpoints: { everySteps: 4n, keepLast: 2n },
};
const SLOW = { FAKE_STEP_MS: "20" };

const test = suite("processes");
let prepared: Prepared;
let unbroken: number[] = [];

test.before(async () => {
  prepared = await prepare();
  unbroken = await unbrokenLosses(prepared, SPEC);
});
test.after(() => prepared.clean());

test("a GPU process that is stopped is ended, and its run goes on in another", async () => {
  const served = await prepared.start(await prepared.copy(), SLOW, ["--gpu-timeout-seconds", "3"]);
  await served.thaw.runs.createRun({ runId: "r", spec: SPEC });
  await eventsUntil(served.thaw, "runs/r", (event) => describeEvent(event) === "checkpoint 8");
  process.kill(served.gpuProcesses[0], "SIGSTOP");
  const started = Date.now();
  while (served.gpuProcesses.length < 2) {
    const asked = performance.now();
    await served.thaw.runs.getRun({ name: "runs/r" });
    assert.ok(performance.now() - asked < 1000, "others are answered meanwhile");
    assert.ok(Date.now() - started < 30_000, "the bound is 3 s");
    await delay(50);
  }
  const log = await eventsUntil(served.thaw, "runs/r", reaches(SUCCEEDED));
  const warning = log.find((event) => describeEvent(event) === "GPU_PROCESS_RESTARTED")!;
  assert.match(
    warning.event.case === "warning" ? warning.event.value.message : "",
    /^the GPU process ended \(no progress for 3 s, signal SIGKILL\); the run goes on from runs\/r\/checkpoints\/step-\d+,/,
  );
  assert.equal(lossesOf(log), unbroken, story(log));
  await served.end("SIGKILL");
});

test("SIGTERM in the middle of training: nothing is lost, nothing repeated", async () => {
  const data = await prepared.copy();
  const first = await prepared.start(data, SLOW);
  await first.thaw.runs.createRun({ runId: "r", spec: SPEC });
  await eventsUntil(first.thaw, "runs/r", (event) => describeEvent(event) === "step 6");
  assert.is(await first.end("SIGTERM"), "0");
  const second = await prepared.start(data, SLOW);
  const log = await eventsUntil(second.thaw, "runs/r", reaches(SUCCEEDED));
  assert.equal(lossesOf(log), unbroken);
  assert.is(log.filter(({ event }) => event.case === "metrics").length, STEPS, story(log));
  await second.end("SIGKILL");
});

test.run();
