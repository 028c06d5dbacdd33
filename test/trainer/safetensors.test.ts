import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as fc from "fast-check";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { openCheckpoint } from "../../src/trainer/formats/checkpoint.ts";
import { openSafetensors } from "../../src/trainer/formats/safetensors.ts";
import type { SafetensorsDType } from "../../src/trainer/formats/safetensors_header.ts";
import { type WritableTensor, writeSafetensors } from "../../src/trainer/formats/safetensors_writer.ts";
import { InputError } from "../../src/trainer/types.ts";

const test = suite<{ directory: string }>("safetensors");
test.before.each(async (context) => {
  context.directory = await mkdtemp(join(tmpdir(), "thaw-safetensors-"));
});
test.after.each(async (context) => rm(context.directory, { recursive: true }));

const utf8 = (text: string): Uint8Array => new TextEncoder().encode(text);

/** A file of this header (text or bytes) and `dataBytes` zeros; `length` overrides the header length written. */
function fileOf(header: unknown, dataBytes: number, length?: bigint): Uint8Array {
  const json =
    header instanceof Uint8Array ? header : utf8(typeof header === "string" ? header : JSON.stringify(header));
  const bytes = new Uint8Array(8 + json.length + dataBytes);
  new DataView(bytes.buffer).setBigUint64(0, length ?? BigInt(json.length), true);
  bytes.set(json, 8);
  return bytes;
}

async function problemsOf(open: () => Promise<{ close(): Promise<void> }>): Promise<string[]> {
  try {
    await (await open()).close();
  } catch (error) {
    if (error instanceof InputError) return error.problems.map((problem) => problem.message);
    throw error;
  }
  return [];
}

const f32 = (begin: number, end: number, shape: unknown = [(end - begin) / 4]) => ({
  dtype: "F32",
  shape,
  data_offsets: [begin, end],
});

const malformed: [what: string, file: Uint8Array, problems: RegExp[]][] = [
  ["an empty file", new Uint8Array(0), [/0 bytes/]],
  ["seven bytes", new Uint8Array(7), [/7 bytes/]],
  ["a header longer than the file", fileOf("{}", 0, 3n), [/header of 3 bytes in a file of 10/]],
  ["a header over 100 MB", fileOf("{}", 0, 100_000_001n), [/at most 100000000/]],
  ["a header length of 2^64 - 1", fileOf("{}", 0, 2n ** 64n - 1n), [/at most 100000000/]],
  ["a header that is not UTF-8", fileOf(new Uint8Array([0x7b, 0x22, 0xff, 0x22, 0x7d]), 0), [/not UTF-8/]],
  ["an empty header", fileOf("", 0), [/does not start/]],
  ["a list for a header", fileOf("[]", 0), [/does not start/]],
  ["a header that is not JSON", fileOf('{"a":', 0), [/not JSON/]],
  [
    "a tensor name twice",
    fileOf(`{"a":${JSON.stringify(f32(0, 4))},"\\u0061":${JSON.stringify(f32(0, 4))}}`, 4),
    [/"a" occurs twice/],
  ],
  [
    "a field twice",
    fileOf('{"a":{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}}', 4),
    [/"shape" occurs twice/],
  ],
  ["a tensor that is a number", fileOf({ a: 1 }, 0), [/"a" is not an object/]],
  ["an unknown field", fileOf({ a: { ...f32(0, 4), extra: 1 } }, 4), [/unknown field "extra"/]],
  ["an unknown dtype", fileOf({ a: { ...f32(0, 4), dtype: "F31" } }, 4), [/unknown dtype "F31"/]],
  ["a dtype of Object.prototype", fileOf({ a: { ...f32(0, 4), dtype: "constructor" } }, 4), [/unknown dtype/]],
  ["no fields at all", fileOf({ a: {} }, 0), [/unknown dtype \(missing\)/, /shape/, /data_offsets/]],
  ["a negative size", fileOf({ a: f32(0, 4, [-1]) }, 4), [/not a list of sizes/]],
  ["a fractional size", fileOf({ a: f32(0, 4, [1.5]) }, 4), [/not a list of sizes/]],
  ["a size of 2^64", fileOf('{"a":{"dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,4]}}', 4), [/sizes/]],
  ["an overflowing product", fileOf({ a: f32(0, 4, [2 ** 32, 2 ** 32]) }, 4), [/overflowing shape/]],
  ["a shape that is a string", fileOf({ a: f32(0, 4, "1") }, 4), [/not a list of sizes/]],
  ["one offset", fileOf({ a: { ...f32(0, 4), data_offsets: [0] } }, 4), [/not two offsets/]],
  ["a negative offset", fileOf({ a: { ...f32(0, 4), data_offsets: [-4, 0] } }, 4), [/not two offsets/]],
  ["an end before the beginning", fileOf({ a: f32(4, 0, [1]) }, 4), [/ends \(0\) before it begins \(4\)/]],
  ["an end past the file", fileOf({ a: f32(0, 8) }, 4), [/past the 4 bytes/]],
  ["a size that differs from the shape", fileOf({ a: f32(0, 8, [1]) }, 8), [/holds 8 bytes .* need 4/]],
  ["a hole at the start", fileOf({ a: f32(4, 8) }, 8), [/hole of 4 bytes before tensor "a"/]],
  ["a hole between", fileOf({ a: f32(0, 4), b: f32(8, 12) }, 12), [/hole of 4 bytes before tensor "b"/]],
  ["an overlap", fileOf({ a: f32(0, 8), b: f32(4, 12) }, 12), [/"b" overlaps/]],
  ["two tensors in one place", fileOf({ a: f32(0, 4), b: f32(0, 4) }, 4), [/overlaps/]],
  ["trailing bytes", fileOf({ a: f32(0, 4) }, 5), [/1 bytes after the last tensor/]],
  ["data without a tensor", fileOf({}, 1), [/1 bytes after/]],
  ["metadata that is no object", fileOf({ __metadata__: [] }, 0), [/__metadata__/]],
  ["metadata with a number", fileOf({ __metadata__: { a: 1 } }, 0), [/__metadata__/]],
];

