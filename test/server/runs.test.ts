// The life of runs over gRPC, with a worker that trains nothing: states, queue, commands, the watch log, and what happens
// when the GPU process or the server ends.

import { setTimeout as delay } from "node:timers/promises";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import { status } from "@grpc/grpc-js";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { problemsOf } from "../../clients/typescript/index.ts";
import { Preset } from "../../proto/gen/thaw/v1/group_pb.ts";
import { NonFinitePolicy } from "../../proto/gen/thaw/v1/run_pb.ts";
import type { SteerRunResponse } from "../../proto/gen/thaw/v1/run_service_pb.ts";
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import type { FakeEngineOptions } from "../support/fake_engine.ts";
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

const { QUEUED, RUNNING, PAUSING, PAUSED, CANCELLED, SUCCEEDED, FAILED } = RunState;
const SPEC = { model: "models/m", dataset: "datasets/d", steps: 4n };
/** Steps slow enough to be in the middle of something. */
const slow = (): FakeEngineOptions => ({ beforeStep: () => delay(10) });

const test = suite("runs");
function scenario(name: string, options: TestServerOptions, body: (server: TestServer) => Promise<unknown>) {
  test(name, async () => {
    const server = await testServer(options);
    let last: TestServer | undefined;
    try {
      await withInputs(server.thaw);
      last = (await body(server)) as TestServer | undefined;
    } finally {
      await (last ?? server).stop();
    }
  });
}

/** States, metrics, checkpoints and the reasons of warnings. */
async function told(thaw: TestServer["thaw"], run: string, end: RunState): Promise<string[]> {
  const events = await eventsUntil(thaw, run, reaches(end));
  return events.map((event) => (event.event.case === "warning" ? event.event.value.reason : describeEvent(event)));
}

/** Batches that no run of it gets over. */
const poisoned = (...batches: number[]): TestServerOptions => ({
  engine: () => ({ loss: (_, batch) => (batches.includes(batch) ? Number.NaN : 1) }),
});
const ROLLBACK = { ...SPEC, nonFinite: NonFinitePolicy.ROLLBACK, checkpoints: { everySteps: 2n } };

const first = <T>(stream: AsyncIterable<T>) => stream[Symbol.asyncIterator]().next();

scenario("a run goes from the queue to its end, and its log tells all of it", {}, async ({ thaw }) => {
  const { run } = await thaw.runs.createRun({ runId: "r", spec: { ...SPEC, checkpoints: { everySteps: 2n } } });
  assert.is(run?.state, QUEUED);
  assert.is(run?.spec?.batchSize, 16n, "defaults are filled in");
  const events = await eventsUntil(thaw, "runs/r", reaches(SUCCEEDED));
  assert.equal(events.map(describeEvent), [
    "QUEUED",
    "STARTING",
    "data 0",
    "RUNNING",
    "step 1",
    "step 2",
    "checkpoint 2",
    "step 3",
    "step 4",
    "checkpoint 4",
    "evaluation 4",
    "SUCCEEDED",
  ]);
  assert.equal(
    events.map((event) => event.revision),
    events.map((_, index) => BigInt(index + 1)),
    "revisions have no gap",
  );
  const ended = (await thaw.runs.getRun({ name: "runs/r" })).run!;
  assert.is(ended.step, 4n);
  assert.is(ended.revision, 12n);
  assert.is(ended.latestCheckpoint, "runs/r/checkpoints/step-4");
  assert.ok(ended.startTime && ended.endTime && ended.cost && ended.data);
  const rest = [];
  for await (const { reply } of thaw.runs.watchRun({ name: "runs/r", afterRevision: 10n })) rest.push(reply);
  assert.is(rest.length, 1, "a watch of an ended run ends");
  const beyond = await refused(first(thaw.runs.watchRun({ name: "runs/r", afterRevision: 13n })));
  assert.is(beyond.code, status.OUT_OF_RANGE);
});

