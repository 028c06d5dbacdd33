import { test } from "uvu";
import * as assert from "uvu/assert";
import { type MatmulDims, matmul, matmulReference, matmulScratch } from "../../src/kernels/matmul.ts";
import { compareWithTolerance } from "../support/gpu.ts";
import { randomValues, runTwice, unwritten } from "./run_twice.ts";

// [m, n, k, why]
const SIZES: [number, number, number, string][] = [
  [16, 24, 32, "vectors, whole tiles"],
  [20, 12, 28, "vectors, tiles cut on both sides"],
  [13, 11, 7, "no vectors"],
  [70, 67, 33, "more than one hardware tile, no multiples"],
  [1, 20, 12, "one row"],
  [3, 9, 5, "few rows"],
  [4, 8, 64, "few rows, vectors"],
  [37, 4, 16, "four columns"],
  [9, 1, 6, "one column"],
  [1, 1, 1, "one element"],
  [5, 6, 0, "an empty sum"],
];

const OPTIONS: Partial<MatmulDims>[] = [
  {},
  { alpha: -0.5, relu: true },
  { accumulate: true, alpha: 3, aOffset: 4, bOffset: 8, outOffset: 4 },
  { accumulate: true, relu: true, aOffset: 3, bOffset: 1, outOffset: 2 },
];

/** A k-term f32 sum: c·sqrt(k)·2^-24·Σ|ab| with c = 2, and a few roundings for alpha, the addition and the store. */
function tolerances(a: Float32Array, b: Float32Array, out: Float32Array, dims: MatmulDims): Float64Array {
  const { alpha = 1 } = dims;
  const magnitude = matmulReference(a.map(Math.abs), b.map(Math.abs), out.map(Math.abs), {
    ...dims,
    alpha: Math.abs(alpha),
    relu: false,
  });
  return magnitude.map((x) => (2 * Math.sqrt(dims.k) + 4) * 2 ** -24 * x);
}

for (const target of ["software", "hardware"] as const)
  for (const transposeA of [false, true])
    for (const transposeB of [false, true])
      test(`${target}, a ${transposeA ? "transposed" : "as is"}, b ${transposeB ? "transposed" : "as is"}`, async () => {
        for (const [index, [m, n, k, why]] of SIZES.entries())
          for (const options of index < 2 ? OPTIONS : [OPTIONS[index % OPTIONS.length]]) {
            const dims: MatmulDims = { m, n, k, transposeA, transposeB, ...options };
            const a = randomValues(m * k + (dims.aOffset ?? 0), 1);
            const b = randomValues(k * n + (dims.bOffset ?? 0), 2);
            const out = unwritten(m * n + (dims.outOffset ?? 0));
            if (dims.accumulate) out.set(randomValues(m * n, 3), dims.outOffset);
            const got = await runTwice({ buffers: { a, b, out }, commands: (names) => matmul(names, dims, target) });
            const tolerance = tolerances(a, b, out, dims);
            const expected = matmulReference(a, b, out, dims);
            compareWithTolerance(got.out, expected, (i) => tolerance[i], `${m}×${n}×${k} (${why})`);
          }
      });

test("a large output takes the 128×128 hardware tile", async () => {
  const dims = { m: 1050, n: 2061, k: 3, transposeA: false, transposeB: false };
  const a = randomValues(dims.m * dims.k, 4);
  const b = randomValues(dims.k * dims.n, 5);
  const out = unwritten(dims.m * dims.n);
  const got = await runTwice({ buffers: { a, b, out }, commands: (names) => matmul(names, dims, "hardware") });
  const tolerance = tolerances(a, b, out, dims);
  compareWithTolerance(got.out, matmulReference(a, b, out, dims), (i) => tolerance[i]);
});

for (const [m, n, k, accumulate] of [
  [40, 24, 1100, false],
  [130, 129, 513, true],
] as const)
  test(`${m}×${n} outputs of a sum of ${k} terms are summed in stretches`, async () => {
    const dims = { m, n, k, transposeA: true, transposeB: false, accumulate, alpha: 0.5 };
    const elements = matmulScratch(dims, "hardware");
    assert.ok(elements >= 2 * m * n, "k is split");
    assert.is(matmulScratch(dims, "software"), 0);
    const a = randomValues(m * k, 6);
    const b = randomValues(k * n, 7);
    const out = accumulate ? randomValues(m * n, 8) : unwritten(m * n);
    const buffers = { a, b, out, scratch: unwritten(elements) };
    const got = await runTwice({ buffers, commands: (names) => matmul(names, dims, "hardware") });
    const tolerance = tolerances(a, b, out, dims);
    compareWithTolerance(got.out, matmulReference(a, b, out, dims), (i) => tolerance[i]);
  });

test("there is no scratch where a product fills a GPU, or its sum is short", () => {
  for (const [m, n, k] of [
    [4096, 4096, 4096],
    [64, 64, 500],
    [5, 6, 0],
  ])
    assert.is(matmulScratch({ m, n, k, transposeA: true, transposeB: false }, "hardware"), 0);
});

test.run();