for (const [what, bytes, expected] of malformed) {
  test(`rejects ${what}`, async ({ directory }) => {
    const path = join(directory, "bad.safetensors");
    await writeFile(path, bytes);
    const problems = await problemsOf(() => openSafetensors(path));
    assert.is(problems.length, expected.length, problems.join("\n"));
    expected.forEach((pattern, i) => {
      assert.match(problems[i], pattern);
      assert.match(problems[i], /^bad\.safetensors: /);
    });
  });
}

test("lists every bad tensor at once, and at most twenty", async ({ directory }) => {
  const path = join(directory, "bad.safetensors");
  await writeFile(path, fileOf(Object.fromEntries(Array.from({ length: 50 }, (_, i) => [`t${i}`, 0])), 0));
  const problems = await problemsOf(() => openSafetensors(path));
  assert.is(problems.length, 21);
  assert.match(problems[20], /30 more/);
});

test("a missing file is a caller's mistake and does not show its directory", async ({ directory }) => {
  const problems = await problemsOf(() => openSafetensors(join(directory, "none.safetensors")));
  assert.equal(problems, ["none.safetensors: the file does not exist"]);
});

test("a valid file damaged anywhere is read within its bounds or refused", async ({ directory }) => {
  const path = join(directory, "damaged.safetensors");
  await writeSafetensors(path, [
    { name: "a", dtype: "F32", shape: [2, 2], data: new Float32Array([1, 2, 3, 4]) },
    { name: "b", dtype: "U8", shape: [3], data: new Uint8Array([5, 6, 7]) },
  ]);
  const intact = await readFile(path);
  const damage = fc.record({
    cut: fc.nat(intact.length),
    edits: fc.array(fc.tuple(fc.nat(intact.length - 1), fc.nat(255)), { maxLength: 4 }),
  });
  await fc.assert(
    fc.asyncProperty(damage, async ({ cut, edits }) => {
      const bytes = Uint8Array.from(intact);
      for (const [at, value] of edits) bytes[at] = value;
      await writeFile(path, bytes.subarray(0, cut));
      await problemsOf(async () => {
        const file = await openSafetensors(path);
        for (const [name, { byteOffset, byteLength }] of file.tensors) {
          assert.ok(byteOffset + byteLength <= cut);
          await file.read(name);
        }
        return file;
      });
    }),
    { numRuns: 300, seed: 1 },
  );
});