scenario(
  "a run that diverges goes back to its checkpoint and passes over what it has seen",
  poisoned(3, 5),
  async (server) => {
    const { thaw } = server;
    await thaw.runs.createRun({ runId: "r", spec: ROLLBACK });
    assert.equal(await told(thaw, "runs/r", SUCCEEDED), [
      "QUEUED",
      "STARTING",
      "data 0",
      "RUNNING",
      "step 1",
      "step 2",
      "checkpoint 2",
      "step 3", // batch 3
      "NON_FINITE_ROLLED_BACK",
      "STARTING",
      "RUNNING",
      "step 3", // batch 4
      "step 4", // batch 5
      "NON_FINITE_ROLLED_BACK",
      "STARTING",
      "RUNNING",
      "step 3", // batch 6
      "step 4",
      "checkpoint 4",
      "evaluation 4",
      "SUCCEEDED",
    ]);
    const events = await eventsUntil(thaw, "runs/r", reaches(SUCCEEDED));
    const warning = events.find((event) => event.event.case === "warning")!;
    assert.is(
      warning.event.case === "warning" && warning.event.value.message,
      "training diverged at step 3: the loss is NaN, the total loss is NaN; the run goes on from " +
        "runs/r/checkpoints/step-2, step 2, and the batches it has seen since are passed over",
    );
    assert.is(warning.step, 2n);
    const [engine] = server.workers.engines;
    assert.equal(
      engine.configs.map((config) => config.passedOverSteps),
      [0, 1, 3],
    );
    const { run } = await thaw.runs.getRun({ name: "runs/r" });
    assert.equal([run?.step, run?.restarts, server.workers.engines.length], [4n, 0n, 1], "no process was to blame");
  },
);

scenario("what was passed over before a checkpoint stays passed over after it", poisoned(1, 4), async (server) => {
  const { thaw } = server;
  await thaw.runs.createRun({ runId: "r", spec: ROLLBACK });
  const events = await told(thaw, "runs/r", SUCCEEDED);
  assert.equal(
    events.filter((event) => /^(step|checkpoint|NON)/.test(event)),
    // Batches 1; 2, 3; 4; 5, 6.
    ["step 1", "NON_FINITE_ROLLED_BACK", "step 1", "step 2", "checkpoint 2"].concat([
      "step 3",
      "NON_FINITE_ROLLED_BACK",
      "step 3",
      "step 4",
      "checkpoint 4",
    ]),
  );
  // The second time counts from the checkpoint, which remembers the first.
  assert.equal(
    server.workers.engines[0].configs.map((config) => config.passedOverSteps),
    [0, 1, 1],
  );
});

scenario("a run that goes back to one place and gets nowhere fails", poisoned(3, 4, 5, 6, 7, 8), async ({ thaw }) => {
  await thaw.runs.createRun({ runId: "r", spec: ROLLBACK });
  const events = await told(thaw, "runs/r", FAILED);
  assert.is(events.filter((event) => event === "NON_FINITE_ROLLED_BACK").length, 3);
  const { run } = await thaw.runs.getRun({ name: "runs/r" });
  assert.is(run?.error?.code, status.INVALID_ARGUMENT);
  assert.match(
    run?.error?.message ?? "",
    /diverged at step 3: .*NaN; the run has gone back to runs\/r\/checkpoints\/step-2 3 times; a lower learning rate/,
  );
});

let letGo: () => void = () => {};
const held: TestServerOptions = {
  engine: () => ({
    // The first batch waits for the test, and diverges.
    beforeStep: (step) => (step === 1 ? new Promise((resolve) => (letGo = resolve)) : undefined),
    loss: (_, batch) => (batch === 1 ? Number.NaN : 1),
  }),
};
scenario("a run that diverges while it is to pause goes back and is paused there", held, async ({ thaw, workers }) => {
  await thaw.runs.createRun({ runId: "r", spec: ROLLBACK });
  await eventsUntil(thaw, "runs/r", reaches(RUNNING));
  while (!workers.engines[0].calls.includes("step 1")) await delay(5);
  const pausing = thaw.runs.pauseRun({ name: "runs/r" });
  await eventsUntil(thaw, "runs/r", reaches(PAUSING));
  letGo();
  assert.is((await pausing).run?.name, "runs/r");
  const events = await told(thaw, "runs/r", PAUSED);
  assert.ok(events.includes("NON_FINITE_ROLLED_BACK"), events.join());
  assert.is((await thaw.runs.getRun({ name: "runs/r" })).run?.step, 0n);
  const resumed = thaw.runs.resumeRun({ name: "runs/r" });
  while (workers.engines[0].calls.filter((call) => call === "step 1").length < 2) await delay(5);
  letGo();
  assert.is((await resumed).run?.state, RUNNING);
  await eventsUntil(thaw, "runs/r", reaches(SUCCEEDED));
});

