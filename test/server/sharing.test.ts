// Runs that share a GPU, over gRPC, with a worker that trains nothing: priorities, who fits beside whom, pre-emption, and
// what never fits.

import { setTimeout as delay } from "node:timers/promises";
import { status } from "@grpc/grpc-js";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { connectThaw, problemsOf } from "../../clients/typescript/index.ts";
import { Priority } from "../../proto/gen/thaw/v1/run_pb.ts";
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import { createToken } from "../../src/server/access/tokens.ts";
import { openTokens } from "../../src/server/registry/tokens.ts";
import { registryFile } from "../../src/server/storage/layout.ts";
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

const { QUEUED, RUNNING, PAUSED, SUCCEEDED } = RunState;
const SPEC = { model: "models/m", dataset: "datasets/d", steps: 4n };
const LONG = { ...SPEC, steps: 100_000n, checkpoints: { everySteps: 0n } };
const slow = (): FakeEngineOptions => ({ beforeStep: () => delay(5) });

const test = suite("sharing");
function scenario(name: string, options: TestServerOptions, body: (server: TestServer) => Promise<unknown>) {
  test(name, async () => {
    const server = await testServer({ engine: slow, ...options });
    try {
      await withInputs(server.thaw);
      await body(server);
    } finally {
      await server.stop();
    }
  });
}

async function states({ thaw }: TestServer, ...runs: string[]): Promise<(RunState | undefined)[]> {
  return Promise.all(runs.map(async (id) => (await thaw.runs.getRun({ name: `runs/${id}` })).run?.state));
}
const running = ({ thaw }: TestServer, id: string) => eventsUntil(thaw, `runs/${id}`, reaches(RUNNING));

scenario(
  "runs share the GPU when they fit beside each other, and wait otherwise",
  { memoryBytes: 700n },
  async (server) => {
    const { thaw } = server;
    for (const runId of ["a", "b", "c"]) await thaw.runs.createRun({ runId, spec: LONG });
    for (const id of ["a", "b"]) await eventsUntil(thaw, `runs/${id}`, ({ step }) => step >= 1n);
    const { workers, activeRuns, queuedRuns } = await thaw.system.getSystem({});
    assert.equal(
      [workers[0].runs, workers[0].allocatedBytes, workers[0].memoryBytes],
      [["runs/a", "runs/b"], 600n, 700n],
    );
    assert.equal([activeRuns, queuedRuns], [2n, 1n]);
    const scraped = await server.scrape();
    assert.match(scraped, /^thaw_gpu_bytes 600$/m);
    for (const id of ["a", "b"]) assert.match(scraped, new RegExp(`^thaw_run_step\\{run="runs/${id}"\\} \\d`, "m"));
    // A paused run keeps its memory; one that has ended does not.
    await thaw.runs.pauseRun({ name: "runs/a" });
    await delay(50);
    assert.equal(await states(server, "a", "b", "c"), [PAUSED, RUNNING, QUEUED]);
    await thaw.runs.cancelRun({ name: "runs/b" });
    await running(server, "c");
    assert.match(await server.scrape(), /^thaw_gpu_bytes 600$/m);
  },
);

scenario(
  "no more runs share the GPU than the setting says",
  { memoryBytes: 9000n, flags: ["--max-runs-on-gpu", "2"] },
  async (server) => {
    for (const runId of ["a", "b", "c"]) await server.thaw.runs.createRun({ runId, spec: LONG });
    await running(server, "b");
    await delay(50);
    assert.equal(await states(server, "a", "b", "c"), [RUNNING, RUNNING, QUEUED]);
  },
);

scenario("a run of a higher priority goes before those that wait", {}, async (server) => {
  const { thaw } = server;
  await thaw.runs.createRun({ runId: "a", spec: LONG });
  await running(server, "a");
  for (const [runId, priority] of [
    ["low", Priority.LOW],
    ["normal", Priority.UNSPECIFIED],
    ["again", Priority.NORMAL],
  ] as const)
    await thaw.runs.createRun({ runId, spec: SPEC, priority });
  const positions = await Promise.all(
    ["low", "normal", "again"].map(async (id) => (await thaw.runs.getRun({ name: `runs/${id}` })).run),
  );
  assert.equal(
    positions.map((run) => [run?.queuePosition, run?.priority]),
    [
      [2n, Priority.LOW],
      [0n, Priority.NORMAL],
      [1n, Priority.NORMAL],
    ],
  );
  await thaw.runs.cancelRun({ name: "runs/a" });
  const starts = [];
  for (const id of ["normal", "again", "low"]) starts.push((await running(server, id)).at(-1)!.time!);
  const sorted = starts.toSorted((a, b) => Number(a.seconds - b.seconds) || a.nanos - b.nanos);
  assert.equal(starts, sorted);
  const unknown = await refused(thaw.runs.createRun({ spec: SPEC, priority: 9 as Priority }));
  assert.equal(
    problemsOf(unknown).fields.map(({ field }) => field),
    ["priority"],
  );
});

