// Models, datasets and checkpoints over gRPC: what is refused, with which words, and that nothing is left of it.

import { mkdir, mkdtemp, readdir, rename, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { status } from "@grpc/grpc-js";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { problemsOf, uploadDataset } from "../../clients/typescript/index.ts";
import type { UploadDatasetRequestSchema } from "../../proto/gen/thaw/v1/dataset_service_pb.ts";
import type { UploadModelRequestSchema } from "../../proto/gen/thaw/v1/model_service_pb.ts";
import { Batching } from "../../proto/gen/thaw/v1/run_pb.ts";
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import { eventsUntil, reaches, refused, type TestServer, testServer, withInputs } from "../support/thaw_server.ts";
import { tinyModel } from "../support/tiny_model.ts";

const test = suite("resources");
let server: TestServer;
let outside: string;
let root: string;

test.before(async () => {
  root = await mkdtemp(join(tmpdir(), "thaw-root-"));
  outside = await tinyModel();
  const inside = await tinyModel();
  await rename(inside, join(root, "good"));
  await symlink(outside, join(root, "linked"));
  await mkdir(join(root, "leaky"));
  await symlink(join(outside, "config.json"), join(root, "leaky", "config.json"));
  await mkdir(join(root, "empty"));
  server = await testServer({ flags: ["--models", root, "--max-upload-bytes", "100000"] });
});
test.after(async () => {
  await server.stop();
  for (const folder of [root, outside]) await rm(folder, { recursive: true });
});

test("LoadModel reads only below the models folder, links included", async () => {
  const { thaw } = server;
  const { model } = await thaw.models.loadModel({ directory: "good", modelId: "good" });
  assert.ok(model!.parameters > 0n);
  const attempts = [
    "../x",
    "/etc",
    ".",
    "good/..",
    `../${basename(outside)}`,
    "good//x",
    "linked",
    "leaky",
    "missing",
    "empty",
    "a\0b",
  ];
  for (const directory of attempts) {
    const error = await refused(thaw.models.loadModel({ directory }));
    assert.is(error.code, status.INVALID_ARGUMENT, directory);
    assert.not.match(error.message, /\/tmp\//, "no path of the server's");
  }
  assert.is((await refused(thaw.models.loadModel({ directory: "good", modelId: "good" }))).code, status.ALREADY_EXISTS);
  assert.is((await thaw.models.listModels({})).models.length, 1);
  await thaw.models.deleteModel({ name: "models/good" });
  assert.ok((await readdir(join(root, "good"))).length > 0, "a loaded model's files stay");
});

test("an upload that is wrong says everything and leaves nothing", async () => {
  const { thaw } = server;
  const bad = uploadDataset(thaw, { datasetId: "x" }, { train: ['{"input": "a"}\n', "no json\n"], test: ["\n"] });
  const { fields } = problemsOf(await refused(bad));
  assert.equal(
    fields.map(({ field, message }) => `${field}: ${message}`),
    [
      'splits.train: line 1: has no "target"',
      "splits.train: line 2: is not JSON",
      "splits.test: the file has no examples",
    ],
  );
  const large = uploadDataset(thaw, { datasetId: "x" }, { train: [`${"x".repeat(100_001)}`] });
  assert.is((await refused(large)).code, status.RESOURCE_EXHAUSTED);
  for (const name of ["../x", "A", ""]) {
    assert.is((await refused(uploadDataset(thaw, {}, { [name]: ["x"] }))).code, status.INVALID_ARGUMENT);
  }
  async function* files(
    path: string,
    sizeBytes: bigint,
  ): AsyncGenerator<MessageInitShape<typeof UploadModelRequestSchema>> {
    yield { part: { case: "model", value: { modelId: "x" } } };
    yield { part: { case: "file", value: { path, sizeBytes } } };
    yield { part: { case: "data", value: new Uint8Array(3) } };
    yield { part: { case: "end", value: {} } };
  }
  const uploads: [string, bigint][] = [
    ["../config.json", 3n],
    ["/config.json", 3n],
    ["a/../b", 3n],
    [".hidden", 3n],
    ["config.json", 4n],
    ["config.json", 2n],
    ["config.json", 3n],
  ];
  for (const [path, sizeBytes] of uploads) {
    const error = await refused(thaw.models.uploadModel(files(path, sizeBytes)));
    assert.is(error.code, status.INVALID_ARGUMENT, `${path} ${sizeBytes}`);
  }
  for (const folder of ["models", "datasets", "tmp"]) {
    assert.equal(await readdir(join(server.dataDirectory, folder)), [], folder);
  }
});

test("an upload that does not say that it is whole leaves nothing, however its stream ends", async () => {
  const { thaw } = server;
  type Part = MessageInitShape<typeof UploadDatasetRequestSchema>;
  const whole: Part[] = [
    { part: { case: "dataset", value: { datasetId: "x" } } },
    { part: { case: "split", value: { name: "train" } } },
    { part: { case: "data", value: Buffer.from('{"input_ids": [5], "target_ids": [3]}\n') } },
  ];
  const end: Part = { part: { case: "end", value: {} } };
  async function* stream(...parts: Part[]) {
    yield* parts;
  }
  const wrong: readonly (readonly [field: string, parts: Part[]])[] = [
    ["end", whole],
    ["data", [...whole, end, whole[2]]],
    ["end", [...whole, end, end]],
    ["end", []],
  ];
  for (const [field, parts] of wrong) {
    const { fields } = problemsOf(await refused(thaw.datasets.uploadDataset(stream(...parts))));
    assert.equal(
      fields.map((one) => one.field),
      [field],
    );
  }
  // Node's HTTP/2 client half-closes a stream that it cancels: the server sees an end like any other.
  const given = new AbortController();
  async function* givenUp() {
    yield* whole;
    while ((await readdir(join(server.dataDirectory, "tmp"))).length === 0) await delay(5);
    given.abort();
    await new Promise(() => {});
  }
  const error = await refused(thaw.datasets.uploadDataset(givenUp(), { signal: given.signal }));
  assert.is(error.code, status.CANCELLED);
  while ((await readdir(join(server.dataDirectory, "tmp"))).length > 0) await delay(5);
  assert.equal((await thaw.datasets.listDatasets({})).datasets, []);
  await thaw.datasets.uploadDataset(stream(...whole, end));
  await thaw.datasets.deleteDataset({ name: "datasets/x" });
});

test("datasets are described and previewed as a run would see them", async () => {
  const { thaw } = server;
  await withInputs(thaw);
  const { splits } = await thaw.datasets.describeDataset({ name: "datasets/d" });
  assert.equal(
    splits.map(({ split }) => [split?.name, split?.examples]),
    [
      ["train", 8n],
      ["validation", 2n],
    ],
  );
  const shape = { batchSize: 3n, maxInputTokens: 2n };
  const request = { dataset: "datasets/d", model: "models/m", ...shape, batches: 2n, firstStep: 1n };
  const preview = await thaw.datasets.previewBatches(request);
  assert.equal(
    preview.batches.map(({ step, examples }) => [step, examples.length]),
    [
      [1n, 3],
      [2n, 3],
    ],
  );
  assert.is(preview.truncatedInputs, 8n);
  const [example] = preview.batches[0].examples;
  assert.equal(example.inputTokenIds, [5 + Number(example.exampleId), 1]);
  assert.equal([example.inputTruncated, example.targetTruncated], [true, false]);
  assert.equal(
    preview.batches[0].examples.map(({ row }) => row),
    [0, 1, 2],
  );
  const packed = { ...request, maxInputTokens: 16n, batching: Batching.PACKED };
  const [batch] = (await thaw.datasets.previewBatches(packed)).batches;
  assert.ok(batch.examples.length > 3, "short examples share rows");
  assert.equal([...new Set(batch.examples.map(({ row }) => row))], [0, 1, 2]);
  const far = await refused(thaw.datasets.previewBatches({ ...packed, firstStep: 2n ** 39n }));
  assert.equal(
    problemsOf(far).fields.map(({ field }) => field),
    ["first_step"],
  );
});

test("what a run uses cannot be deleted; checkpoints are listed, fetched, deleted", async () => {
  const { thaw } = server;
  const spec = { model: "models/m", dataset: "datasets/d", steps: 4n };
  await thaw.runs.createRun({ runId: "r", spec, labels: { a: "b" } });
  await thaw.runs.pauseRun({ name: "runs/r" });
  for (const call of [
    thaw.models.deleteModel({ name: "models/m" }),
    thaw.datasets.deleteDataset({ name: "datasets/d" }),
    thaw.runs.deleteRun({ name: "runs/r" }),
  ]) {
    assert.is((await refused(call)).code, status.FAILED_PRECONDITION);
  }
  await thaw.runs.resumeRun({ name: "runs/r" });
  await eventsUntil(thaw, "runs/r", reaches(RunState.SUCCEEDED));
  const name = "runs/r/checkpoints/step-4";
  const paths = [];
  for await (const { part } of thaw.checkpoints.downloadCheckpoint({ name })) {
    if (part.case === "file") paths.push(part.value.path);
  }
  assert.equal(paths, ["config.json", "model.safetensors", "optimizer.safetensors", "training.json"]);
  assert.is((await refused(thaw.checkpoints.saveCheckpoint({ run: "runs/r" }))).code, status.FAILED_PRECONDITION);
  await thaw.checkpoints.deleteCheckpoint({ name });
  assert.is((await refused(thaw.checkpoints.deleteCheckpoint({ name }))).code, status.NOT_FOUND);
  const { checkpoints } = await thaw.checkpoints.listCheckpoints({ parent: "runs/r" });
  assert.ok(checkpoints.every((checkpoint) => checkpoint.name !== name));
  assert.equal((await thaw.runs.listRuns({ labels: { a: "b" } })).runs.length, 1);
  assert.equal((await thaw.runs.listRuns({ labels: { a: "c" } })).runs.length, 0);
});

test("what a crash left in the making is swept at the next start", async () => {
  for (const folder of ["models/half", "datasets/half", "checkpoints/half", "tmp/half"]) {
    await mkdir(join(server.dataDirectory, folder));
    await writeFile(join(server.dataDirectory, folder, "file"), "x");
  }
  server = await server.restart();
  const left = await Promise.all(
    ["models", "datasets", "checkpoints", "tmp"].map((folder) => readdir(join(server.dataDirectory, folder))),
  );
  assert.equal(left.flat().sort(), ["d", "m", "r"]);
});

test.run();
