// StepService over gRPC, with a worker that trains nothing: who may be driven, what is told, and what a mistake leaves.

import { setTimeout as delay } from "node:timers/promises";
import { status } from "@grpc/grpc-js";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { problemsOf } from "../../clients/typescript/index.ts";
import { Priority } from "../../proto/gen/thaw/v1/run_pb.ts";
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import { stateName } from "../../src/server/runs/states.ts";
import { InputError } from "../../src/trainer/types.ts";
import {
  describeEvent,
  eventsUntil,
  reaches,
  refused,
  type TestServer,
  type TestServerOptions,
  testServer,
  withInputs,
} from "../support/thaw_server.ts";

const { QUEUED, RUNNING, PAUSED, SUCCEEDED } = RunState;
const { FAILED_PRECONDITION, INVALID_ARGUMENT, INTERNAL } = status;
const SPEC = { model: "models/m", dataset: "datasets/d", steps: 4n };
const run = "runs/r";
const examples = [{ inputIds: [5, 9], targetIds: [3] }];

const test = suite("steps");
/** With `runs/r`, paused on the GPU at its start. */
function scenario(name: string, options: TestServerOptions, body: (server: TestServer) => Promise<unknown>) {
  test(name, async () => {
    const server = await testServer(options);
    try {
      await withInputs(server.thaw);
      await server.thaw.runs.createRun({ runId: "r", spec: SPEC, startPaused: true });
      await eventsUntil(server.thaw, run, reaches(PAUSED));
      await body(server);
    } finally {
      await server.stop();
    }
  });
}

scenario("a run is driven to its end, and its log tells the steps as any other", {}, async ({ thaw, workers }) => {
  for (let step = 0n; step < 3n; step++) {
    for (const batches of [1n, 2n]) {
      const answer = await thaw.steps.forwardBackward({ run, examples, step, targetTokens: 6n });
      assert.equal([answer.step, answer.batches, answer.targetTokens], [step, batches, 2n]);
      assert.equal([answer.loss, answer.tokenLosses[0].losses, answer.truncatedTargets], [0.5, [0.25, 0.75], 1n]);
    }
    const { metrics } = await thaw.steps.optimStep({ run, step, batches: 2n, learningRate: 0.5 });
    assert.equal([metrics?.step, metrics?.learningRate], [step + 1n, 0.5]);
  }
  assert.is((await thaw.runs.getRun({ name: run })).run?.step, 3n);
  await thaw.checkpoints.saveCheckpoint({ run });
  await thaw.runs.resumeRun({ name: run });
  const told = (await eventsUntil(thaw, run, reaches(SUCCEEDED))).map(describeEvent);
  assert.equal(told.slice(told.indexOf("PAUSED") + 1), [
    ...["step 1", "step 2", "step 3", "checkpoint 3", "RUNNING", "step 4", "checkpoint 4", "evaluation 4", "SUCCEEDED"],
  ]);
  const calls = workers.engines[0].calls.filter((call) => /forward|optim|end/.test(call));
  const step = ["forwardBackward 1 by 6", "forwardBackward 1 by 6", "optimStep 0.5"];
  assert.equal(calls, [...step, ...step, ...step, "endDriving"]);
});

scenario("a run driven to its last step writes its checkpoint when it is resumed", {}, async ({ thaw }) => {
  for (let step = 0; step < 5; step++) {
    await thaw.steps.forwardBackward({ run, examples });
    await thaw.steps.optimStep({ run });
  }
  await thaw.runs.resumeRun({ name: run });
  const told = (await eventsUntil(thaw, run, reaches(SUCCEEDED))).map(describeEvent);
  assert.equal(told.slice(-4), ["RUNNING", "checkpoint 5", "evaluation 5", "SUCCEEDED"]);
});

scenario("routes of a pass and of a generation are kept by name, and replayed", {}, async ({ thaw, workers }) => {
  const { recording } = await thaw.steps.forwardBackward({
    run,
    examples: [...examples, ...examples],
    recordRoutes: true,
  });
  assert.is((await thaw.steps.forwardBackward({ run, examples })).recording, "");
  const references = [{ recording, example: 1 }];
  for await (const { generation } of thaw.models.generate({ name: run, inputs: ["a", "b"], recordRoutes: true }))
    references.push(generation!.recorded!);
  const told = references.map((replay) => ({ ...examples[0], replay }));
  await thaw.steps.forwardBackward({ run, examples: told });
  const last = workers.engines[0].calls.at(-1);
  assert.is(last, "forwardBackward 3 by undefined replaying training 1, generation 0, generation 1");
  for (const [replay, field] of [
    [{ recording, example: 2 }, "examples[0].replay"],
    [{ recording: "routes-abc", example: 0 }, "examples[0].replay"],
    [{ recording: "../x", example: 0 }, "examples[0].replay.recording"],
  ] as const) {
    const error = await refused(thaw.steps.forwardBackward({ run, examples: [{ ...examples[0], replay }] }));
    assert.equal([error.code, problemsOf(error).fields.map((one) => one.field)], [INVALID_ARGUMENT, [field]]);
  }
  const ofModel = thaw.models.generate({ name: "models/m", inputs: ["a"], recordRoutes: true });
  const error = await refused(ofModel[Symbol.asyncIterator]().next());
  assert.equal(
    problemsOf(error).fields.map(({ field }) => field),
    ["record_routes"],
  );
  await thaw.runs.cancelRun({ name: run });
  await eventsUntil(thaw, run, reaches(RunState.CANCELLED));
  const off = thaw.models.generate({ name: run, inputs: ["a"], recordRoutes: true });
  assert.is((await refused(off[Symbol.asyncIterator]().next())).code, FAILED_PRECONDITION);
});

