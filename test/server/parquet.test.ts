// Parquet through the server: it is stored as JSON Lines, by the same rules and with the same words, under a limit.

import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { parquetWriteBuffer } from "hyparquet-writer";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { problemsOf, uploadDataset } from "../../clients/typescript/index.ts";
import { DatasetFormat } from "../../proto/gen/thaw/v1/dataset_pb.ts";
import { refused, type TestServer, testServer } from "../support/thaw_server.ts";

const test = suite("parquet upload");
let server: TestServer;
test.before(async () => {
  server = await testServer({ flags: ["--max-upload-bytes", "20000"] });
});
test.after(() => server.stop());

const parquet = (columns: Record<string, (string | null)[]>): Uint8Array[] => {
  const columnData = Object.entries(columns).map(([name, data]) => {
    return { name, data, type: "STRING" as const, nullable: true };
  });
  return [new Uint8Array(parquetWriteBuffer({ columnData }))];
};
const upload = (datasetId: string, splits: Record<string, Uint8Array[]>, readyTask?: string) =>
  uploadDataset(
    server.thaw,
    {
      datasetId,
      format: DatasetFormat.PARQUET,
      task: readyTask === undefined ? undefined : { case: "readyTask", value: readyTask },
    },
    splits,
  );

test("rows are stored as lines of their fields", async () => {
  const train = parquet({ note: ["x", "y"], input: ["a", "b"], target: ["é", "d"], id: [null, "7"] });
  const dataset = await upload("p", { train });
  assert.is(dataset.format, DatasetFormat.PARQUET);
  assert.equal([dataset.splits[0].examples, dataset.splits[0].sizeBytes], [2n, BigInt(train[0].length)]);
  const folder = join(server.dataDirectory, "datasets", "p");
  assert.equal(await readdir(folder), ["train.jsonl"]);
  const lines = (await readFile(join(folder, "train.jsonl"), "utf8")).trimEnd().split("\n");
  assert.equal(
    lines.map((line) => JSON.parse(line)),
    [
      { input: "a", target: "é" },
      { input: "b", target: "d", id: "7" },
    ],
  );
});

test("a task's rows are written out by its definition", async () => {
  const task = { name: "n", input: "say {word}", target: "{kind}", labels: { v: "verb" }, metrics: ["accuracy"] };
  const train = parquet({ kind: ["v"], word: ["run"], more: ["?"] });
  const definition = { case: "taskDefinition" as const, value: JSON.stringify(task) };
  await uploadDataset(server.thaw, { datasetId: "t", format: DatasetFormat.PARQUET, task: definition }, { train });
  const [line] = (await readFile(join(server.dataDirectory, "datasets", "t", "train.jsonl"), "utf8")).split("\n");
  assert.equal(JSON.parse(line), { task: "n", input: "say run", target: "verb", id: "n-1" });
});

test("what is wrong is said by split and row, and nothing is left", async () => {
  const told = async (call: Promise<unknown>) =>
    problemsOf(await refused(call)).fields.map(({ field, message }) => `${field}: ${message}`);
  const rows = parquet({ input: ["a", null], target: ["b", "c"] });
  const many = parquet({ input: new Array(1000).fill("a"), target: new Array(1000).fill("b") });
  const broken = [new TextEncoder().encode('{"input": "a", "target": "b"}\n')];
  assert.equal(
    (await told(upload("x", { train: rows, many, broken }))).map((problem) => problem.slice(0, 70)),
    [
      'splits.train: row 2: has no "input"',
      "splits.many: holds more than 20000 bytes as JSON Lines",
      "splits.broken: is not a readable Parquet file: parquet file invalid (fo".slice(0, 70),
    ],
  );
  assert.equal(await told(upload("x", { train: rows }, "superglue/rte")), [
    'splits.train: has the columns "input", "target"; examples need "hypothesis" and "premise" and "label" and "idx"',
  ]);
  assert.not((await readdir(join(server.dataDirectory, "datasets"))).includes("x"));
  assert.equal(await readdir(join(server.dataDirectory, "tmp")), []);
});

test.run();