const stored: [SafetensorsDType, WritableTensor["data"] & ArrayBufferView, ArrayLike<number | bigint>][] = [
  ["F32", new Float32Array([0.1, -0, Number.MAX_VALUE]), new Float32Array([0.1, -0, Infinity])],
  ["F64", new Float64Array([0.1, -2, 1e-50]), new Float32Array([0.1, -2, 0])],
  // 1, −2, smallest subnormal, largest finite, −∞, 1/3 rounded to f16
  [
    "F16",
    new Uint16Array([0x3c00, 0xc000, 0x0001, 0x7bff, 0xfc00, 0x3555]),
    [1, -2, 2 ** -24, 65504, -Infinity, 1365 / 4096],
  ],
  ["BF16", new Uint16Array([0x3f80, 0xc000, 0x0001, 0x7f80]), [1, -2, 2 ** -133, Infinity]],
  ["BOOL", new Uint8Array([0, 1]), [0, 1]],
  ["U8", new Uint8Array([0, 255]), [0, 255]],
  ["I8", new Int8Array([-128, 127]), [-128, 127]],
  ["I16", new Int16Array([-32768, 5]), [-32768, 5]],
  ["U16", new Uint16Array([65535]), [65535]],
  ["I32", new Int32Array([-(2 ** 31), 7]), [-(2 ** 31), 7]],
  ["U32", new Uint32Array([2 ** 32 - 1]), [2 ** 32 - 1]],
  ["I64", new BigInt64Array([-(2n ** 63n), 2n ** 53n + 1n]), [-(2n ** 63n), 2n ** 53n + 1n]],
  ["U64", new BigUint64Array([2n ** 64n - 1n]), [2n ** 64n - 1n]],
];

test("every dtype comes back with its values, order and metadata", async ({ directory }) => {
  const path = join(directory, "all.safetensors");
  const tensors = stored.map(([dtype, data, values]) => ({
    name: `é/${dtype}`,
    dtype,
    shape: [1, values.length],
    data,
  }));
  const scalar = { name: "scalar", dtype: "F32", shape: [], data: new Float32Array([3]) } as const;
  const empty = { name: "empty", dtype: "F32", shape: [0, 4], data: new Float32Array(0) } as const;
  const bytes = await writeSafetensors(path, [...tensors, scalar, empty], { step: "5" });
  const raw = await readFile(path);
  assert.is(raw.length, bytes);
  assert.is(Number(raw.readBigUInt64LE()) % 8, 0, "data starts aligned");

  const file = await openSafetensors(path);
  assert.equal([...file.tensors.keys()], [...tensors.map((t) => t.name), "scalar", "empty"]);
  assert.equal(file.metadata, { step: "5" });
  for (const [dtype, , values] of stored) {
    const read = await file.read(`é/${dtype}`);
    assert.ok(read.length === values.length && [...read].every((v, i) => Object.is(v, values[i])), `${dtype}: ${read}`);
  }
  assert.equal(await file.read("scalar"), new Float32Array([3]));
  assert.is((await file.read("empty")).length, 0);
  await file.close();
});

test("conversion in chunks equals conversion at once", async ({ directory }) => {
  const path = join(directory, "long.safetensors");
  const count = (1 << 18) + 3; // one element chunk and a rest
  const bits = Uint16Array.from({ length: count }, (_, i) => i % 0x7c00);
  await writeSafetensors(path, [
    { name: "pad", dtype: "U8", shape: [1], data: new Uint8Array(1) },
    { name: "x", dtype: "F16", shape: [count], data: bits },
  ]);
  const file = await openSafetensors(path);
  const values = (await file.read("x")) as Float32Array;
  for (const i of [0, 1, 0x3c00, count - 4, count - 1]) {
    const [exponent, fraction] = [bits[i] >> 10, bits[i] & 0x3ff];
    const expected = exponent === 0 ? fraction * 2 ** -24 : (1024 + fraction) * 2 ** (exponent - 25);
    assert.is(values[i], expected);
  }
  await file.close();
});

test("readInto refuses a target of another length and an integer tensor", async ({ directory }) => {
  const path = join(directory, "x.safetensors");
  await writeSafetensors(path, [
    { name: "x", dtype: "F32", shape: [2], data: new Float32Array(2) },
    { name: "i", dtype: "I32", shape: [2], data: new Int32Array(2) },
  ]);
  const file = await openSafetensors(path);
  const fails = async (action: Promise<unknown>, pattern: RegExp) =>
    assert.match(
      String(
        await action.then(
          () => "no error",
          (error) => error,
        ),
      ),
      pattern,
    );
  await fails(file.readInto("x", new Float32Array(3)), /2 elements do not fit a target of 3/);
  await fails(file.readInto("i", new Float32Array(2)), /is I32/);
  await fails(file.read("y"), /has no tensor "y"/);
  await file.close();
});

