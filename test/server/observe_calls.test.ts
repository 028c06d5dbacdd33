// What an operator sees of calls and runs: entries of the log with their ids, and the figures that Prometheus scrapes.

import { tmpdir } from "node:os";
import { setTimeout as delay } from "node:timers/promises";
import { create } from "@bufbuild/protobuf";
import { Client, credentials, Metadata, status } from "@grpc/grpc-js";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { problemsOf } from "../../clients/typescript/index.ts";
import { RunEventSchema } from "../../proto/gen/thaw/v1/event_pb.ts";
import { Preset, Stack } from "../../proto/gen/thaw/v1/group_pb.ts";
import { AssignmentSliceSchema } from "../../proto/gen/thaw/v1/routing_pb.ts";
import { RunService } from "../../proto/gen/thaw/v1/run_service_pb.ts";
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import { methodDefinition } from "../../proto/rpc/definition.ts";
import type { Gpu } from "../../src/server/gpu/supervisor.ts";
import { createLog, type Fields } from "../../src/server/log.ts";
import { serveMetrics } from "../../src/server/observe/endpoint.ts";
import { createMetrics } from "../../src/server/observe/metrics.ts";
import { createRouteHub } from "../../src/server/routing/hub.ts";
import { loadImbalance } from "../../src/server/routing/summary.ts";
import { eventsUntil, reaches, refused, testServer, withInputs } from "../support/thaw_server.ts";

const test = suite("observe calls");

interface Entry {
  readonly level: string;
  readonly message: string;
  readonly fields: Fields;
}

/** A unary call by hand: its code and its trailing metadata. */
function called(address: string, name: string, requestId?: string) {
  const method = RunService.method.getRun;
  const { path, requestSerialize, responseDeserialize } = methodDefinition(method);
  const channel = new Client(address, credentials.createInsecure());
  const metadata = new Metadata();
  if (requestId !== undefined) metadata.set("x-request-id", requestId);
  return new Promise<{ code: number; requestId: unknown }>((resolve) => {
    const request = create(method.input, { name });
    const call = channel.makeUnaryRequest(path, requestSerialize, responseDeserialize, request, metadata, () => {});
    call.on("status", ({ code, metadata }) => {
      channel.close();
      resolve({ code, requestId: metadata.get("x-request-id")[0] });
    });
  });
}

/** Samples of a scrape by series, for instance `thaw_runs{state="QUEUED"}`. */
function samples(text: string): Map<string, number> {
  const lines = text.split("\n").filter((line) => line !== "" && !line.startsWith("#"));
  return new Map(
    lines.map((line) => {
      const at = line.lastIndexOf(" ");
      return [line.slice(0, at), Number(line.slice(at + 1))];
    }),
  );
}

test("a call's id comes back and is in the log with its run; strange ids are replaced", async () => {
  const entries: Entry[] = [];
  const server = await testServer({ log: (level, message, fields = {}) => entries.push({ level, message, fields }) });
  try {
    await withInputs(server.thaw);
    const spec = { model: "models/m", dataset: "datasets/d", steps: 3n };
    await server.thaw.runs.createRun({ runId: "r", spec });
    await eventsUntil(server.thaw, "runs/r", reaches(RunState.SUCCEEDED));

    assert.equal(await called(server.address, "runs/r", "job-7:a.b"), { code: status.OK, requestId: "job-7:a.b" });
    const missing = await called(server.address, "runs/none", "x1");
    assert.equal(missing, { code: status.NOT_FOUND, requestId: "x1" });
    for (const strange of [undefined, "a b", "x".repeat(129)]) {
      assert.match(String((await called(server.address, "runs/r", strange)).requestId), /^[0-9a-f-]{36}$/);
    }
    const of = (method: string) => entries.filter(({ message }) => message === `thaw.v1.RunService/${method}`);
    const [read, refusal] = of("GetRun");
    assert.equal([read.level, read.fields.code, read.fields.run], ["debug", "OK", "runs/r"]);
    assert.is(read.fields.request_id, "job-7:a.b");
    assert.equal([refusal.level, refusal.fields.code, refusal.fields.run], ["info", "NOT_FOUND", "runs/none"]);
    const [created] = of("CreateRun");
    assert.equal([created.level, created.fields.code, created.fields.run], ["info", "OK", "runs/r"]);
    assert.ok(Number(created.fields.ms) >= 0);
    const uploaded = entries.find(({ message }) => message === "thaw.v1.DatasetService/UploadDataset");
    assert.equal([uploaded?.level, uploaded?.fields.code], ["info", "OK"], "a stream that changes something");
    const [watched] = of("WatchRun");
    assert.equal([watched.level, watched.fields.run], ["debug", "runs/r"]);
  } finally {
    await server.stop();
  }
});

