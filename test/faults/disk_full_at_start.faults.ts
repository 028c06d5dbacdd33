// A server that is started where it cannot write, or not enough: it says so in one sentence and ends, whatever of a start
// there was room for, and the next start, with room, goes on as if there had been none.

import { type SpawnSyncReturns, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, rmSync } from "node:fs";
import process from "node:process";
import { setTimeout as delay } from "node:timers/promises";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { RunEvent } from "../../proto/gen/thaw/v1/event_pb.ts";
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import { runtimeCommand } from "../../src/server/gpu/connection.ts";
import { ROOM_REMEDY, WRITABLE_REMEDY } from "../../src/server/storage/unusable.ts";
import { describeEvent, eventsUntil, reaches, withInputs } from "../support/thaw_server.ts";
import { checkLog, lossesOf, story, unbrokenLosses } from "./support/promises.ts";
import { goOn, type Prepared, prepare, type Served } from "./support/served.ts";
import { fill, mountAgain, noSmallDisk, type SmallDisk } from "./support/small_disk.ts";
import { within } from "./support/within.ts";

const { SUCCEEDED } = RunState;
/** Uploads ask for 8 MiB at a time. */
const MEGABYTES = 16;
const PATIENCE_MS = 60_000;
const SPEC = {
  model: "models/m",
  dataset: "datasets/d",
  steps: 60n,
  checkpoints: { everySteps: 30n, keepLast: 2n },
};
/** What a stopped run has said is written long before. */
const IDLE_MS = 300;
const ENV = { FAKE_STEP_MS: "5" };
const FULL = `the disk of the data directory (--data-dir) is full; ${ROOM_REMEDY}`;
/**
 * Bytes that are left. A first start ends, one after the other, at the lock, the registry's first page, the index of its
 * log (32 KiB), each migration, and, from about 120 KiB on, not at all.
 */
const LEFT = [0, 2, 9, 12, 20, 32].map((pages) => pages * 4096);

const test = suite("disk full at the start");
let prepared: Prepared;
let unbroken: number[] = [];
const missing = noSmallDisk();
if (missing) {
  console.log(`skipped: no small disk can be mounted here (${missing})`);
  test.skip("a full disk at the start");
} else {
  test.before(async () => {
    prepared = await prepare();
    unbroken = await unbrokenLosses(prepared, SPEC);
  });
  test.after(() => prepared.clean());
}
const example = missing ? () => {} : test;

/** `thaw serve`'s server itself, or another program of the server's that takes its options, until it ends. */
function run(program: "main" | "doctor/main", disk: SmallDisk, data: string): SpawnSyncReturns<string> {
  const file = new URL(`../../src/server/${program}.ts`, import.meta.url);
  const [command, ...args] = disk.within([...runtimeCommand(file), "--port", "0", "--data-dir", data]);
  const env = { ...process.env, THAW_ADAPTER: "software" };
  return spawnSync(command, args, { encoding: "utf8", env, timeout: PATIENCE_MS, killSignal: "SIGKILL" });
}

/** Starts a server that may be refused, for want of room alone. */
async function tryStart(disk: SmallDisk, data: string): Promise<Served | undefined> {
  try {
    return await prepared.start(data, ENV, [], disk.within);
  } catch (error) {
    assert.ok((error as Error).message.includes(`Error: ${FULL}\n`), `${error}`);
    return undefined;
  }
}

/**
 * A data directory in which a run was training when the server was killed, and what of its log was read.
 * @param idle whether nothing was being written in that moment: what was not finished is room for the next start
 */
async function killed(
  idle = false,
): Promise<{ readonly data: string; readonly disk: SmallDisk; readonly seen: RunEvent[] }> {
  const { data, disk } = await prepared.onSmallDisk(MEGABYTES);
  const served = await prepared.start(data, ENV, [], disk.within);
  await served.thaw.runs.createRun({ runId: "r", spec: SPEC });
  const seen = await eventsUntil(served.thaw, "runs/r", (event) => describeEvent(event) === "step 33");
  if (idle) {
    process.kill(served.gpuProcesses.at(-1)!, "SIGSTOP");
    await delay(IDLE_MS);
  }
  await served.end("SIGKILL");
  if (idle) served.killGpuProcess();
  return { data, disk, seen };
}