test("a byte that is not as it was written is found in the tensor it belongs to", async ({ directory }) => {
  const path = join(directory, "damaged.safetensors");
  const tensor = (name: string, dtype: "F32" | "F16" | "I64", data: WritableTensor["data"]): WritableTensor => ({
    name,
    dtype,
    shape: [2],
    data,
  });
  const tensors = [
    tensor("f32", "F32", new Float32Array([1, 2])),
    tensor("f16", "F16", new Uint16Array([1, 2])),
    tensor("i64", "I64", new BigInt64Array([1n, 2n])),
  ];
  const bytes = await writeSafetensors(path, tensors);
  const whole = await readFile(path);
  const last = { f32: bytes - 21, f16: bytes - 17, i64: bytes - 1 };
  for (const [name, position] of Object.entries(last)) {
    const damaged = Buffer.from(whole);
    damaged[position] ^= 1;
    await writeFile(path, damaged);
    const file = await openSafetensors(path);
    for (const other of Object.keys(last)) {
      const error = await file.read(other).then(
        () => undefined,
        (thrown) => thrown,
      );
      const expected = `damaged.safetensors: tensor "${name}" is damaged: its bytes are not those written`;
      assert.is(error?.message, other === name ? expected : undefined);
    }
    await file.close();
  }
});

test("the writer refuses data that differs from the shape, and two tensors of one name", async ({ directory }) => {
  const path = join(directory, "x.safetensors");
  const x = { name: "x", dtype: "F32", shape: [2], data: new Float32Array(2) } as const;
  for (const tensors of [[{ ...x, shape: [3] }], [x, x]]) {
    const error = await writeSafetensors(path, tensors).catch((e) => e);
    assert.instance(error, TypeError);
  }
});

test("shards read as one checkpoint", async ({ directory }) => {
  const index = join(directory, "model.safetensors.index.json");
  const tensor = (name: string, value: number): WritableTensor => ({
    name,
    dtype: "F32",
    shape: [1],
    data: () => new Float32Array([value]),
  });
  await writeSafetensors(join(directory, "model-1.safetensors"), [tensor("a", 1), tensor("b", 2)]);
  await writeSafetensors(join(directory, "model-2.safetensors"), [tensor("c", 3)]);
  const weight_map = { a: "model-1.safetensors", b: "model-1.safetensors", c: "model-2.safetensors" };
  await writeFile(index, JSON.stringify({ weight_map }));
  const checkpoint = await openCheckpoint(directory);
  assert.equal([...checkpoint.tensors.keys()].sort(), ["a", "b", "c"]);
  assert.equal(await checkpoint.read("c"), new Float32Array([3]));
  const target = new Float32Array(1);
  await checkpoint.readInto("b", target);
  assert.is(target[0], 2);
  await checkpoint.close();

  const broken: [object, RegExp[]][] = [
    [
      { weight_map: { ...weight_map, d: "model-3.safetensors", e: "model-4.safetensors" } },
      [/model-3.* does not exist/, /model-4.* does not exist/],
    ],
    [{ weight_map: { ...weight_map, z: "model-2.safetensors" } }, [/model-2\.safetensors has no tensor "z"/]],
    [{ weight_map: { a: "../model-1.safetensors" } }, [/not a shard's name/]],
    [{ weight_map: [] }, [/weight_map is not an object/]],
  ];
  for (const [content, expected] of broken) {
    await writeFile(index, JSON.stringify(content));
    const problems = await problemsOf(() => openCheckpoint(directory));
    assert.is(problems.length, expected.length, problems.join("\n"));
    for (const [i, pattern] of expected.entries()) assert.match(problems[i], pattern);
  }
  await rm(index);
  assert.match((await problemsOf(() => openCheckpoint(directory)))[0], /neither/);
});

const FIXTURES = new URL("../../../shared/fixtures/", import.meta.url).pathname;

for (const model of ["switch-tiny", "switch-untied-odd", "mixtral-tiny", "olmoe-tiny", "qwen3moe-tiny"]) {
  test(`reads what the reference implementation wrote for ${model}, and writes it back`, async ({ directory }) => {
    const source = await openCheckpoint(join(FIXTURES, model));
    const copy = join(directory, "model.safetensors");
    const tensors = [...source.tensors].map(([name, { dtype, shape }]) => ({
      name,
      dtype,
      shape,
      data: () => source.read(name),
    }));
    await writeSafetensors(copy, tensors);
    const written = await openSafetensors(copy);
    assert.equal([...written.tensors.keys()], [...source.tensors.keys()]);
    for (const name of source.tensors.keys()) assert.equal(await written.read(name), await source.read(name), name);
    await source.close();
    await written.close();
    const batch = await openSafetensors(join(FIXTURES, model, "batch.safetensors"));
    for (const name of ["input_ids", "attention_mask", "labels"]) {
      assert.instance(await batch.read(name), Int32Array);
    }
    await batch.close();
  });
}

test.run();
