// A run that pauses by itself at a step: exactly there, across deaths, and never where it cannot.

import { setTimeout as delay } from "node:timers/promises";
import { status } from "@grpc/grpc-js";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { problemsOf } from "../../clients/typescript/index.ts";
import { Preset } from "../../proto/gen/thaw/v1/group_pb.ts";
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import { describeEvent, eventsUntil, reaches, refused, testServer, withInputs } from "../support/thaw_server.ts";

const { PAUSED, RUNNING, STARTING, SUCCEEDED } = RunState;
const name = "runs/r";
const SPEC = { model: "models/m", dataset: "datasets/d", steps: 9n, checkpoints: { everySteps: 3n } };
const engine = () => ({ beforeStep: () => delay(3) });

const test = suite("pause at a step");

test("a run pauses at the steps it is told, with a checkpoint there, and a plan set then takes effect there", async () => {
  let server = await testServer({ engine });
  try {
    await withInputs(server.thaw);
    await server.thaw.runs.createRun({ runId: "r", spec: SPEC, startPaused: true });
    await eventsUntil(server.thaw, name, reaches(PAUSED));
    for (const at of [2n, 6n]) {
      const { run, effectiveStep } = await server.thaw.runs.resumeRun({ name, pauseAtStep: at });
      assert.is(run?.pauseAtStep, at);
      const log = await eventsUntil(server.thaw, name, reaches(PAUSED), run!.revision);
      assert.equal([log.at(-1)?.step, log.filter(({ event }) => event.case === "metrics").at(-1)?.step], [at, at]);
      const paused = (await server.thaw.runs.getRun({ name })).run!;
      assert.equal([paused.step, paused.pauseAtStep, effectiveStep < at], [at, 0n, true]);
      assert.is(paused.latestCheckpoint, `runs/r/checkpoints/step-${at}`);
      const plan = { selection: { preset: at === 2n ? Preset.FFN : Preset.MOE } };
      assert.is((await server.thaw.groups.setTrainable({ name, plan })).report?.effectiveStep, at);
    }
    // What it was told holds when its process, and when the server, dies on the way.
    await server.thaw.runs.resumeRun({ name, pauseAtStep: 8n });
    server.workers.kill();
    await eventsUntil(server.thaw, name, (event) => describeEvent(event) === "GPU_PROCESS_RESTARTED");
    const { revision } = (await server.thaw.runs.getRun({ name })).run!;
    server = await server.crash();
    const log = await eventsUntil(server.thaw, name, reaches(PAUSED), revision);
    assert.is(log.at(-1)?.step, 8n);
    await server.thaw.runs.resumeRun({ name });
    await eventsUntil(server.thaw, name, reaches(SUCCEEDED));
  } finally {
    await server.stop();
  }
});

test("a pause, or a cancellation, that comes first holds, and a resume without a step forgets the one before", async () => {
  const server = await testServer({ engine });
  try {
    const { thaw } = server;
    await withInputs(thaw);
    await thaw.runs.createRun({ runId: "r", spec: { ...SPEC, steps: 60n }, startPaused: true });
    await eventsUntil(thaw, name, reaches(PAUSED));
    await thaw.runs.resumeRun({ name, pauseAtStep: 50n });
    await thaw.runs.pauseRun({ name });
    const { run } = await thaw.runs.resumeRun({ name });
    assert.equal([run?.state, run?.pauseAtStep], [RUNNING, 0n]);
    const rest = await eventsUntil(thaw, name, reaches(SUCCEEDED), run!.revision);
    assert.not.ok(rest.some(reaches(PAUSED)) || rest.some(reaches(STARTING)));
  } finally {
    await server.stop();
  }
});

test("a step that it has passed, or will not come to, is refused", async () => {
  const server = await testServer({ engine });
  try {
    const { thaw } = server;
    await withInputs(thaw);
    await thaw.runs.createRun({ runId: "r", spec: SPEC, startPaused: true });
    await eventsUntil(thaw, name, reaches(PAUSED));
    await thaw.runs.resumeRun({ name, pauseAtStep: 3n });
    await eventsUntil(thaw, name, ({ event, step }) => step === 3n && event.case === "state");
    const wrong = [
      { pauseAtStep: 3n },
      { pauseAtStep: -1n },
      { pauseAtStep: 9n },
      { pauseAtStep: 5n, stayPaused: true },
    ];
    for (const request of wrong) {
      const error = await refused(thaw.runs.resumeRun({ name, ...request }));
      assert.is(error.code, status.INVALID_ARGUMENT);
      assert.equal(
        problemsOf(error).fields.map(({ field }) => field),
        ["pause_at_step"],
      );
    }
    assert.is((await thaw.runs.getRun({ name })).run?.state, PAUSED);
  } finally {
    await server.stop();
  }
});

test.run();
