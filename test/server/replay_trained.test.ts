// `thaw runs replay` on the real trainer and a tiny model: a run whose plan changed, that was paused, and that died twice is
// trained again from its log, and every loss is the same to the bit; one whose log says otherwise is told from it.

import { spawn } from "node:child_process";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { fromBinary, toBinary } from "@bufbuild/protobuf";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { RunEventSchema, type TrainableChanged } from "../../proto/gen/thaw/v1/event_pb.ts";
import { OptimizerStatePolicy, Preset } from "../../proto/gen/thaw/v1/group_pb.ts";
import { ScheduleKind } from "../../proto/gen/thaw/v1/run_pb.ts";
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import { type Blob, bytesOf, openDatabase } from "../../src/server/registry/sqlite.ts";
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

const { CANCELLED, PAUSED, RUNNING, SUCCEEDED } = RunState;
const STEPS = 24n;
const SPEC = {
  model: "models/m",
  dataset: "datasets/d",
  steps: STEPS,
  batchSize: 4n,
  maxInputTokens: 4n,
  maxTargetTokens: 4n,
  seed: 5n,
  trainable: { selection: { preset: Preset.ALL } },
  optimizer: { learningRate: 1e-2, schedule: { kind: ScheduleKind.COSINE, warmupSteps: 3n } },
  checkpoints: { everySteps: 5n, keepLast: 10n },
};
const DROP = OptimizerStatePolicy.DROP;

const CLI = fileURLToPath(new URL("../../clients/cli/thaw.mjs", import.meta.url));

const test = suite("trained replay");
let server: TestServer;

test.before(async () => {
  server = await testServer({ trainer: createEngine(await testDevice()) });
  await withInputs(server.thaw);
});
test.after(() => server.stop());

/** `thaw runs replay`: its exit code and what it printed. */
function replay(run: string, id: string): Promise<{ readonly code: number | null; readonly text: string }> {
  const args = [CLI, "--server", server.address, "runs", "replay", run, "--id", id];
  const child = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "pipe"] });
  let text = "";
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding("utf8").on("data", (part) => (text += part));
  return new Promise((resolve) => child.on("close", (code) => resolve({ code, text })));
}

const step = (at: bigint) => (event: Parameters<typeof describeEvent>[0]) => describeEvent(event) === `step ${at}`;

test("plans changed while it ran, a pause, a dead process: every loss comes out again", async () => {
  const { thaw } = server;
  const name = "runs/r";
  await thaw.runs.createRun({ runId: "r", spec: SPEC });
  await eventsUntil(thaw, name, step(3n));
  const set = (preset: Preset, optimizerState?: OptimizerStatePolicy) =>
    thaw.groups.setTrainable({ name, plan: { selection: { preset }, optimizerState } });
  await set(Preset.FFN, DROP);
  await set(Preset.ALL); // at the same step: what was dropped begins anew
  await eventsUntil(thaw, name, step(7n));
  await thaw.runs.pauseRun({ name });
  await eventsUntil(thaw, name, reaches(PAUSED));
  await set(Preset.MOE);
  const { run } = await thaw.runs.resumeRun({ name });
  await eventsUntil(thaw, name, step(run!.step + 2n));
  server.workers.kill();
  await eventsUntil(thaw, name, reaches(RUNNING), (await thaw.runs.getRun({ name })).run!.revision);
  await set(Preset.FFN);
  const log = await eventsUntil(thaw, name, reaches(SUCCEEDED));
  assert.ok(log.some((event) => describeEvent(event) === "GPU_PROCESS_RESTARTED"));

  const { code, text } = await replay("r", "again");
  assert.is(code, 0, text);
  assert.match(text, /^24 steps of runs\/r and runs\/again: every loss is the same to the bit$/m);
  const again = (await thaw.runs.getRun({ name: "runs/again" })).run!;
  assert.equal([again.state, again.displayName], [SUCCEEDED, "replay of runs/r"]);
});

test("a fork is replayed from its checkpoint, and a cancelled one as far as it came", async () => {
  const { thaw } = server;
  const sourceCheckpoint = "runs/r/checkpoints/step-15";
  const spec = { seed: 6n, optimizer: { learningRate: 3e-3 } };
  const updateMask = { paths: ["seed", "optimizer.learning_rate"] };
  await thaw.runs.forkRun({ sourceCheckpoint, runId: "f", spec, updateMask });
  await eventsUntil(thaw, "runs/f", step(18n));
  await thaw.runs.cancelRun({ name: "runs/f" });
  await eventsUntil(thaw, "runs/f", reaches(CANCELLED));
  const { code, text } = await replay("f", "f-again");
  assert.is(code, 0, text);
  assert.match(text, /^\d steps of runs\/f and runs\/f-again: every loss is the same/m);
  assert.is((await thaw.runs.getRun({ name: "runs/f-again" })).run?.startStep, 15n);
});

test("a run that was trained otherwise than its log says: the first step that differs", async () => {
  // The log is made to tell of the last change of plan two steps late.
  const database = openDatabase(join(server.dataDirectory, "thaw.sqlite"));
  const [row] = database.sql.all<{ revision: number; body: Blob }>(
    "SELECT revision, body FROM events WHERE run = 'r' AND kind = 'trainable' ORDER BY revision DESC LIMIT 1",
  );
  const event = fromBinary(RunEventSchema, bytesOf(row.body));
  const { report } = event.event.value as TrainableChanged;
  const changed = report!.effectiveStep;
  report!.effectiveStep += 2n;
  const body = toBinary(RunEventSchema, event);
  database.sql.run("UPDATE events SET body = ? WHERE run = 'r' AND revision = ?", body, row.revision);
  database.close();

  const { code, text } = await replay("r", "other");
  assert.is(code, 1, text);
  // The step after the change has the loss of parameters from before it; the next one shows.
  assert.match(text, new RegExp(`^step ${changed + 2n} is the first that differs: loss \\S+ in runs/r, `, "m"));
});

test.run();
