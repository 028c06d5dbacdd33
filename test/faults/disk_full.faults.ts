// A disk that fills up while a run writes its log and its checkpoints, for longer or shorter, and with a GPU process that
// dies meanwhile: the server answers, the run waits or is paused and says why, and when there is room it goes on with
// nothing lost.

import { readdir } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import { describeEvent, eventsUntil, reaches } from "../support/thaw_server.ts";
import { checkLog, lossesOf, story, unbrokenLosses } from "./support/promises.ts";
import { random, SEEDS } from "./support/random.ts";
import { goOn, type Prepared, prepare } from "./support/served.ts";
import { fill, noSmallDisk } from "./support/small_disk.ts";
import { within } from "./support/within.ts";

const { SUCCEEDED } = RunState;
const MEGABYTES = 16;
const PATIENCE_MS = 60_000;
const STEPS = 300;
const SPEC = {
  model: "models/m",
  dataset: "datasets/d",
  steps: BigInt(STEPS),
  checkpoints: { everySteps: 20n, keepLast: 2n },
};
/** Some seconds each. */
const CASES = SEEDS.slice(0, 10);
/** As long as this the disk is full at most: steps for more events than may wait. */
const MOST_FULL_MS = 3000;
const ENV = { FAKE_STEP_MS: "5" };

const test = suite("disk full");
let prepared: Prepared;
let unbroken: number[] = [];
const missing = noSmallDisk();
if (missing) {
  console.log(`skipped: no small disk can be mounted here (${missing})`);
  test.skip("a full disk");
} else {
  test.before(async () => {
    prepared = await prepare();
    unbroken = await unbrokenLosses(prepared, SPEC);
  });
  test.after(() => prepared.clean());
}

for (const seed of missing ? [] : CASES) {
  const chance = random(seed);
  const at = 1 + chance.below(STEPS - 100);
  const fullMs = chance.below(MOST_FULL_MS);
  const dies = chance.below(3) === 0;
  test(`seed ${seed}: full at step ${at} for ${fullMs} ms${dies ? ", and the GPU process dies" : ""}`, async () => {
    const { data, disk } = await prepared.onSmallDisk(MEGABYTES);
    const served = await prepared.start(data, ENV, [], disk.within);
    const { thaw } = served;
    await thaw.runs.createRun({ runId: "r", spec: SPEC });
    const seen = await eventsUntil(thaw, "runs/r", (event) => describeEvent(event) === `step ${at}`);
    const makeRoom = await fill(disk.seen);
    if (dies) served.killGpuProcess();
    const until = Date.now() + fullMs;
    while (Date.now() < until) {
      await within(PATIENCE_MS, "an answer on a full disk", thaw.runs.getRun({ name: "runs/r" }), served.said);
      await delay(20);
    }
    await makeRoom();
    await within(PATIENCE_MS, "the end of the run", goOn(served.thaw, "runs/r"), served.said);
    const { run } = await thaw.runs.getRun({ name: "runs/r" });
    assert.is(run?.state, SUCCEEDED, served.said());
    const log = await eventsUntil(thaw, "runs/r", reaches(SUCCEEDED));
    checkLog(log, seen);
    assert.equal(lossesOf(log), unbroken, story(log));
    const { checkpoints } = await thaw.checkpoints.listCheckpoints({ parent: "runs/r" });
    const names = checkpoints.map(({ name }) => name.replace("runs/r/checkpoints/", ""));
    assert.equal((await readdir(`${disk.seen}/data/checkpoints/r`)).sort(), names.sort(), "folders are those indexed");
    await served.end("SIGKILL");
  });
}

if (!missing) {
  test("a server that is told to end on a full disk ends", async () => {
    const { data, disk } = await prepared.onSmallDisk(MEGABYTES);
    const served = await prepared.start(data, ENV, [], disk.within);
    await served.thaw.runs.createRun({ runId: "r", spec: SPEC });
    await eventsUntil(served.thaw, "runs/r", (event) => describeEvent(event) === "step 30");
    await fill(disk.seen);
    assert.is(await within(PATIENCE_MS, "its end", served.end("SIGTERM"), served.said), "0");
  });
}

test.run();