test("a fault names the request whose log entry has the rest", async () => {
  const entries: Entry[] = [];
  const setTrainableError = new Error("secret thing in /some/path");
  const server = await testServer({
    engine: () => ({ setTrainableError, beforeStep: () => delay(5) }),
    log: (level, message, fields = {}) => entries.push({ level, message, fields }),
  });
  try {
    await withInputs(server.thaw);
    const spec = { model: "models/m", dataset: "datasets/d", steps: 100_000n };
    await server.thaw.runs.createRun({ runId: "r", spec });
    await eventsUntil(server.thaw, "runs/r", (event) => event.event.case === "metrics");
    const plan = { selection: { preset: Preset.ALL } };
    const error = await refused(server.thaw.groups.setTrainable({ name: "runs/r", plan }));
    const { code, requestId, message } = problemsOf(error);
    assert.is(code, "INTERNAL");
    assert.not.match(message, /secret|path/);
    const told = entries.filter(({ fields }) => fields.request_id === requestId);
    assert.equal(
      told.map(({ level }) => level),
      ["error", "error"],
      "what was thrown, and the call",
    );
    assert.match(told.map((entry) => entry.message).join(), /secret thing/);
  } finally {
    await server.stop();
  }
});

test("entries are lines of text or of JSON, above a level, without this machine's folders", () => {
  const lines: string[] = [];
  const hidden = [
    ["/srv", "<srv>"],
    ["/srv/data", "<data>"],
  ] as const;
  const text = createLog({ level: "info", format: "text", hidden }, (line) => void lines.push(line));
  text("debug", "unsaid");
  text("warning", "no /srv/data/x\nsecond\n", { run: "runs/r", step: 3, none: undefined });
  assert.match(lines[0], /^\d{4}-\d\d-\d\dT[\d:.]+Z warning no <data>\/x\n {2}second run=runs\/r step=3\n$/);
  const json = createLog({ level: "debug", format: "json", hidden }, (line) => void lines.push(line));
  json("debug", 'said "so"\nin /srv', { request_id: "q" });
  assert.is(lines.length, 2);
  const { time, ...rest } = JSON.parse(lines[1]);
  assert.ok(Date.parse(time) > 0);
  assert.equal(rest, { level: "debug", message: 'said "so"\nin <srv>', request_id: "q" });
});

test("a scrape has runs, steps, calls and watches", async () => {
  let go = (): void => {};
  const wait = new Promise<void>((resolve) => {
    go = resolve;
  });
  const server = await testServer({ engine: () => ({ beforeStep: (step) => (step === 40 ? wait : undefined) }) });
  try {
    await withInputs(server.thaw);
    const spec = { model: "models/m", dataset: "datasets/d", steps: 40n };
    const paused = { model: "models/m", dataset: "datasets/d", steps: 1n };
    await server.thaw.runs.createRun({ runId: "r", spec });
    await server.thaw.runs.createRun({ runId: "q", spec: paused });
    await refused(server.thaw.runs.getRun({ name: "runs/none" }));
    const watching = eventsUntil(server.thaw, "runs/r", reaches(RunState.SUCCEEDED));
    watching.catch(() => {}); // Where the test fails before it is waited for.
    await eventsUntil(server.thaw, "runs/r", (event) => event.step === 39n);
    // The watch that was left a moment ago may still be on its way out.
    let now = samples(await server.scrape());
    for (let tries = 0; now.get("thaw_watchers") !== 1 && tries < 200; tries++) {
      await delay(25);
      now = samples(await server.scrape());
    }
    const value = (series: string): number => now.get(series) ?? Number.NaN;
    assert.equal([value('thaw_runs{state="RUNNING"}'), value('thaw_runs{state="QUEUED"}')], [1, 1]);
    assert.is(value("thaw_step_duration_seconds_count"), 39);
    assert.is(value("thaw_step_duration_seconds_sum"), 39 * 0.5, "the fake trainer's steps take half a second");
    assert.is(value("thaw_trained_tokens_total"), 39 * 8);
    assert.is(value('thaw_run_step{run="runs/r"}'), 39);
    assert.is(value('thaw_run_tokens_per_second{run="runs/r"}'), 16);
    assert.is(value("thaw_gpu_bytes"), 300);
    assert.equal([value("thaw_gpu_up"), value("thaw_gpu_process_starts_total")], [1, 1]);
    assert.is(value("thaw_watchers"), 1);
    const call = (method: string, code: string) =>
      value(`thaw_rpc_duration_seconds_count{method="thaw.v1.RunService/${method}",code="${code}"}`);
    assert.equal([call("CreateRun", "OK"), call("GetRun", "NOT_FOUND")], [2, 1]);
    assert.is(value('thaw_rpc_in_progress{method="thaw.v1.RunService/WatchRun"}'), 1);
    assert.ok(value("thaw_data_free_bytes") > 0);
    go();
    await watching;
    await eventsUntil(server.thaw, "runs/q", reaches(RunState.SUCCEEDED));
    // A run leaves the GPU a moment after its log has told its end.
    let after = samples(await server.scrape());
    for (let tries = 0; after.get("thaw_gpu_bytes") !== 0 && tries < 200; tries++) {
      await delay(25);
      after = samples(await server.scrape());
    }
    assert.is(after.get('thaw_runs{state="SUCCEEDED"}'), 2);
    assert.is(after.get('thaw_run_step{run="runs/r"}'), undefined, "a run that left the GPU has no series");
    assert.is(after.get("thaw_gpu_bytes"), 0);
  } finally {
    go();
    await server.stop();
  }
});