scenario("readers from anywhere in a log get the rest of it, each event once", { engine: slow }, async ({ thaw }) => {
  await thaw.runs.createRun({ runId: "r", spec: { ...SPEC, steps: 60n } });
  const readers: Promise<bigint[]>[] = [];
  const read = async (afterRevision: bigint): Promise<bigint[]> => {
    const seen: bigint[] = [];
    for await (const { reply } of thaw.runs.watchRun({ name: "runs/r", afterRevision })) {
      if (reply.case === "events") seen.push(...reply.value.events.map(({ revision }) => revision));
    }
    return seen.map((revision) => revision - afterRevision);
  };
  for await (const { reply } of thaw.runs.watchRun({ name: "runs/r" })) {
    if (reply.case !== "events") continue;
    const newest = reply.value.events.at(-1)!.revision;
    for (const after of [0n, newest / 2n, newest, newest]) readers.push(read(after));
  }
  assert.ok(readers.length > 40, `${readers.length} readers`);
  for (const seen of await Promise.all(readers)) {
    assert.equal(
      seen,
      seen.map((_, i) => BigInt(i + 1)),
    );
  }
  const { run } = await thaw.runs.getRun({ name: "runs/r" });
  assert.is((await readers[0]).length, Number(run?.revision), "to the end");
});

scenario("runs wait for the GPU in the order in which they were created", { engine: slow }, async ({ thaw }) => {
  await thaw.runs.createRun({ runId: "a", spec: { ...SPEC, steps: 30n } });
  await eventsUntil(thaw, "runs/a", reaches(RUNNING));
  for (const runId of ["b", "c"]) await thaw.runs.createRun({ runId, spec: SPEC });
  assert.is((await thaw.runs.getRun({ name: "runs/c" })).run?.queuePosition, 1n);
  const cancelled = await thaw.runs.cancelRun({ name: "runs/b" });
  assert.is(cancelled.run?.state, CANCELLED);
  const start = (await eventsUntil(thaw, "runs/c", reaches(RUNNING))).at(-1)!.time!;
  const end = (await eventsUntil(thaw, "runs/a", reaches(SUCCEEDED))).at(-1)!.time!;
  assert.ok(timestampMs(start) >= timestampMs(end), "c starts when a has ended");
  const { runs } = await thaw.runs.listRuns({ pageSize: 2 });
  assert.equal(
    runs.map((run) => run.name),
    ["runs/c", "runs/b"],
  );
});

scenario("a run pauses at a step boundary, keeps a checkpoint, and resumes", { engine: slow }, async ({ thaw }) => {
  await thaw.runs.createRun({ runId: "r", spec: { ...SPEC, steps: 1000n } });
  await eventsUntil(thaw, "runs/r", (event) => event.event.case === "metrics");
  const paused = await thaw.runs.pauseRun({ name: "runs/r" });
  assert.is(paused.run?.state, PAUSED);
  assert.is(paused.run?.step, paused.effectiveStep);
  const again = await refused(thaw.runs.pauseRun({ name: "runs/r" }));
  assert.is(again.code, status.FAILED_PRECONDITION);
  assert.match(again.message, /runs\/r is PAUSED; this needs QUEUED, STARTING, RUNNING/);
  const kept = await eventsUntil(thaw, "runs/r", (event) => event.event.case === "checkpoint");
  assert.is(kept.at(-1)?.step, paused.effectiveStep);
  const resumed = await thaw.runs.resumeRun({ name: "runs/r" });
  assert.is(resumed.run?.state, RUNNING);
  assert.is(resumed.effectiveStep, paused.effectiveStep);
  const next = await eventsUntil(thaw, "runs/r", (event) => event.step > paused.effectiveStep);
  assert.is(next.at(-1)?.step, paused.effectiveStep + 1n);
  const cancelled = await thaw.runs.cancelRun({ name: "runs/r" });
  await eventsUntil(thaw, "runs/r", reaches(CANCELLED));
  const { run } = await thaw.runs.getRun({ name: "runs/r" });
  assert.is(run?.step, cancelled.effectiveStep);
  assert.match(run?.latestCheckpoint ?? "", new RegExp(`step-${cancelled.effectiveStep}$`));
});

