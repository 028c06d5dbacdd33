import { test } from "uvu";
import * as assert from "uvu/assert";
import {
  rmsNorm,
  rmsNormGradientReference,
  rmsNormInputGradient,
  rmsNormReference,
  rmsNormWeightGradient,
  rmsNormWeightGradientScratch,
} from "../../src/kernels/rms_norm.ts";
import { compareWithTolerance } from "../support/gpu.ts";
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

for (const target of ["software", "hardware"] as const) {
  test(`${target}: forward`, async () => {
    for (const [rows, columns] of SIZES) {
      const x = randomValues(rows * columns, 1);
      if (rows > 2) x.fill(0, columns, 2 * columns);
      const weight = randomValues(columns, 2);
      const dims = { rows, columns, epsilon: EPSILON };
      const got = await runTwice({
        buffers: { x, weight, out: unwritten(rows * columns), inverseRms: unwritten(rows) },
        commands: (names) => rmsNorm(names, dims, target),
      });
      const { out, inverseRms } = rmsNormReference(x, weight, dims);
      // The sum of squares is positive, so its relative error is that of the summation; inverseSqrt halves it. Then a
      // few roundings (division, square root at 2.5 ulp each, two products).
      const relative = (Math.sqrt(columns) + 12) * UNIT;
      const label = `${rows}×${columns}`;
      compareWithTolerance(
        got.inverseRms,
        [...inverseRms, ...unwritten(0)],
        (i) => relative * (inverseRms[i] ?? 0),
        label,
      );
      compareWithTolerance(got.out, [...out, ...unwritten(0)], (i) => relative * Math.abs(out[i] ?? 0), label);
    }
  });

  test(`${target}: gradients`, async () => {
    for (const [rows, columns] of SIZES) {
      const x = randomValues(rows * columns, 3);
      const weight = randomValues(columns, 4);
      const dOut = randomValues(rows * columns, 5);
      const dims = { rows, columns };
      const inverseRms = Float32Array.from(rmsNormReference(x, weight, { ...dims, epsilon: EPSILON }).inverseRms);
      const got = await runTwice({
        buffers: {
          x,
          weight,
          dOut,
          inverseRms,
          scratch: unwritten(rmsNormWeightGradientScratch(rows, columns)),
          dX: unwritten(rows * columns),
          dWeight: unwritten(columns),
        },
        commands: ({ x, weight, dOut, inverseRms, scratch, dX, dWeight }) => [
          ...rmsNormInputGradient({ x, weight, inverseRms, dOut, dX }, dims, target),
          ...rmsNormWeightGradient({ x, inverseRms, dOut, scratch, dWeight }, dims, target),
        ],
      });
      const expected = rmsNormGradientReference(x, weight, inverseRms, dOut, dims);
      // With every sign positive in both sums, the reference gives Σ|terms|: dWeight directly, and for dX the bound
      // |g| + |along · x|, which is the value for x → |x|, dOut → |dOut| with the second term's sign turned.
      const absolute = [x, weight, dOut].map((v) => v.map(Math.abs));
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
  const { dX, dWeight } = rmsNormGradientReference(x, weight, rmsNormReference(x, weight, dims).inverseRms, dOut, dims);
  const moved = (v: number[], i: number, delta: number): number[] => v.map((y, j) => (j === i ? y + delta : y));
  const numericX = x.map((_, i) => slope((delta) => loss(moved(x, i, delta), weight)));
  const numericWeight = weight.map((_, i) => slope((delta) => loss(x, moved(weight, i, delta))));
  compareWithTolerance(dX, numericX, () => 1e-8, "dX");
  compareWithTolerance(dWeight, numericWeight, () => 1e-8, "dWeight");
});

test.run();
