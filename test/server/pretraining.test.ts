// Plain text through the whole server, with a real trainer on a tiny model: a run learns to fill in what was cut out.

import { readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { problemsOf, uploadDataset, uploadModel } from "../../clients/typescript/index.ts";
import { DatasetFormat } from "../../proto/gen/thaw/v1/dataset_pb.ts";
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import { createEngine } from "../../src/trainer/engine.ts";
import { testDevice } from "../support/gpu.ts";
import { eventsUntil, reaches, refused, type TestServer, testServer } from "../support/thaw_server.ts";
import { tinyByteModel, tinyModel } from "../support/tiny_model.ts";

const test = suite("pre-training");
let server: TestServer;
test.before(async () => {
  server = await testServer({ trainer: createEngine(await testDevice()) });
  for (const [modelId, model] of [
    ["m", await tinyByteModel()],
    ["mute", await tinyModel()],
  ]) {
    await uploadModel(server.thaw, model, { modelId });
    await rm(model, { recursive: true });
  }
  await uploadDataset(server.thaw, header("t"), { train: [TEXT], validation: ["abcabcabcabcabcabc\n"] });
});
test.after(() => server.stop());

const header = (datasetId: string) => ({ datasetId, format: DatasetFormat.PLAIN_TEXT });
const LINE = "abc".repeat(10);
/** Documents of 92 bytes on three lines, of 20 and of one. */
const TEXT = [LINE, LINE, LINE, "", "", "abcab".repeat(4), "", "x"].join("\n");
const SPEC = {
  model: "models/m",
  dataset: "datasets/t",
  steps: 30n,
  batchSize: 4n,
  maxInputTokens: 16n,
  maxTargetTokens: 8n,
  dropout: 0,
  optimizer: { learningRate: 1e-2 },
};

test("a text is kept as it is, described by its documents, and previewed in windows", async () => {
  const { dataset, splits } = await server.thaw.datasets.describeDataset({ name: "datasets/t" });
  assert.is(dataset?.format, DatasetFormat.PLAIN_TEXT);
  assert.equal([splits[0].split?.examples, splits[0].longestInputBytes], [3n, 92n]);
  assert.equal(await readdir(join(server.dataDirectory, "datasets", "t")), ["train.txt", "validation.txt"]);
  const { batchSize, maxInputTokens, maxTargetTokens } = SPEC;
  const shape = { dataset: "datasets/t", model: "models/m", batchSize, maxInputTokens, maxTargetTokens };
  const shown = await server.thaw.datasets.previewBatches({ ...shape, seed: 3n, batches: 9n });
  // Of 15 bytes 2 are cut out, in up to 2 spans, which with an end leaves 16 of input: windows of 15, of the documents'
  // 92 and 20 bytes 7 and 2.
  assert.is(shown.examples, 9n);
  const ids = shown.batches.flatMap(({ examples }) => examples.map(({ exampleId }) => Number(exampleId)));
  for (const epoch of [0, 1, 2, 3]) {
    const drawn = ids.slice(9 * epoch, 9 * epoch + 9).sort((a, b) => a - b);
    assert.equal(
      drawn,
      Array.from({ length: 9 }, (_, window) => 9 * epoch + window),
      `epoch ${epoch}`,
    );
  }
  assert.ok(shown.batches.every(({ examples }) => examples.every((e) => e.inputTokenIds.length <= 16)));
});

test("a run learns it, tells its data, and is scored under one corruption", async () => {
  await server.thaw.runs.createRun({ runId: "r", spec: { ...SPEC, evaluation: { atStart: true } } });
  const events = await eventsUntil(server.thaw, "runs/r", reaches(RunState.SUCCEEDED));
  const losses = events.flatMap(({ event }) => (event.case === "metrics" ? [event.value.loss] : []));
  assert.is(losses.length, 30);
  assert.ok(losses[29] < losses[0] / 2, losses.join(" ")); // from random towards three letters and few sentinels
  const data = events.flatMap(({ event }) => (event.case === "data" ? [event.value] : []));
  assert.equal(
    data.map((d) => [d.examples, d.truncatedInputs, d.truncatedTargets]),
    [[9n, 0n, 0n]],
  );
  const evaluations = events.flatMap(({ event }) => (event.case === "evaluation" ? [event.value] : []));
  assert.equal(
    evaluations.map(({ examples }) => examples),
    [2n, 2n],
  );
  const again = await server.thaw.models.evaluate({
    name: "models/m",
    dataset: "datasets/t",
    maxInputTokens: 16n,
    maxTargetTokens: 8n,
  });
  assert.is(again.result?.loss.toFixed(4), evaluations[0].loss.toFixed(4), "the same for the starting model");
});

test("what no text can be, and no run can read, is refused with its place", async () => {
  const told = async (call: Promise<unknown>) =>
    problemsOf(await refused(call)).fields.map(({ field, message }) => `${field}: ${message}`);
  const bytes = new Uint8Array([0x61, 0x0a, 0xff, 0x0a]);
  assert.equal(await told(uploadDataset(server.thaw, header("x"), { train: [bytes], empty: ["\n \n"] })), [
    "splits.train: line 2: is not UTF-8",
    "splits.empty: the file has no text",
  ]);
  const task = { case: "readyTask" as const, value: "superglue/cb" };
  assert.equal(await told(uploadDataset(server.thaw, { ...header("x"), task }, { train: ["a"] })), [
    "dataset.format: plain text has no task",
  ]);
  const failing: [change: object, message: RegExp][] = [
    [{ model: "models/mute" }, /is plain text, and the model has no tokenizer/],
    [{ maxTargetTokens: 3n }, /16 input and 3 target tokens have no room for a window/],
  ];
  for (const [i, [change, message]] of failing.entries()) {
    await server.thaw.runs.createRun({ runId: `f${i}`, spec: { ...SPEC, ...change } });
    const events = await eventsUntil(server.thaw, `runs/f${i}`, reaches(RunState.FAILED));
    const { run } = await server.thaw.runs.getRun({ name: `runs/f${i}` });
    assert.match(`${run?.error?.message} ${JSON.stringify(events.at(-1)?.event.case)}`, message);
  }
});

test.run();