scenario("a repeated request adds nothing, and takes no second step", {}, async ({ thaw, workers }) => {
  const batch = { run, examples, requestId: "batch" };
  const [first, again] = [await thaw.steps.forwardBackward(batch), await thaw.steps.forwardBackward(batch)];
  assert.equal(again, first);
  const steps = [];
  for (let i = 0; i < 2; i++) steps.push(await thaw.steps.optimStep({ run, requestId: "step" }));
  assert.equal(steps[1], steps[0]);
  assert.equal(
    workers.engines[0].calls.filter((call) => /^(forward|optim)/.test(call)),
    ["forwardBackward 1 by undefined", "optimStep undefined"],
  );
});

scenario("what does not fit how the run stands is refused, and changes nothing", {}, async ({ thaw }) => {
  const code = async (call: Promise<unknown>) => (await refused(call)).code;
  assert.match((await refused(thaw.steps.optimStep({ run }))).message, /no gradients/);
  await thaw.steps.forwardBackward({ run, examples });
  const wrongStep = await refused(thaw.steps.forwardBackward({ run, examples, step: 1n }));
  assert.match(wrongStep.message, /is at step 0, not at 1/);
  assert.match((await refused(thaw.steps.optimStep({ run, batches: 2n }))).message, /gradients of 1 batches, not of 2/);
  assert.equal(
    [wrongStep.code, await code(thaw.steps.optimStep({ run, step: 9n }))],
    [FAILED_PRECONDITION, FAILED_PRECONDITION],
  );
  assert.is((await thaw.steps.forwardBackward({ run, examples })).batches, 2n);

  const bad = await refused(
    thaw.steps.forwardBackward({
      run: "runs/R",
      examples: [{}, { input: "a" }, { inputIds: [1] }, { input: "a", target: "b", inputIds: [1], targetIds: [1] }],
      targetTokens: -1n,
      step: -1n,
    }),
  );
  assert.is(bad.code, INVALID_ARGUMENT);
  const fields = problemsOf(bad).fields.map(({ field }) => field);
  assert.equal(fields.sort(), [...[0, 1, 2, 3].map((i) => `examples[${i}]`), "run", "step", "target_tokens"]);
  const rate = await refused(thaw.steps.optimStep({ run, learningRate: Number.NaN, batches: -1n }));
  assert.equal(
    problemsOf(rate)
      .fields.map(({ field }) => field)
      .sort(),
    ["batches", "learning_rate"],
  );
  assert.is(await code(thaw.steps.forwardBackward({ run, examples: [] })), INVALID_ARGUMENT);
  assert.is(await code(thaw.steps.optimStep({ run: "runs/none" })), status.NOT_FOUND);
  assert.is((await thaw.steps.optimStep({ run, batches: 2n })).metrics?.step, 1n);
});

scenario(
  "a run that steps by itself is not driven, nor one that is off the GPU, which comes back paused",
  { engine: () => ({ beforeStep: () => delay(5) }) },
  async ({ thaw }) => {
    await thaw.steps.forwardBackward({ run, examples });
    await thaw.steps.optimStep({ run });
    await thaw.runs.createRun({ runId: "h", spec: { ...SPEC, steps: 1000n }, priority: Priority.HIGH });
    await eventsUntil(thaw, "runs/h", reaches(RUNNING));
    assert.match((await refused(thaw.steps.optimStep({ run: "runs/h" }))).message, /RUNNING; this needs PAUSED/);
    const off = await refused(thaw.steps.forwardBackward({ run, examples }));
    assert.equal(
      [off.code, /not on the GPU; ResumeRun with stay_paused/.test(off.message)],
      [FAILED_PRECONDITION, true],
    );
    assert.is((await thaw.runs.resumeRun({ name: run, stayPaused: true })).run?.state, QUEUED);
    const { revision } = (await thaw.runs.getRun({ name: run })).run!;
    await thaw.runs.cancelRun({ name: "runs/h" });
    const told = (await eventsUntil(thaw, run, reaches(PAUSED), revision)).map(describeEvent);
    assert.equal(told, ["STARTING", "PAUSED"]);
    assert.is((await thaw.runs.resumeRun({ name: run, stayPaused: true })).run?.state, PAUSED, "it is there already");
    assert.is((await thaw.steps.forwardBackward({ run, examples })).step, 1n, "the step was kept");
  },
);

for (const [what, drivenError, code, state] of [
  ["a mistake in a batch", new InputError([{ field: "", message: "examples[0]: no" }]), INVALID_ARGUMENT, PAUSED],
  ["a fault in the middle", new Error("kernel"), INTERNAL, RunState.FAILED],
] as const) {
  scenario(`${what} leaves the run ${stateName(state)}`, { engine: () => ({ drivenError }) }, async ({ thaw }) => {
    assert.is((await refused(thaw.steps.forwardBackward({ run, examples }))).code, code);
    if (state !== PAUSED) await eventsUntil(thaw, run, reaches(state));
    assert.is((await thaw.runs.getRun({ name: run })).run?.state, state);
  });
}

test.run();