scenario("a run paused before it starts starts when it is resumed", { engine: slow }, async ({ thaw }) => {
  await thaw.runs.createRun({ runId: "a", spec: SPEC });
  await thaw.runs.createRun({ runId: "b", spec: SPEC });
  assert.is((await thaw.runs.pauseRun({ name: "runs/b" })).run?.state, PAUSED);
  await eventsUntil(thaw, "runs/a", reaches(SUCCEEDED));
  assert.is((await thaw.runs.getRun({ name: "runs/b" })).run?.state, PAUSED);
  await thaw.runs.resumeRun({ name: "runs/b" });
  await eventsUntil(thaw, "runs/b", reaches(SUCCEEDED));
});

scenario("StartRun creates and watches; dropping it stops nothing", { engine: slow }, async ({ thaw }) => {
  for await (const { reply } of thaw.runs.startRun({ create: { runId: "r", spec: SPEC } })) {
    if (reply.case === "created") assert.is(reply.value.run?.name, "runs/r");
    else break;
  }
  await eventsUntil(thaw, "runs/r", reaches(SUCCEEDED));
});

scenario("SteerRun carries out commands in order between events", { engine: slow }, async ({ thaw }) => {
  await thaw.runs.createRun({ runId: "r", spec: { ...SPEC, steps: 1000n } });
  await eventsUntil(thaw, "runs/r", (event) => event.event.case === "metrics");
  const answers: SteerRunResponse["reply"][] = [];
  const plan = { selection: { preset: Preset.FFN } };
  async function* commands() {
    yield { command: { case: "watch" as const, value: { name: "runs/r" } } };
    yield { command: { case: "setTrainable" as const, value: { plan } } };
    yield { command: { case: "pause" as const, value: { name: "runs/other" } } };
    yield { command: { case: "saveCheckpoint" as const, value: { requestId: "save" } } };
    yield { command: { case: "cancel" as const, value: {} } };
  }
  for await (const { reply } of thaw.runs.steerRun(commands())) answers.push(reply);
  const acknowledged = answers.flatMap((reply) => (reply.case === "acknowledgement" ? [reply.value] : []));
  assert.equal(
    acknowledged.map(({ commandNumber, result }) => `${commandNumber} ${result.case}`),
    ["1 setTrainable", "2 error", "3 saveCheckpoint", "4 cancel"],
  );
  assert.is(acknowledged[2].requestId, "save");
  const events = answers.flatMap((reply) => (reply.case === "events" ? reply.value.events : []));
  assert.is(describeEvent(events.at(-1)!), "CANCELLED");
  const changed = events.find((event) => event.event.case === "trainable");
  assert.is(changed?.step, acknowledged[0].effectiveStep);
});

scenario("a freeze plan set in the queue is the run's first", { engine: slow }, async ({ thaw, workers }) => {
  await thaw.runs.createRun({ runId: "a", spec: SPEC });
  await thaw.runs.createRun({ runId: "b", spec: SPEC });
  await thaw.groups.setTrainable({ name: "runs/b", plan: { selection: { preset: Preset.MOE } } });
  const none = { selection: { add: [{ layers: { first: 90, last: 91 } }] } };
  const error = await refused(thaw.groups.setTrainable({ name: "runs/b", plan: none }));
  assert.is(error.code, status.INVALID_ARGUMENT);
  assert.is(problemsOf(error).fields[0]?.field, "plan.selection.add[0]");
  await eventsUntil(thaw, "runs/b", reaches(SUCCEEDED));
  assert.is(workers.engines[0].configs[1].trainable.selection.preset, "moe");
  const now = await thaw.groups.getTrainable({ name: "runs/b" });
  assert.is(now.plan?.selection?.preset, Preset.MOE);
  const ended = await refused(
    thaw.groups.setTrainable({ name: "runs/b", plan: { selection: { preset: Preset.ALL } } }),
  );
  assert.is(ended.code, status.FAILED_PRECONDITION);
});