scenario(
  "a run that does not fit takes the place of the lowest, which goes on from where it was",
  { memoryBytes: 700n },
  async (server) => {
    const { thaw, workers } = server;
    await thaw.runs.createRun({ runId: "n", spec: LONG });
    await thaw.runs.createRun({ runId: "l", spec: { ...LONG, steps: 60n }, priority: Priority.LOW });
    await eventsUntil(thaw, "runs/l", ({ step }) => step >= 2n);
    await thaw.runs.createRun({ runId: "h", spec: SPEC, priority: Priority.HIGH });
    await eventsUntil(thaw, "runs/h", reaches(SUCCEEDED));
    const events = await eventsUntil(thaw, "runs/l", reaches(SUCCEEDED));
    const told = events.map(describeEvent);
    const at = told.indexOf("PREEMPTED");
    const { step, event } = events[at];
    assert.is(
      event.case === "warning" && event.value.message,
      "runs/h, of a higher priority, takes its place; the run goes on when there is room",
    );
    assert.equal(told.slice(at - 1, at + 5), [
      `checkpoint ${step}`,
      "PREEMPTED",
      "QUEUED",
      "STARTING",
      "RUNNING",
      `step ${step + 1n}`,
    ]);
    assert.equal(await states(server, "n"), [RUNNING]);
    assert.equal(
      (await eventsUntil(thaw, "runs/n", ({ step }) => step >= 5n)).map(describeEvent).filter((e) => e === "PREEMPTED"),
      [],
    );
    assert.ok(workers.engines[0].calls.includes("openRun resumed"));
    assert.is((await thaw.runs.getRun({ name: "runs/l" })).run?.restarts, 0n);
  },
);

scenario("a paused run that is pre-empted stays paused, and queues when it is resumed", {}, async (server) => {
  const { thaw } = server;
  await thaw.runs.createRun({ runId: "p", spec: { ...LONG, steps: 40n } });
  await running(server, "p");
  await thaw.runs.pauseRun({ name: "runs/p" });
  await thaw.runs.createRun({ runId: "h", spec: LONG, priority: Priority.HIGH });
  await running(server, "h");
  assert.equal(await states(server, "p"), [PAUSED]);
  assert.is((await thaw.runs.resumeRun({ name: "runs/p" })).run?.state, QUEUED);
  await thaw.runs.cancelRun({ name: "runs/h" });
  const told = (await eventsUntil(thaw, "runs/p", reaches(SUCCEEDED))).map(describeEvent);
  assert.is(told.filter((event) => event.startsWith("step")).length, 40, "no step was repeated");
});

scenario(
  "a run that never fits is refused when it is created, with the figures",
  { memoryBytes: 299n },
  async ({ thaw }) => {
    for (const validateOnly of [false, true]) {
      const error = await refused(thaw.runs.createRun({ spec: SPEC, validateOnly }));
      assert.is(error.code, status.RESOURCE_EXHAUSTED);
      assert.match(error.message, /needs 300 bytes of device memory, 299 are available; no batch size/);
    }
    assert.equal((await thaw.runs.listRuns({})).runs, []);
  },
);

scenario("the runs of a GPU process that dies all go on", { memoryBytes: 600n }, async (server) => {
  const { thaw, workers } = server;
  const spec = { ...SPEC, steps: 60n, checkpoints: { everySteps: 5n } };
  for (const runId of ["a", "b"]) await thaw.runs.createRun({ runId, spec });
  for (const id of ["a", "b"]) await eventsUntil(thaw, `runs/${id}`, (event) => event.event.case === "checkpoint");
  workers.kill();
  for (const id of ["a", "b"]) {
    const told = (await eventsUntil(thaw, `runs/${id}`, reaches(SUCCEEDED))).map(describeEvent);
    assert.is(told.filter((event) => event === "GPU_PROCESS_RESTARTED").length, 1, id);
  }
});

test("among runs of one priority, the token that has used the GPU less goes first", async () => {
  const server = await testServer({ engine: slow, flags: ["--tokens", "on"] });
  const store = openTokens(registryFile(server.dataDirectory));
  const [admin, busy, idle] = ["admin", "busy", "idle"].map((label) => {
    const { record, token } = createToken(store, { role: "operator", label, expireTime: undefined });
    // What a caller says of itself counts for nothing.
    const thaw = connectThaw(server.address, { token, metadata: { "x-thaw-caller": "t-someoneelse" } });
    return { id: record.id, thaw, server: { ...server, thaw } };
  });
  try {
    await withInputs(admin.thaw);
    await busy.thaw.runs.createRun({ runId: "before", spec: { ...SPEC, steps: 20n } });
    await eventsUntil(busy.thaw, "runs/before", reaches(SUCCEEDED));
    await admin.thaw.runs.createRun({ runId: "a", spec: LONG });
    await running(admin.server, "a");
    for (const [runId, { thaw, id }] of [
      ["first", busy],
      ["second", idle],
    ] as const) {
      const { run } = await thaw.runs.createRun({ runId, spec: LONG });
      assert.is(run?.owner, id);
    }
    await admin.thaw.runs.cancelRun({ name: "runs/a" });
    await running(idle.server, "second");
    assert.equal(await states(idle.server, "first", "second"), [QUEUED, RUNNING]);
  } finally {
    for (const { thaw } of [admin, busy, idle]) thaw.close();
    store.close();
    await server.stop();
  }
});

test.run();
