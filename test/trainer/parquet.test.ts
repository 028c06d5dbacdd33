import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { parquetWriteBuffer } from "hyparquet-writer";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { parseExamples } from "../../src/trainer/data/examples.ts";
import { parseJsonl } from "../../src/trainer/data/jsonl.ts";
import { InputError } from "../../src/trainer/types.ts";

const test = suite("parquet");
type Columns = Parameters<typeof parquetWriteBuffer>[0]["columnData"];
type Options = Omit<Parameters<typeof parquetWriteBuffer>[0], "columnData">;

let directory = "";
test.before(async () => {
  directory = await mkdtemp(join(tmpdir(), "thaw-parquet-"));
});
test.after(() => rm(directory, { recursive: true }));

const parquet = (columnData: Columns, options: Options = {}): Uint8Array =>
  new Uint8Array(parquetWriteBuffer({ columnData, ...options }));

async function read(content: Uint8Array | string, name = "data.bin") {
  const path = join(directory, name);
  await writeFile(path, content);
  return parseExamples(path, "train");
}

async function problemsOf(content: Uint8Array | string, name?: string): Promise<string[]> {
  const error = await read(content, name).catch((e) => e);
  assert.instance(error, InputError);
  return (error as InputError).problems.map((problem) => problem.message);
}

const ROWS = 23;
const inputs = Array.from({ length: ROWS }, (_, i) => `é ${"日".repeat(i)}`);
const targets = inputs.map((_, i) => `t${i % 3}`);
const tasks = inputs.map((_, i) => (i % 4 === 0 ? null : "task"));
const texts: Columns = [
  { name: "note", data: inputs.map((_, i) => i / 2), type: "DOUBLE" },
  { name: "target", data: targets, type: "STRING" },
  { name: "id", data: inputs.map((_, i) => BigInt(i)), type: "INT64" },
  { name: "input", data: inputs, type: "STRING" },
  { name: "task", data: tasks, type: "STRING", nullable: true },
];

const files: [what: string, options: Options][] = [
  ["one row group, Snappy", {}],
  ["row groups of 5, the last one shorter", { rowGroupSize: 5 }],
  ["uncompressed", { codec: "UNCOMPRESSED" }],
  ["gzip", { codec: "GZIP", compressors: { GZIP: (bytes) => new Uint8Array(gzipSync(bytes)) } }],
];
for (const [what, options] of files) {
  test(`${what}: the same examples as JSON Lines of its rows, nulls left out`, async () => {
    const lines = inputs.map((input, i) =>
      JSON.stringify({ input, target: targets[i], id: i, ...(tasks[i] !== null && { task: tasks[i] }) }),
    );
    const expected = await parseJsonl(new TextEncoder().encode(lines.join("\n")));
    assert.equal(
      await read(parquet(texts, options)),
      expected.map((example) => ({ ...example, unit: "row" })),
    );
  });
}

const list = (name: string, element: "INT32" | "INT64"): Options["schema"] => [
  { name, repetition_type: "OPTIONAL", num_children: 1, converted_type: "LIST" },
  { name: "list", repetition_type: "REPEATED", num_children: 1 },
  { name: "element", repetition_type: "OPTIONAL", type: element },
];

test("token ids come from lists of 32- or 64-bit integers", async () => {
  const content = parquet(
    [
      { name: "input_ids", data: [[3, 4], [5], []] },
      { name: "target_ids", data: [[7n], [8n, 9n], [1n]] },
    ],
    {
      schema: [{ name: "root", num_children: 2 }, ...list("input_ids", "INT32")!, ...list("target_ids", "INT64")!],
    },
  );
  assert.equal(await problemsOf(content), ['train: row 3: "input_ids" is empty']);
  const good = parquet(
    [
      { name: "input_ids", data: [[3, 4], [5]] },
      { name: "target_ids", data: [[7n], [8n, 9n]] },
    ],
    {
      schema: [{ name: "root", num_children: 2 }, ...list("input_ids", "INT32")!, ...list("target_ids", "INT64")!],
    },
  );
  assert.equal(await read(good), [
    { line: 1, unit: "row", inputIds: [3, 4], targetIds: [7] },
    { line: 2, unit: "row", inputIds: [5], targetIds: [8, 9] },
  ]);
});

test("what is wrong with rows is said by row and column, across row groups", async () => {
  const content = parquet(
    [
      { name: "input", data: ["a", null, "c", ""], type: "STRING", nullable: true },
      { name: "target", data: ["x", "y", null, "z"], type: "STRING", nullable: true },
    ],
    { rowGroupSize: 2 },
  );
  assert.equal(await problemsOf(content), [
    'train: row 2: has no "input"',
    'train: row 3: has no "target"',
    'train: row 4: "input" is empty',
  ]);
  const numbers = parquet([
    { name: "input", data: [1, 2], type: "DOUBLE" },
    { name: "target", data: ["x", "y"], type: "STRING" },
  ]);
  assert.equal(
    await problemsOf(numbers),
    [1, 2].map((row) => `train: row ${row}: "input" is not a string`),
  );
});

test("a file that cannot be read as a whole is one problem", async () => {
  const whole = parquet(texts);
  const cut = whole.slice(0, whole.length - 100);
  const footer = whole.slice();
  footer.set([0xff, 0xff, 0xff, 0x7f], footer.length - 8); // the footer's length
  const cases: [content: Uint8Array | string, name: string, expected: RegExp][] = [
    [cut, "cut.bin", /^train: is not a readable Parquet file: /],
    [footer, "footer.bin", /^train: is not a readable Parquet file: /],
    [whole.slice(0, 4), "magic.bin", /^train: is not a readable Parquet file: /],
    ['{"input":"a","target":"b"}', "json.parquet", /^train: is not a readable Parquet file: /],
    [
      parquet([{ name: "input", data: ["a"], type: "STRING" }]),
      "columns.bin",
      /^train: has the columns "input"; examples need "input" and "target", or /,
    ],
    [
      parquet(texts, { codec: "LZ4_RAW", compressors: { LZ4_RAW: (bytes) => bytes } }),
      "codec.bin",
      /^train: is not a readable Parquet file: .*LZ4_RAW/,
    ],
  ];
  for (const [content, name, expected] of cases) {
    const problems = await problemsOf(content, name);
    assert.is(problems.length, 1, name);
    assert.match(problems[0], expected, name);
  }
  const empty = parquet([
    { name: "input", data: [], type: "STRING" },
    { name: "target", data: [], type: "STRING" },
  ]);
  assert.equal(await problemsOf(empty), ["train: the file has no examples"]);
});

test("a file that is not there is the system's error; JSON Lines are read by the same function", async () => {
  const error = await parseExamples(join(directory, "none.parquet")).catch((e) => e);
  assert.is(error.code, "ENOENT");
  assert.equal(await read('{"input":"a","target":"b"}', "lines.jsonl"), [{ line: 1, input: "a", target: "b" }]);
});

test.run();