scenario("everything wrong with a run is said at once, and nothing is created", {}, async ({ thaw }) => {
  const spec = {
    model: "models/../m",
    dataset: "datasets/d",
    steps: 0n,
    seed: -1n,
    dropout: 1,
    optimizer: { learningRate: Number.NaN },
    evaluation: { splits: ["A"] },
  };
  const error = await refused(thaw.runs.createRun({ runId: "-", spec, labels: { "": "x" } }));
  const fields = problemsOf(error).fields.map(({ field }) => field);
  assert.equal(fields.sort(), [
    "labels",
    "run_id",
    "spec.dropout",
    "spec.evaluation.splits[0]",
    "spec.model",
    "spec.optimizer.learning_rate",
    "spec.seed",
    "spec.steps",
  ]);
  assert.is((await refused(thaw.runs.createRun({ spec: { ...SPEC, model: "models/none" } }))).code, status.NOT_FOUND);
  const priced = await thaw.runs.createRun({ spec: SPEC, validateOnly: true });
  assert.ok(priced.report?.after && priced.run?.name === "");
  assert.equal((await thaw.runs.listRuns({})).runs, []);
});

scenario("a repeated request gets the first answer, another body is refused", {}, async ({ thaw }) => {
  const request = { spec: SPEC, requestId: "one", labels: { a: "1", b: "2" } };
  const answers = await Promise.all(Array.from({ length: 10 }, () => thaw.runs.createRun(request)));
  assert.is(new Set(answers.map(({ run }) => run?.name)).size, 1);
  const reordered = await thaw.runs.createRun({ ...request, labels: { b: "2", a: "1" } });
  assert.is(reordered.run?.name, answers[0].run?.name);
  const other = await refused(thaw.runs.createRun({ ...request, displayName: "other" }));
  assert.is(other.code, status.ALREADY_EXISTS);
  const { name } = answers[0].run!;
  await eventsUntil(thaw, name, reaches(SUCCEEDED));
  const { etag } = answers[0].run!;
  const updateMask = { paths: ["display_name"] };
  const changed = await thaw.runs.updateRun({ run: { name, etag, displayName: "new" }, updateMask });
  assert.equal([changed.run?.displayName, changed.run?.labels], ["new", { a: "1", b: "2" }]);
  const stale = await refused(thaw.runs.updateRun({ run: { name, etag, displayName: "late" }, updateMask }));
  assert.is(stale.code, status.ABORTED);
  await thaw.runs.deleteRun({ name });
  assert.is((await refused(thaw.runs.getRun({ name }))).code, status.NOT_FOUND);
});

let lethal = 0;
let killNow = (): void => {};
scenario(
  "a run whose GPU process dies goes on from its newest checkpoint, under the plan in force",
  { engine: slow },
  async ({ thaw, workers }) => {
    await thaw.runs.createRun({ runId: "r", spec: { ...SPEC, steps: 60n, checkpoints: { everySteps: 5n } } });
    await eventsUntil(thaw, "runs/r", (event) => event.event.case === "checkpoint");
    await thaw.groups.setTrainable({ name: "runs/r", plan: { selection: { preset: Preset.FFN } } });
    workers.kill();
    const events = await eventsUntil(thaw, "runs/r", reaches(SUCCEEDED));
    const told = events.map(describeEvent);
    const warned = told.indexOf("GPU_PROCESS_RESTARTED");
    const from = events[warned].step;
    assert.equal(told.slice(warned, warned + 4), ["GPU_PROCESS_RESTARTED", "STARTING", `trainable ${from}`, "RUNNING"]);
    assert.is(told[warned + 4], `step ${from + 1n}`, "steps after the checkpoint are repeated");
    assert.is(from % 5n, 0n);
    assert.equal(
      events.map((event) => event.revision),
      events.map((_, index) => BigInt(index + 1)),
    );
    const { run } = await thaw.runs.getRun({ name: "runs/r" });
    assert.equal([run?.restarts, run?.step, run?.trainable?.selection?.preset], [1n, 60n, Preset.FFN]);
    assert.ok(workers.engines[1].calls.includes("openRun resumed"));
  },
);

scenario(
  "a run whose GPU process dies again and again fails, and the next one runs",
  {
    engine: () => ({
      beforeStep: (step) => {
        if (lethal > 0 && step === 2) killNow();
      },
    }),
  },
  async ({ thaw, workers }) => {
    lethal = 1;
    killNow = () => workers.kill();
    await thaw.runs.createRun({ runId: "r", spec: SPEC });
    const events = await eventsUntil(thaw, "runs/r", reaches(FAILED));
    assert.is(events.map(describeEvent).filter((told) => told === "GPU_PROCESS_RESTARTED").length, 3);
    const { run } = await thaw.runs.getRun({ name: "runs/r" });
    assert.match(run?.error?.message ?? "", /ended 4 times without a new checkpoint/);
    lethal = 0;
    await thaw.runs.createRun({ runId: "next", spec: SPEC });
    await eventsUntil(thaw, "runs/next", reaches(SUCCEEDED));
  },
);