/** The run ends as if nothing had been. */
async function succeeds(served: Served, disk: SmallDisk, seen: readonly RunEvent[]): Promise<void> {
  const log = await within(
    PATIENCE_MS,
    "the end of the run",
    eventsUntil(served.thaw, "runs/r", reaches(SUCCEEDED)),
    served.said,
  );
  checkLog(log, seen);
  assert.equal(lossesOf(log), unbroken, story(log));
  const { checkpoints } = await served.thaw.checkpoints.listCheckpoints({ parent: "runs/r" });
  const names = checkpoints.map(({ name }) => name.replace("runs/r/checkpoints/", ""));
  assert.equal(readdirSync(`${disk.seen}/data/checkpoints/r`).sort(), names.sort(), "folders are those indexed");
  await served.end("SIGKILL");
}

example("a first start on a full disk says so and makes nothing", async () => {
  const { disk, data } = await prepared.onSmallDisk(MEGABYTES);
  const makeRoom = await fill(disk.seen);
  for (const there of [true, false]) {
    const [made, seen] = [`${data}-${there}`, `${disk.seen}/data-${there}`];
    if (there) mkdirSync(seen);
    const { status, stdout, stderr } = run("main", disk, made);
    assert.equal([status, stdout, stderr], [1, "", `${FULL}\n`]);
    const files = existsSync(seen) ? readdirSync(seen) : [];
    assert.equal(
      files.filter((name) => name !== "server.lock"),
      [],
    );
  }
  await makeRoom();
});

for (const left of LEFT) {
  example(`a first start with ${left} bytes left, and one with room`, async () => {
    const { disk, data } = await prepared.onSmallDisk(MEGABYTES);
    const fresh = `${data}-fresh`;
    const makeRoom = await fill(disk.seen, left);
    const first = await tryStart(disk, fresh);
    await first?.end("SIGKILL");
    await makeRoom();
    const served = await prepared.start(fresh, {}, ["--min-free-disk-bytes", "0"], disk.within);
    await withInputs(served.thaw);
    await served.thaw.runs.createRun({ runId: "r", spec: SPEC });
    assert.equal(lossesOf(await eventsUntil(served.thaw, "runs/r", reaches(SUCCEEDED))), unbroken);
    await served.end("SIGKILL");
  });

  example(`a start after a kill with ${left} bytes left, and one with room`, async () => {
    const { data, disk, seen } = await killed();
    const makeRoom = await fill(disk.seen, left);
    const first = await tryStart(disk, data);
    await makeRoom();
    if (first) await within(PATIENCE_MS, "the end of the run", goOn(first.thaw, "runs/r"), first.said);
    await succeeds(first ?? (await prepared.start(data, ENV, [], disk.within)), disk, seen);
  });
}

example("a run that was training when the server was killed waits for room and goes on by itself", async () => {
  const { data, disk, seen } = await killed(true);
  const makeRoom = await fill(disk.seen);
  for (let time = 1; time <= 2; time++) {
    const { status, stdout, stderr } = run("main", disk, data);
    assert.equal([status, stdout], [1, ""], stderr);
    assert.is(stderr.trimEnd().split("\n").at(-1), FULL);
  }
  await makeRoom();
  await succeeds(await prepared.start(data, ENV, [], disk.within), disk, seen);
});

example("`thaw doctor` says of a full disk what a start would say", async () => {
  const { data, disk } = await prepared.onSmallDisk(MEGABYTES);
  // They are there after a kill, and not after a copy.
  for (const name of ["server.lock-journal", "thaw.sqlite-shm"]) rmSync(`${disk.seen}/data/${name}`, { force: true });
  const makeRoom = await fill(disk.seen);
  const { status, stdout } = run("doctor/main", disk, data);
  assert.is(status, 1);
  for (const [about, found] of [
    ["registry", "cannot be read on a full disk"],
    ["lock", "cannot be taken on a full disk"],
  ]) {
    assert.match(stdout, new RegExp(`^fail +${about} +${found}\\n +→ ${ROOM_REMEDY}$`, "m"));
  }
  assert.match(stdout, /^fail +disk +0\.0 GiB free$/m);
  await makeRoom();
});

example("a data directory that cannot be written is said to be so, and is as it was when it can again", async () => {
  const { data, disk, seen } = await killed();
  const place = data.replace(/\/data$/, "");
  mountAgain(disk, place, "ro");
  for (const made of [data, `${place}/new`]) {
    const { status, stdout, stderr } = run("main", disk, made);
    assert.equal([status, stdout], [1, ""], stderr);
    assert.ok(stderr.startsWith("the data directory (--data-dir) cannot be written ("), stderr);
    assert.ok(stderr.endsWith(`; ${WRITABLE_REMEDY}\n`) && !stderr.trimEnd().includes("\n"), stderr);
  }
  mountAgain(disk, place, "rw");
  await succeeds(await prepared.start(data, ENV, [], disk.within), disk, seen);
});

test.run();
