// What a client can make grow has a bound, and crossing it is RESOURCE_EXHAUSTED with the limit; below it, everything goes
// on. (Metadata and open calls: access.test.ts.)

import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { Client, credentials } from "@grpc/grpc-js";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { connectThaw, problemsOf } from "../../clients/typescript/index.ts";
import { connect } from "../../clients/typescript/rpc/connect.ts";
import { DatasetService, type UploadDatasetRequestSchema } from "../../proto/gen/thaw/v1/dataset_service_pb.ts";
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import { eventsUntil, reaches, refused, type TestServer, testServer, withInputs } from "../support/thaw_server.ts";

type Part = MessageInitShape<typeof UploadDatasetRequestSchema>;

const test = suite("limits");
const servers: TestServer[] = [];
test.after(async () => {
  for (const server of servers) await server.stop();
});

/** What a call that crosses a limit is told: reason and limit. */
async function crossed(call: Promise<unknown>): Promise<readonly [string, string]> {
  const { code, reason, figures, message, retryAfterMs } = problemsOf(await refused(call));
  assert.is(code, "RESOURCE_EXHAUSTED", message);
  assert.is(retryAfterMs, reason.startsWith("TOO_MANY") ? 1000 : undefined, "waiting helps where others have the room");
  assert.ok(message.includes(figures.limit), `"${message}" names the limit`);
  return [reason, figures.limit];
}

async function serverWith(...flags: string[]): Promise<TestServer> {
  const server = await testServer({ flags, engine: () => ({ beforeStep: () => delay(5) }) });
  servers.push(server);
  return server;
}

const header: Part = { part: { case: "dataset", value: { datasetId: "x" } } };
const split: Part = { part: { case: "split", value: { name: "train" } } };
const data = (bytes: number): Part => ({ part: { case: "data", value: new Uint8Array(bytes) } });
async function* parts(...all: Part[]) {
  yield* all;
}
const line = new TextEncoder().encode('{"input_ids": [5], "target_ids": [3]}\n');

test("uploads in progress, and the bytes of one", async () => {
  const { thaw, dataDirectory } = await serverWith("--max-uploads", "2", "--max-upload-bytes", "1000");
  let release = (): void => {};
  const released = new Promise<void>((resolve) => {
    release = resolve;
  });
  async function* slow(id: string) {
    yield { part: { case: "dataset" as const, value: { datasetId: id } } };
    yield split;
    await released;
    yield { part: { case: "data" as const, value: line } };
    yield { part: { case: "end" as const, value: {} } };
  }
  const held = ["a", "b"].map((id) => thaw.datasets.uploadDataset(slow(id)));
  while ((await readdir(join(dataDirectory, "tmp"))).length < 2) await delay(10);
  const other = () => thaw.models.uploadModel(parts() as never);
  assert.equal(await crossed(thaw.datasets.uploadDataset(parts(header, split))), ["TOO_MANY_UPLOADS", "2"]);
  assert.equal(await crossed(other()), ["TOO_MANY_UPLOADS", "2"]);
  release();
  await Promise.all(held);
  assert.equal(await crossed(thaw.datasets.uploadDataset(parts(header, split, data(600), data(600)))), [
    "UPLOAD_TOO_LARGE",
    "1000",
  ]);
  assert.equal(await readdir(join(dataDirectory, "tmp")), [], "nothing half-made is left");
  const { datasets } = await thaw.datasets.listDatasets({});
  assert.equal(datasets.map(({ name }) => name).sort(), ["datasets/a", "datasets/b"]);
});

test("uploads leave so much of the disk free", async () => {
  const floor = String(2 ** 52);
  const { thaw, dataDirectory } = await serverWith("--min-free-disk-bytes", floor);
  assert.equal(await crossed(thaw.datasets.uploadDataset(parts(header, split, data(1)))), ["DISK_FULL", floor]);
  assert.equal(await readdir(join(dataDirectory, "tmp")), []);
});