for (const how of ["restart", "crash"] as const) {
  scenario(`logs, queue and the running run survive a ${how} of the server`, { engine: slow }, async (server) => {
    await server.thaw.runs.createRun({ runId: "r", spec: { ...SPEC, steps: 60n, checkpoints: { everySteps: 5n } } });
    await server.thaw.runs.createRun({ runId: "q", spec: SPEC, displayName: "queued" });
    const before = await eventsUntil(server.thaw, "runs/r", (event) => event.event.case === "checkpoint");
    const after = await server[how]();
    const events = await eventsUntil(after.thaw, "runs/r", reaches(SUCCEEDED));
    assert.equal(events.slice(0, before.length).map(describeEvent), before.map(describeEvent));
    const told = events.map(describeEvent);
    const warned = told.indexOf(how === "restart" ? "SERVER_STOPPED" : "SERVER_RESTARTED");
    assert.equal(told.slice(warned + 1, warned + 4), ["QUEUED", "STARTING", "RUNNING"]);
    if (how === "restart") assert.is(told[warned + 4], `step ${events[warned].step + 1n}`, "nothing is repeated");
    await eventsUntil(after.thaw, "runs/q", reaches(SUCCEEDED));
    return after;
  });
}

scenario(
  "watches and subscriptions end with UNAVAILABLE and when to come back, when the server stops",
  { engine: slow },
  async (server) => {
    await server.thaw.runs.createRun({ runId: "r", spec: { ...SPEC, steps: 1000n } });
    await server.thaw.runs.pauseRun({ name: "runs/r" });
    const { revision } = (await server.thaw.runs.getRun({ name: "runs/r" })).run!;
    let error: unknown;
    let progress = 0n;
    const watching = (async () => {
      const request = { name: "runs/r", afterRevision: 0n, progressInterval: { nanos: 100_000_000 } };
      for await (const { reply } of server.thaw.runs.watchRun(request)) {
        if (reply.case === "progress") progress = reply.value.revision;
      }
    })().catch((thrown) => {
      error = thrown;
    });
    const subscribed = (async () => {
      for await (const _ of server.thaw.routing.streamAssignments({ run: "runs/r" }));
    })().catch((thrown) => thrown);
    await delay(300);
    const next = await server.restart();
    await watching;
    assert.ok(progress >= revision, "with progress until then");
    for (const ending of [error, await subscribed]) {
      const { code, reason, retryAfterMs } = problemsOf(ending);
      assert.equal([code, reason, retryAfterMs], ["UNAVAILABLE", "STOPPING", 5000]);
    }
    assert.is((await next.thaw.runs.getRun({ name: "runs/r" })).run?.state, PAUSED);
    return next;
  },
);

scenario(
  "a stop waits for a hung GPU process no longer than it may, and the run goes on from its last checkpoint",
  {
    engine: () => ({ beforeStep: (step) => (step === 4 ? new Promise(() => {}) : undefined) }),
    flags: ["--stop-seconds", "1"],
  },
  async (server) => {
    await server.thaw.runs.createRun({ runId: "r", spec: { ...SPEC, checkpoints: { everySteps: 2n } } });
    await eventsUntil(server.thaw, "runs/r", (event) => describeEvent(event) === "step 3");
    const begun = Date.now();
    const next = await server.restart();
    assert.ok(Date.now() - begun < 10_000, "1 s, and what the rest of a stop takes");
    const stopped = await eventsUntil(next.thaw, "runs/r", (event) => describeEvent(event) === "SERVER_STOPPED");
    const warning = stopped.at(-1)!;
    assert.is(warning.step, 2n);
    assert.match(warning.event.case === "warning" ? warning.event.value.message : "", /from step 2, and later steps/);
    const again = await eventsUntil(next.thaw, "runs/r", (event) => event.event.case === "metrics", warning.revision);
    assert.is(again.at(-1)?.step, 3n);
    return next;
  },
);

test.run();