test("each layer of the run on the GPU has its imbalance, until another run is there", async () => {
  const metrics = createMetrics();
  const stepped = (step: bigint, layers: { stack: Stack; layer: number; load: number[] }[]) =>
    create(RunEventSchema, { event: { case: "metrics", value: { step, layers } } });
  const even = { stack: Stack.ENCODER, layer: 1, load: [0.5, 0.5] };
  const uneven = { stack: Stack.DECODER, layer: 3, load: [0.75, 0.25] };
  metrics.written("runs/a", stepped(1n, [even, uneven]));
  const active = (name: string) => ({
    registry: { countRuns: async () => new Map() },
    runs: { active: [{ name, kernels: [], allocatedBytes: 1n }] },
    gpu: { hello: undefined, starts: 1 },
    runLog: { watchers: 0 },
    routes: { counts: { subscribers: 0, matched: 0, dropped: 0 } },
    dataDirectory: tmpdir(),
    version: "0",
  });
  const ofLayers = async (name: string) =>
    [...samples(await metrics.scrape(active(name)))].filter(([series]) => series.startsWith("thaw_run_load"));
  assert.equal(await ofLayers("runs/a"), [
    ['thaw_run_load_imbalance{run="runs/a",stack="encoder",layer="1"}', 1],
    ['thaw_run_load_imbalance{run="runs/a",stack="decoder",layer="3"}', 1.5],
  ]);
  assert.equal(await ofLayers("runs/b"), [], "it has not stepped yet");
  metrics.written("runs/b", stepped(1n, [even]));
  assert.equal(await ofLayers("runs/b"), [['thaw_run_load_imbalance{run="runs/b",stack="encoder",layer="1"}', 1]]);
});

test("subscriptions, what they matched and what they lost are counted beyond their end", async () => {
  const limits = { maxAssignmentSubscribers: 2, assignmentBufferMessages: 1 };
  const noGpu = { request: () => Promise.reject(new Error("the run is not open")) } as unknown as Gpu;
  const hub = createRouteHub(
    noGpu,
    limits,
    () => false,
    () => undefined,
  );
  const subscription = await hub.subscribe("runs/r", { includeTokenIds: false, includeGates: false });
  const slice = create(AssignmentSliceSchema, { topK: 1, expertIdBytes: 1, tokenCount: 1n });
  for (let i = 0; i < 3; i++) hub.publish("runs/r", slice);
  assert.equal(hub.counts, { subscribers: 1, matched: 3, dropped: 2 });
  subscription.close();
  assert.equal(hub.counts, { subscribers: 0, matched: 3, dropped: 2 });
});

test("calls that are turned away are counted by code", async () => {
  const server = await testServer({ flags: ["--tokens", "on"] });
  try {
    for (let i = 0; i < 2; i++) await refused(server.thaw.system.getSystem({}));
    const now = samples(await server.scrape());
    assert.is(now.get('thaw_rpc_refused_total{code="UNAUTHENTICATED"}'), 2);
  } finally {
    await server.stop();
  }
});

test("imbalance is 1 for an even load and the number of experts for one that has it all", () => {
  assert.is(loadImbalance([0.25, 0.25, 0.25, 0.25]), 1);
  assert.is(loadImbalance([0, 1, 0, 0]), 4);
  assert.is(loadImbalance([]), 0);
});

test("the endpoint answers GET /metrics on loopback and nothing else", async () => {
  let broken = false;
  const { contentType } = createMetrics();
  const endpoint = await serveMetrics(0, contentType, async () => {
    if (broken) throw new Error("a secret");
    return "thaw_gpu_up 1\n";
  });
  const at = `http://127.0.0.1:${endpoint.port}`;
  try {
    const good = await fetch(`${at}/metrics`);
    assert.equal([good.status, await good.text()], [200, "thaw_gpu_up 1\n"]);
    assert.match(good.headers.get("content-type") ?? "", /^text\/plain; version=0\.0\.4/);
    assert.is((await fetch(`${at}/metrics`, { method: "POST" })).status, 404);
    assert.is((await fetch(`${at}/other`)).status, 404);
    broken = true;
    const bad = await fetch(`${at}/metrics`);
    assert.is(bad.status, 503);
    assert.not.match(await bad.text(), /secret/);
    const taken = await serveMetrics(endpoint.port, contentType, async () => "").catch((error) => error.message);
    assert.match(taken, /^metrics: 127\.0\.0\.1:\d+ cannot be listened on \(EADDRINUSE\)$/);
  } finally {
    await endpoint.stop();
  }
});

test.run();
