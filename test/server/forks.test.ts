// ForkRun over gRPC, with a worker that trains nothing: what a fork takes over, what it changes, what it refuses.

import { setTimeout as delay } from "node:timers/promises";
import { status } from "@grpc/grpc-js";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { problemsOf } from "../../clients/typescript/index.ts";
import { Preset } from "../../proto/gen/thaw/v1/group_pb.ts";
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import {
  eventsUntil,
  reaches,
  refused,
  type TestServer,
  type TestServerOptions,
  testServer,
  withInputs,
} from "../support/thaw_server.ts";

const { QUEUED, SUCCEEDED } = RunState;

const test = suite("forks");
/** With `runs/s` of four steps on the experts, its checkpoints at steps 2 and 4. */
function scenario(name: string, options: TestServerOptions, body: (server: TestServer) => Promise<void>) {
  test(name, async () => {
    const server = await testServer(options);
    try {
      await withInputs(server.thaw);
      const trainable = { selection: { preset: Preset.MOE } };
      const spec = { model: "models/m", dataset: "datasets/d", steps: 4n, seed: 7n, trainable };
      await server.thaw.runs.createRun({ runId: "s", spec: { ...spec, checkpoints: { everySteps: 2n } } });
      await eventsUntil(server.thaw, "runs/s", reaches(SUCCEEDED));
      await body(server);
    } finally {
      await server.stop();
    }
  });
}

const sourceCheckpoint = "runs/s/checkpoints/step-2";

scenario("a fork goes on from the checkpoint with what its mask changes", {}, async ({ thaw, workers }) => {
  const [engine] = workers.engines;
  const before = engine.calls.length;
  const { run } = await thaw.runs.forkRun({
    sourceCheckpoint,
    runId: "f",
    spec: { steps: 5n, seed: 8n, optimizer: { learningRate: 0.5 }, losses: { zCoefficient: 9 } },
    updateMask: { paths: ["steps", "optimizer.learning_rate", "losses.balance_coefficient"] },
    labels: { arm: "b" },
  });
  assert.equal([run?.state, run?.step, run?.startStep], [QUEUED, 2n, 2n]);
  assert.equal([run?.sourceCheckpoint, run?.labels], [sourceCheckpoint, { arm: "b" }]);
  assert.equal([run?.spec?.steps, run?.spec?.seed], [5n, 7n], "the mask decides");
  assert.is(run?.spec?.losses?.zCoefficient, 1e-3);
  const events = await eventsUntil(thaw, "runs/f", reaches(SUCCEEDED));
  assert.is(events[0].step, 2n);
  const calls = engine.calls.slice(before);
  assert.is(calls[0], "openRun resumed");
  assert.equal(
    calls.filter((call) => call.startsWith("step")),
    ["step 3", "step 4", "step 5"],
  );
  const config = engine.configs[1];
  assert.equal([config.optimizer.learningRate, config.optimizer.maxGradientNorm, config.seed], [0.5, 1, 7]);
  assert.is(config.trainable.selection.preset, "moe");
  assert.not.ok(calls.includes("setTrainable"), "the plan is the checkpoint's");
});

scenario("a fork with another plan or another dataset order says so in its mask", {}, async ({ thaw, workers }) => {
  const [engine] = workers.engines;
  await thaw.runs.forkRun({
    sourceCheckpoint,
    runId: "f",
    spec: { trainable: { selection: { preset: Preset.FFN } }, seed: 8n },
    updateMask: { paths: ["trainable", "seed"] },
  });
  await eventsUntil(thaw, "runs/f", reaches(SUCCEEDED));
  assert.ok(engine.calls.includes("setTrainable"));
  assert.is(engine.configs[1].seed, 8);
  const { plan } = await thaw.groups.getTrainable({ name: "runs/f" });
  assert.is(plan?.selection?.preset, Preset.FFN);
});

scenario("a fork that resets takes the parameters alone", {}, async ({ thaw, workers }) => {
  const [engine] = workers.engines;
  const { run } = await thaw.runs.forkRun({
    sourceCheckpoint,
    runId: "f",
    spec: { steps: 2n, optimizer: { algorithm: { case: "sgd", value: { momentum: 0.5, weightDecay: 0.5 } } } },
    updateMask: { paths: ["steps", "optimizer.sgd.momentum"] },
    resetOptimizerState: true,
  });
  assert.equal([run?.startStep, run?.sourceCheckpoint, run?.spec?.initialCheckpoint], [0n, "", sourceCheckpoint]);
  await eventsUntil(thaw, "runs/f", reaches(SUCCEEDED));
  const opened = engine.calls.lastIndexOf("openRun");
  assert.ok(opened > 0);
  assert.equal(
    engine.calls.slice(opened).filter((call) => call.startsWith("step")),
    ["step 1", "step 2"],
  );
  assert.match(engine.configs[1].modelDirectory, /step-2$/);
  assert.equal(engine.configs[1].optimizer.algorithm, { kind: "sgd", momentum: 0.5, weightDecay: 0 });
});

scenario("everything wrong with a fork is said at once, and nothing is created", {}, async ({ thaw }) => {
  const error = await refused(
    thaw.runs.forkRun({
      sourceCheckpoint,
      runId: "-",
      spec: { steps: 2n, dropout: 1, optimizer: { algorithm: { case: "sgd", value: {} } } },
      updateMask: { paths: ["steps", "dropout", "optimizer.sgd", "model", "nothing", "optimizer.nothing", "seed.x"] },
    }),
  );
  assert.is(error.code, status.INVALID_ARGUMENT);
  const fields = problemsOf(error).fields.map(({ field }) => field);
  const masks = ["update_mask", "update_mask", "update_mask", "update_mask"];
  assert.equal(fields.sort(), ["run_id", "spec.dropout", "spec.optimizer", "spec.steps", ...masks]);
  const none = { sourceCheckpoint: "runs/s/checkpoints/step-3" };
  assert.is((await refused(thaw.runs.forkRun(none))).code, status.NOT_FOUND);
  const [bad] = problemsOf(await refused(thaw.runs.forkRun({ sourceCheckpoint: "runs/s" }))).fields;
  assert.is(bad.field, "source_checkpoint");
  assert.is((await thaw.runs.listRuns({})).runs.length, 1);
});

scenario(
  "a fork whose GPU process dies before its first checkpoint begins again where it was forked",
  { engine: () => ({ beforeStep: () => delay(10) }) },
  async ({ thaw, workers }) => {
    const spec = { steps: 8n, checkpoints: { everySteps: 0n } };
    const updateMask = { paths: ["steps", "checkpoints"] };
    await thaw.runs.forkRun({ sourceCheckpoint, runId: "f", spec, updateMask });
    await eventsUntil(thaw, "runs/f", ({ event, step }) => event.case === "metrics" && step === 4n);
    workers.kill();
    await eventsUntil(thaw, "runs/f", reaches(SUCCEEDED));
    const { calls } = workers.engines[1];
    assert.is(calls[0], "openRun resumed");
    assert.is(
      calls.find((call) => call.startsWith("step")),
      "step 3",
    );
  },
);

test.run();
