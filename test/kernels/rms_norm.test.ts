import { test } from "uvu";
import * as assert from "uvu/assert";
import {
  rmsNorm,
  rmsNormGradientReference,
  rmsNormInputGradient,
  rmsNormOutput,
  rmsNormReference,
  rmsNormWeightGradient,
  rmsNormWeightGradientScratch,
} from "../../src/kernels/rms_norm.ts";
import { compareWithTolerance } from "../support/gpu.ts";
import { asHalves, fromHalves, HALF_EPSILON, SMALLEST_HALF, toHalves } from "../support/halves.ts";
import { randomValues, runTwice, unwritten } from "./run_twice.ts";

// [rows, columns]
const SIZES = [
  [1, 1],
  [1, 64],
  [13, 7],
  [37, 520],
  [70, 33],
  [131, 12],
];
const EPSILON = 1e-6;
const UNIT = 2 ** -24;

/** f16 keeps out and normalized, and the gradient of out; a column count that it cannot have is left out. */
const STORAGES = [
  ["f32", []],
  ["f16", ["out", "normalized", "dOut"]],
] as const;
const sizesOf = (halves: readonly string[]) => SIZES.filter(([, columns]) => halves.length === 0 || columns % 4 === 0);

for (const target of ["software", "hardware"] as const)
  for (const [storage, halves] of STORAGES) {
    const half = storage === "f16";
    const rounding = half ? HALF_EPSILON : 0;
    const smallest = half ? SMALLEST_HALF : 0;
    const stored = (count: number) => (half ? new Uint32Array(count / 2 + 5).fill(0x12345678) : unwritten(count));
    const read = (x: Float32Array | Uint32Array) =>
      x instanceof Uint32Array ? fromHalves(x.slice(0, -5)) : x.slice(0, -5);
    const behind = (x: Float32Array | Uint32Array) => [...x.slice(-5)];

    test(`${target} ${storage}: forward`, async () => {
      for (const [rows, columns] of sizesOf(halves)) {
        const x = randomValues(rows * columns, 1);
        if (rows > 2) x.fill(0, columns, 2 * columns);
        const weight = randomValues(columns, 2);
        const dims = { rows, columns, epsilon: EPSILON, halves };
        const count = rows * columns;
        const got = await runTwice({
          buffers: {
            x,
            weight,
            out: stored(count),
            normalized: stored(count),
            again: stored(count),
            inverseRms: unwritten(rows),
            alone: stored(count),
            aloneRms: unwritten(rows),
          },
          commands: ({ again, alone, aloneRms, ...names }) => [
            ...rmsNorm(names, dims, target),
            ...rmsNormOutput({ normalized: names.normalized, weight: names.weight, out: again }, dims),
            ...rmsNorm({ x: names.x, weight: names.weight, out: alone, inverseRms: aloneRms }, dims, target),
          ],
        });
        const { out, normalized, inverseRms } = rmsNormReference(x, weight, dims);
        // The sum of squares is positive, so its relative error is that of the summation; inverseSqrt halves it. Then a
        // few roundings (division, square root at 2.5 ulp each, two products). f16 rounds what is kept, and its product
        // with the weight (at most 1) again.
        const relative = (Math.sqrt(columns) + 12) * UNIT;
        const label = `${rows}×${columns}`;
        compareWithTolerance(
          got.inverseRms,
          [...inverseRms, ...unwritten(0)],
          (i) => relative * (inverseRms[i] ?? 0),
          label,
        );
        const near = (actual: Float32Array, expected: Float64Array, roundings: number, name: string) =>
          compareWithTolerance(
            actual,
            expected,
            (i) => (relative + roundings * 1.001 * rounding) * Math.abs(expected[i]) + roundings * smallest,
            `${name} ${label}`,
          );
        near(read(got.normalized), normalized, 1, "normalized");
        near(read(got.out), out, 2, "out");
        near(read(got.alone), out, 1, "out alone");
        assert.equal(got.again, got.out, "made again with the same bits");
        for (const x of [got.out, got.normalized, got.again]) assert.equal(behind(x), behind(stored(0)));
      }
    });

    test(`${target} ${storage}: gradients`, async () => {
      for (const [rows, columns] of sizesOf(halves)) {
        const x = randomValues(rows * columns, 3);
        const weight = randomValues(columns, 4);
        const dims = { rows, columns, halves };
        const forward = rmsNormReference(x, weight, { ...dims, epsilon: EPSILON });
        const inverseRms = Float32Array.from(forward.inverseRms);
        const held = half ? asHalves : (values: ArrayLike<number>) => Float32Array.from(values);
        const given = half ? toHalves : held;
        const [normalized, dOut] = [held(forward.normalized), held(randomValues(rows * columns, 5))];
        const got = await runTwice({
          buffers: {
            normalized: given(normalized),
            weight,
            dOut: given(dOut),
            inverseRms,
            scratch: unwritten(rmsNormWeightGradientScratch(rows, columns)),
            dX: unwritten(rows * columns),
            base: randomValues(rows * columns, 6),
            added: unwritten(rows * columns),
            dWeight: unwritten(columns),
          },
          commands: ({ normalized, weight, dOut, inverseRms, scratch, dX, base, added, dWeight }) => [
            ...rmsNormInputGradient({ normalized, weight, inverseRms, dOut, dX }, dims, target),
            ...rmsNormInputGradient({ normalized, weight, inverseRms, dOut, base, dX: added }, dims, target),
            ...rmsNormWeightGradient({ normalized, dOut, scratch, dWeight }, dims, target),
          ],
        });
        const expected = rmsNormGradientReference(normalized, weight, inverseRms, dOut, dims);
        // With every sign positive in both sums, the reference gives Σ|terms|: dWeight directly, and for dX the bound
        // |g| + |along · normalized|, which is the value for absolute values with the second term's sign turned.
        const absolute = [normalized, weight, dOut].map((v) => v.map(Math.abs));
        const sums = rmsNormGradientReference(absolute[0], absolute[1], inverseRms, absolute[2], dims);
        const dXTolerance = sums.dX.map((difference, i) => {
          const g = inverseRms[Math.floor(i / columns)] * absolute[1][i % columns] * absolute[2][i];
          return (2 * Math.sqrt(columns) + 8) * UNIT * (2 * g - difference);
        });
        const label = `${rows}×${columns}`;
        compareWithTolerance(got.dX, [...expected.dX, ...unwritten(0)], (i) => dXTolerance[i] ?? 0, `dX ${label}`);
        compareWithTolerance(
          got.dWeight,
          [...expected.dWeight, ...unwritten(0)],
          (i) => (2 * Math.sqrt(rows) + 4) * UNIT * (sums.dWeight[i] ?? 0),
          `dWeight ${label}`,
        );
        // One rounding more, or one less where a product and the sum are one operation.
        const based = [...got.dX].map((x, i) => (i < got.base.length ? x + got.base[i] : x));
        const sumTolerance = (i: number) =>
          i < got.base.length ? UNIT * (Math.abs(based[i]) + Math.abs(got.dX[i])) : 0;
        compareWithTolerance(got.added, based, sumTolerance, `added to what there was, ${label}`);
        assert.equal([...got.scratch.slice(-5)], [...unwritten(0)]);
      }
    });
  }

test("the reference gradients are the derivatives of the reference", () => {
  const dims = { rows: 2, columns: 3, epsilon: 0.1 };
  const [x, weight, dOut] = [6, 3, 6].map((count, seed) => Array.from(randomValues(count, seed + 7)));
  const loss = (x: number[], weight: number[]): number =>
    rmsNormReference(x, weight, dims).out.reduce((sum, y, i) => sum + y * dOut[i], 0);
  const slope = (of: (delta: number) => number): number => (of(1e-5) - of(-1e-5)) / 2e-5;
  const { normalized, inverseRms } = rmsNormReference(x, weight, dims);
  const { dX, dWeight } = rmsNormGradientReference(normalized, weight, inverseRms, dOut, dims);
  const moved = (v: number[], i: number, delta: number): number[] => v.map((y, j) => (j === i ? y + delta : y));
  const numericX = x.map((_, i) => slope((delta) => loss(moved(x, i, delta), weight)));
  const numericWeight = weight.map((_, i) => slope((delta) => loss(x, moved(weight, i, delta))));
  compareWithTolerance(dX, numericX, () => 1e-8, "dX");
  compareWithTolerance(dWeight, numericWeight, () => 1e-8, "dWeight");
});

test.run();
