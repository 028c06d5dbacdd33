// What a run does when its checkpoints are damaged and when the disk is full: it goes back, or waits, and says so; its
// losses are those of a run that nothing happened to.

import { readdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { status } from "@grpc/grpc-js";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { RunEvent } from "../../proto/gen/thaw/v1/event_pb.ts";
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import { armFailpoints } from "../../src/failpoints.ts";
import { MOST_WAITING } from "../../src/server/runs/log.ts";
import {
  describeEvent,
  eventsUntil,
  reaches,
  refused,
  type TestServer,
  testServer,
  withInputs,
} from "../support/thaw_server.ts";

const { PAUSED, SUCCEEDED, FAILED } = RunState;
const SPEC = {
  model: "models/m",
  dataset: "datasets/d",
  steps: 8n,
  checkpoints: { everySteps: 2n, keepLast: 3n },
};

const test = suite("durability");
test.after.each(() => armFailpoints(""));

function scenario(name: string, body: (server: TestServer) => Promise<void>, ...flags: string[]) {
  test(name, async () => {
    const engine = () => ({
      loss: (_step: number, _batch: number, learnt: number) => learnt / 2 ** 32,
      beforeStep: () => delay(2),
    });
    const server = await testServer({ engine, flags });
    try {
      await withInputs(server.thaw);
      await body(server);
    } finally {
      await server.stop();
    }
  });
}

const lossesBySteps = (events: readonly RunEvent[]) =>
  new Map(events.flatMap(({ event }) => (event.case === "metrics" ? [[event.value.step, event.value.loss]] : [])));

async function unbroken({ thaw }: TestServer) {
  await thaw.runs.createRun({ runId: "unbroken", spec: SPEC });
  return lossesBySteps(await eventsUntil(thaw, "runs/unbroken", reaches(SUCCEEDED)));
}

/** Changes the last byte of a file of a checkpoint: of its only tensor, or white space after the JSON. */
async function damage({ dataDirectory }: TestServer, checkpoint: string, name = TENSORS): Promise<void> {
  const file = join(dataDirectory, "checkpoints", "r", checkpoint, name);
  const bytes = await readFile(file);
  if (name === TENSORS) bytes[bytes.length - 1] ^= 1;
  await writeFile(file, name === TENSORS ? bytes : Buffer.concat([bytes, Buffer.from(" ")]));
}

const TENSORS = "optimizer.safetensors";
const WRONG = "is damaged: its bytes are not those written";

/** Pauses a run with checkpoints at steps 2, 4 and where it was paused. @returns them, newest first */
async function interrupted(server: TestServer): Promise<string[]> {
  const { thaw } = server;
  await thaw.runs.createRun({ runId: "r", spec: SPEC });
  await eventsUntil(thaw, "runs/r", (event) => describeEvent(event) === "checkpoint 4");
  const { effectiveStep } = await thaw.runs.pauseRun({ name: "runs/r" });
  await eventsUntil(thaw, "runs/r", (event) => describeEvent(event) === `checkpoint ${effectiveStep}`);
  const { checkpoints } = await thaw.checkpoints.listCheckpoints({ parent: "runs/r" });
  return checkpoints.map(({ name }) => name.replace("runs/r/checkpoints/", ""));
}

async function warningsOf({ thaw }: TestServer, end: RunState) {
  const events = await eventsUntil(thaw, "runs/r", reaches(end));
  const warnings = events.flatMap(({ event, step }) =>
    event.case === "warning" ? [{ step, reason: event.value.reason, message: event.value.message }] : [],
  );
  return { events, warnings };
}

for (const [file, says] of [
  [TENSORS, `${TENSORS}: tensor "learnt" ${WRONG}`],
  ["training.json", `training.json ${WRONG}`],
  ["config.json", `config.json ${WRONG}`],
]) {
  scenario(`a run whose newest checkpoint has another ${file} goes on from the one before it`, async (server) => {
    const expected = await unbroken(server);
    const [newest, before] = await interrupted(server);
    await damage(server, newest, file);
    server.workers.kill();
    await server.thaw.runs.resumeRun({ name: "runs/r" });
    const { events, warnings } = await warningsOf(server, SUCCEEDED);
    const { step, message } = warnings.find(({ reason }) => reason === "CHECKPOINT_DAMAGED")!;
    const place = `runs/r/checkpoints/${before}, step ${step}`;
    assert.is(
      message,
      `runs/r/checkpoints/${newest} is damaged: ${says}; the run goes on from ${place}, and later steps are repeated`,
    );
    assert.equal(lossesBySteps(events), expected);
  });
}

scenario("a run all of whose checkpoints are damaged or gone begins again", async (server) => {
  const expected = await unbroken(server);
  const all = await interrupted(server);
  await rm(join(server.dataDirectory, "checkpoints", "r", all[0]), { recursive: true });
  for (const checkpoint of all.slice(1)) await damage(server, checkpoint);
  server.workers.kill();
  await server.thaw.runs.resumeRun({ name: "runs/r" });
  const { events, warnings } = await warningsOf(server, SUCCEEDED);
  const damaged = warnings.filter(({ reason }) => reason === "CHECKPOINT_DAMAGED");
  assert.is(damaged.length, all.length);
  assert.match(
    damaged[0].message,
    /config\.json is missing; training\.json is missing; model\.safetensors: the file does not/,
  );
  assert.match(damaged.at(-1)!.message, /the run goes on from the beginning, step 0,/);
  assert.equal(lossesBySteps(events), expected);
});

scenario("what is damaged is never a reason to delete what is not", async (server) => {
  const { thaw } = server;
  const all = await interrupted(server);
  await damage(server, all[0]);
  server.workers.kill();
  await thaw.runs.resumeRun({ name: "runs/r" });
  await eventsUntil(thaw, "runs/r", (event) => describeEvent(event) === "CHECKPOINT_DAMAGED");
  await eventsUntil(thaw, "runs/r", reaches(SUCCEEDED));
  const kept = await readdir(join(server.dataDirectory, "checkpoints", "r"));
  assert.ok(kept.includes(all[0]));
  assert.is(kept.length, 1 + 3 + 1, "the damaged one, three good ones by policy, and the last");
});

scenario("a fork of a damaged checkpoint fails with the tensor's name", async (server) => {
  const { thaw } = server;
  await thaw.runs.createRun({ runId: "r", spec: SPEC });
  await eventsUntil(thaw, "runs/r", reaches(SUCCEEDED));
  await damage(server, "step-6");
  const updateMask = { paths: ["steps"] };
  const sourceCheckpoint = "runs/r/checkpoints/step-6";
  await thaw.runs.forkRun({ runId: "fork", sourceCheckpoint, spec: { steps: 10n }, updateMask });
  await eventsUntil(thaw, "runs/fork", reaches(FAILED));
  const { run } = await thaw.runs.getRun({ name: "runs/fork" });
  assert.is(run?.error?.code, status.DATA_LOSS);
  assert.match(run!.error!.message, /tensor "learnt" is damaged/);
});

scenario("a fork of a checkpoint whose plan cannot be trusted is refused", async (server) => {
  const { thaw } = server;
  await thaw.runs.createRun({ runId: "r", spec: SPEC });
  await eventsUntil(thaw, "runs/r", reaches(SUCCEEDED));
  await damage(server, "step-6", "training.json");
  const error = await refused(thaw.runs.forkRun({ runId: "fork", sourceCheckpoint: "runs/r/checkpoints/step-6" }));
  assert.equal([error.code, error.message], [status.DATA_LOSS, `the checkpoint is damaged: training.json ${WRONG}`]);
  assert.is((await refused(thaw.runs.getRun({ name: "runs/fork" }))).code, status.NOT_FOUND);
});

for (const point of [
  "checkpoint.begun",
  "checkpoint.before_tensor",
  "checkpoint.before_publish",
  "checkpoint.before_state",
]) {
  scenario(`a run that finds the disk full at ${point} is paused, and goes on when there is room`, async (server) => {
    const expected = await unbroken(server);
    armFailpoints(`${point}:enospc`);
    await server.thaw.runs.createRun({ runId: "r", spec: SPEC });
    const { warnings } = await warningsOf(server, PAUSED);
    assert.equal(
      warnings.map(({ message }) => message),
      ["the server's disk is full; the run is paused, and goes on from the beginning, step 0 when it is resumed"],
    );
    armFailpoints("");
    const left = () => readdir(join(server.dataDirectory, "tmp"));
    for (let i = 0; i < 100 && (await left()).length > 0; i++) await delay(50);
    assert.equal(await left(), [], "nothing that will never be indexed takes room");
    await server.thaw.runs.resumeRun({ name: "runs/r" });
    const { events } = await warningsOf(server, SUCCEEDED);
    assert.equal(lossesBySteps(events), expected);
  });
}

scenario("a log that finds the disk full for a while loses nothing", async (server) => {
  const expected = await unbroken(server);
  armFailpoints("log.in_transaction:enospc:2"); // While it steps: the only checkpoint is the last.
  await server.thaw.runs.createRun({ runId: "r", spec: { ...SPEC, steps: 60n, checkpoints: {} } });
  const { events } = await warningsOf(server, SUCCEEDED);
  const losses = [...lossesBySteps(events)];
  assert.equal(losses.slice(0, 8), [...expected]);
  assert.is(losses.length, 60);
  assert.equal(
    events.map(({ revision }) => revision),
    events.map((_, i) => BigInt(i + 1)),
  );
});

for (const { every, back, why } of [
  { every: 1000n, back: 0, why: "once so many of its events wait" },
  { every: 50n, back: 100, why: "at its next checkpoint, and goes on from it" },
]) {
  scenario(`a log that finds the disk full for long pauses its run ${why}`, async (server) => {
    const { thaw, workers } = server;
    await thaw.runs.createRun({ runId: "r", spec: { ...SPEC, steps: 600n, checkpoints: { everySteps: every } } });
    await eventsUntil(thaw, "runs/r", (event) => describeEvent(event) === "step 60");
    armFailpoints("log.before_write:enospc");
    const [engine] = workers.engines;
    const steps = () => engine.calls.filter((call) => call.startsWith("step")).length;
    while (!engine.calls.includes("close")) await delay(20);
    const taken = steps();
    assert.ok(taken < 100 + MOST_WAITING, `${taken} steps`);
    const refusal = await refused(thaw.runs.cancelRun({ name: "runs/r" }));
    assert.equal([refusal.code, refusal.message], [status.RESOURCE_EXHAUSTED, "the server's disk is full"]);
    await delay(100);
    assert.is(steps(), taken, "it takes no more");
    armFailpoints("");
    await thaw.runs.resumeRun({ name: "runs/r" });
    const { events, warnings } = await warningsOf(server, SUCCEEDED);
    assert.equal(
      warnings.map(({ reason, step }) => [reason, Number(step)]),
      [["DISK_FULL", back]],
    );
    assert.equal(
      events.map(({ revision }) => revision),
      events.map((_, i) => BigInt(i + 1)),
    );
    const stepsOf = (some: readonly RunEvent[]) =>
      some.flatMap(({ event }) => (event.case === "metrics" ? [Number(event.value.step)] : []));
    const upTo = (first: number, last: number) => Array.from({ length: last - first + 1 }, (_, i) => first + i);
    const again = events.findIndex(({ event }) => event.case === "warning");
    const before = stepsOf(events.slice(0, again));
    assert.equal(before, upTo(1, before.length));
    assert.equal(stepsOf(events.slice(again)), upTo(back + 1, 600), "from where its log says, in one piece");
  });
}

scenario(
  "a run does not begin while the log finds the disk full, and begins by itself when there is room",
  async (server) => {
    const { thaw, workers } = server;
    const spec = { ...SPEC, steps: 600n, checkpoints: {} };
    await thaw.runs.createRun({ runId: "r", spec });
    await eventsUntil(thaw, "runs/r", (event) => describeEvent(event) === "step 10");
    await thaw.runs.createRun({ runId: "next", spec: SPEC });
    armFailpoints("log.before_write:enospc");
    const [engine] = workers.engines;
    const opened = () => engine.calls.filter((call) => call.startsWith("openRun")).length;
    while (!engine.calls.includes("close")) await delay(20);
    await delay(500);
    assert.is(opened(), 1);
    armFailpoints("");
    const events = await eventsUntil(thaw, "runs/next", reaches(SUCCEEDED));
    assert.equal(
      events.filter(({ event }) => event.case === "warning"),
      [],
    );
    assert.is((await thaw.runs.getRun({ name: "runs/r" })).run?.state, PAUSED);
    assert.is(opened(), 2);
  },
  "--max-runs-on-gpu",
  "1",
);

scenario("a checkpoint that somebody asks for on a full disk is refused, and the run goes on", async (server) => {
  const { thaw } = server;
  await thaw.runs.createRun({ runId: "r", spec: { ...SPEC, steps: 200n, checkpoints: {} } });
  await eventsUntil(thaw, "runs/r", (event) => event.event.case === "metrics");
  armFailpoints("checkpoint.before_tensor:enospc");
  const error = await refused(thaw.checkpoints.saveCheckpoint({ run: "runs/r" }));
  assert.equal([error.code, error.message], [status.RESOURCE_EXHAUSTED, "the server's disk is full"]);
  armFailpoints("");
  assert.is((await thaw.checkpoints.saveCheckpoint({ run: "runs/r" })).checkpoint?.name.startsWith("runs/r/"), true);
  await thaw.runs.cancelRun({ name: "runs/r" });
});

test.run();