test("queued runs, and the watches and assignment streams of one", async () => {
  const flags = ["--max-queued-runs", "1", "--max-watchers", "2", "--max-assignment-subscribers", "1"];
  const { thaw } = await serverWith(...flags);
  await withInputs(thaw);
  const spec = { model: "models/m", dataset: "datasets/d", steps: 100_000n };
  await thaw.runs.createRun({ runId: "r", spec });
  await eventsUntil(thaw, "runs/r", reaches(RunState.RUNNING));
  await thaw.runs.createRun({ runId: "queued", spec });
  const full = problemsOf(await refused(thaw.runs.createRun({ runId: "more", spec })));
  assert.equal([full.code, full.figures.limit], ["RESOURCE_EXHAUSTED", "1"]);

  const over = new AbortController();
  const open = () => thaw.runs.watchRun({ name: "runs/r" }, { signal: over.signal })[Symbol.asyncIterator]();
  const watches = [open(), open()];
  for (const watch of watches) await watch.next();
  assert.equal(await crossed(open().next()), ["TOO_MANY_WATCHERS", "2"]);
  await thaw.runs.watchRun({ name: "runs/queued" })[Symbol.asyncIterator]().next();
  await watches[0].return?.(undefined);
  for (let tries = 0; tries < 200; tries++) {
    const seen = await open()
      .next()
      .catch(() => undefined);
    if (seen) break;
    assert.ok(tries < 199, "a watch that ends makes room");
    await delay(10);
  }
  const request = { run: "runs/r" };
  const subscription = thaw.routing.streamAssignments(request, { signal: over.signal })[Symbol.asyncIterator]();
  await subscription.next();
  const another = thaw.routing.streamAssignments(request)[Symbol.asyncIterator]().next();
  assert.equal(await crossed(another), ["TOO_MANY_SUBSCRIBERS", "1"]);
  over.abort();
  await thaw.runs.cancelRun({ name: "runs/queued" });
  await thaw.runs.cancelRun({ name: "runs/r" });
});

test("streams of a connection: more wait, and those of another connection do not", async () => {
  const { thaw, address } = await serverWith("--max-concurrent-streams", "2");
  const over = new AbortController();
  const watches = [1, 2].map(() => thaw.health.watch({}, { signal: over.signal })[Symbol.asyncIterator]());
  for (const watch of watches) await watch.next();
  const waiting = thaw.health.check({});
  const another = connectThaw(address);
  await another.health.check({});
  assert.is(await Promise.race([waiting, delay(50, "waits")]), "waits");
  over.abort();
  await waiting;
  another.close();
});

test("a message, as it is and unpacked", async () => {
  const { thaw, address } = await serverWith("--max-message-bytes", "65536");
  const { code, message } = await refused(thaw.datasets.uploadDataset(parts(header, split, data(70_000))));
  assert.equal([code, message.includes("65536")], [8, true]);
  const zip = { "grpc.default_compression_algorithm": 2 }; // gzip: 10 MiB of zeros in 10 KiB
  const zipped = new Client(address, credentials.createInsecure(), zip);
  const packed = connect(DatasetService, zipped).uploadDataset(parts(header, split, data(10 * 2 ** 20)));
  const unpacked = await refused(packed);
  zipped.close();
  assert.equal([unpacked.code, unpacked.message.includes("decompresses")], [8, true]);
  const limits = (await thaw.system.getSystem({})).limits;
  assert.equal([limits?.maxMessageBytes, limits?.maxMetadataBytes], [65536n, 16384n], "GetSystem says them");
  for (const [name, limit] of Object.entries(limits ?? {})) {
    if (typeof limit === "bigint") assert.ok(limit > 0n, `${name} is told`);
  }
});

// Each by itself too long; every field that a client fills is bounded in this way.
const labels = Object.fromEntries(Array.from({ length: 65 }, (_, i) => [`k${i}`, "v"]));
const tooLong: readonly (readonly [field: string, request: object])[] = [
  ["display_name", { displayName: "x".repeat(257) }],
  ["request_id", { requestId: "x".repeat(129) }],
  ["labels", { labels }],
  ["labels", { labels: { ["k".repeat(64)]: "v" } }],
  ['labels["k"]', { labels: { k: "v".repeat(257) } }],
  ["run_id", { runId: "r".repeat(64) }],
];
for (const [field, request] of tooLong) {
  test(`a field's length: ${field} ${JSON.stringify(request).length}`, async () => {
    const { thaw } = servers[0];
    const { code, fields } = problemsOf(await refused(thaw.runs.createRun({ spec: {}, ...request })));
    assert.is(code, "INVALID_ARGUMENT");
    assert.ok(
      fields.some((one) => one.field === field),
      JSON.stringify(fields),
    );
  });
}

test.run();
