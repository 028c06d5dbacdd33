import { existsSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { parquetWriteBuffer } from "hyparquet-writer";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { EXAMPLE_FIELDS, parseJsonl } from "../../src/trainer/data/jsonl.ts";
import { openParquetReader, type ParquetReader } from "../../src/trainer/data/parquet_reader.ts";
import { randomBelow } from "../../src/trainer/data/random.ts";
import { InputError } from "../../src/trainer/types.ts";

const test = suite("parquet");
type Columns = Parameters<typeof parquetWriteBuffer>[0]["columnData"];
type Options = Omit<Parameters<typeof parquetWriteBuffer>[0], "columnData">;

let directory = "";
let reader: ParquetReader;
test.before(async () => {
  directory = await mkdtemp(join(tmpdir(), "thaw-parquet-"));
  reader = openParquetReader({ maxBytes: 100_000 });
});
test.after(async () => {
  await reader.close();
  await rm(directory, { recursive: true });
});

const parquet = (columnData: Columns, options: Options = {}): Uint8Array =>
  new Uint8Array(parquetWriteBuffer({ columnData, ...options }));

const { text, tokens, optional } = EXAMPLE_FIELDS;
const COLUMNS = { read: [...text, ...tokens, ...optional], required: [text, tokens] };
let files = 0;

/** The examples of a file's rows. What is refused leaves no rows behind. */
async function read(content: Uint8Array | string, by: Pick<ParquetReader, "toJsonl"> = reader) {
  const path = join(directory, `${files++}.parquet`);
  const rows = `${path}.rows`;
  await writeFile(path, content);
  try {
    await by.toJsonl(path, rows, COLUMNS, "train");
  } catch (error) {
    assert.not(existsSync(rows));
    throw error;
  }
  return parseJsonl(rows, "train", "row");
}

async function problemsOf(content: Uint8Array | string, by?: ParquetReader): Promise<string[]> {
  const error = await read(content, by).catch((e) => e);
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

const codecs: [what: string, options: Options][] = [
  ["one row group, Snappy", {}],
  ["row groups of 5, the last one shorter", { rowGroupSize: 5 }],
  ["uncompressed", { codec: "UNCOMPRESSED" }],
  ["gzip", { codec: "GZIP", compressors: { GZIP: (bytes) => new Uint8Array(gzipSync(bytes)) } }],
];
for (const [what, options] of codecs) {
  test(`${what}: the same examples as JSON Lines of its rows, nulls left out`, async () => {
    const lines = inputs.map((input, i) =>
      JSON.stringify({ input, target: targets[i], id: i, ...(tasks[i] !== null && { task: tasks[i] }) }),
    );
    const expected = await parseJsonl(new TextEncoder().encode(lines.join("\n")));
    assert.equal(await read(parquet(texts, options)), expected);
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
    { line: 1, inputIds: [3, 4], targetIds: [7] },
    { line: 2, inputIds: [5], targetIds: [8, 9] },
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
  const cases: [what: string, content: Uint8Array | string, expected: RegExp][] = [
    ["cut", cut, /^train: is not a readable Parquet file: /],
    ["footer", footer, /^train: is not a readable Parquet file: /],
    ["magic", whole.slice(0, 4), /^train: is not a readable Parquet file: /],
    ["JSON", '{"input":"a","target":"b"}', /^train: is not a readable Parquet file: /],
    [
      "columns",
      parquet([{ name: "input", data: ["a"], type: "STRING" }]),
      /^train: has the columns "input"; examples need "input" and "target", or "input_ids" and "target_ids"$/,
    ],
    [
      "codec",
      parquet(texts, { codec: "LZ4_RAW", compressors: { LZ4_RAW: (bytes) => bytes } }),
      /^train: is not a readable Parquet file: .*LZ4_RAW/,
    ],
  ];
  for (const [what, content, expected] of cases) {
    const problems = await problemsOf(content);
    assert.is(problems.length, 1, what);
    assert.match(problems[0], expected, what);
  }
  const empty = parquet([
    { name: "input", data: [], type: "STRING" },
    { name: "target", data: [], type: "STRING" },
  ]);
  assert.equal(await problemsOf(empty), ["train: the file has no examples"]);
});

test("a file that is not there, or cannot be written, is the system's error", async () => {
  const errorOf = (source: string, target: string) => reader.toJsonl(source, target, COLUMNS).catch((e) => e);
  assert.is((await errorOf(join(directory, "none"), join(directory, "rows"))).code, "ENOENT");
  const path = join(directory, "good.parquet");
  await writeFile(path, parquet(texts));
  assert.is((await errorOf(path, join(directory, "none", "rows"))).code, "ENOENT");
});

test("a small file of many rows counts by what comes of it", async () => {
  const rows = 5000;
  const content = parquet([
    { name: "input", data: new Array(rows).fill("a"), type: "STRING" },
    { name: "target", data: new Array(rows).fill("b"), type: "STRING" },
  ]);
  assert.ok(content.length < 1000);
  // {"input":"a","target":"b"} and a newline: 27 bytes a row.
  assert.equal(await problemsOf(content), ["train: holds more than 100000 bytes as JSON Lines"]);
});

const LIMITS = { seconds: 0.5, secondsPerMebibyte: 0, memoryMebibytes: 64, maxBytes: 1e9 };

test("a file that the decoder never comes to the end of is refused in time, and the next is read", async () => {
  const endless = parquet(texts);
  endless[170] ^= 1 << 7;
  const short = openParquetReader(LIMITS);
  try {
    assert.equal(await problemsOf(endless, short), [
      "train: is not a readable Parquet file: it is not read after 0.50 seconds",
    ]);
    assert.is((await read(parquet(texts), short)).length, ROWS);
  } finally {
    await short.close();
  }
});

// Deno has no memory limit for a thread.
if (!("Deno" in globalThis)) {
  test("a file that takes more memory than allowed is refused, and the next is read", async () => {
    const rows = 1_500_000;
    const large = parquet([
      { name: "input", data: new Array(rows).fill("a"), type: "STRING" },
      { name: "target", data: new Array(rows).fill("b"), type: "STRING" },
    ]);
    const small = openParquetReader({ ...LIMITS, seconds: 60, memoryMebibytes: 24 });
    try {
      assert.equal(await problemsOf(large, small), [
        "train: is not a readable Parquet file: it takes more than 24 MiB of memory; write it in smaller row groups",
      ]);
      assert.is((await read(parquet(texts), small)).length, ROWS);
    } finally {
      await small.close();
    }
  });
}

const FLIPS = 300;
test(`${FLIPS} files with one flipped bit: each ends in rows or in one InputError`, async () => {
  const whole = parquet(texts);
  const short = openParquetReader(LIMITS);
  const ends = { rows: 0, refused: 0 };
  try {
    for (let i = 0; i < FLIPS; i++) {
      const flipped = whole.slice();
      const bit = randomBelow(8 * whole.length, 7, 0, i);
      flipped[bit >> 3] ^= 1 << (bit & 7);
      const outcome = await read(flipped, short).catch((error) => error);
      if (Array.isArray(outcome)) ends.rows++;
      else {
        assert.instance(outcome, InputError, `bit ${bit}: ${outcome?.stack}`);
        ends.refused++;
      }
    }
  } finally {
    await short.close();
  }
  assert.ok(ends.rows > 0 && ends.refused > 0, JSON.stringify(ends));
});

test.run();
