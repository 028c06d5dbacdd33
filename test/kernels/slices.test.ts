// The table of slices, by the simplest update over it: plain gradient descent.

import { test } from "uvu";
import * as assert from "uvu/assert";
import { sgd } from "../../src/kernels/sgd.ts";
import { type Slice, sliceTables } from "../../src/kernels/slices.ts";
import { compareWithTolerance } from "../support/gpu.ts";
import { randomValues, runTwice, SENTINEL, unwritten } from "./run_twice.ts";

// [elements, whether it begins where a vec4f does]: of one block and of several, the ends of which are no block's.
const SIZES: [number, boolean][] = [
  [5000, true],
  [1, true],
  [0, true],
  [1027, true],
  [8192, true],
  [64, false],
  [4, true],
  [2050, false],
];

/** Slices with something between any two; gradients in the opposite order. */
function slicesOf(): { slices: Slice[]; length: number } {
  const places: number[] = [];
  let length = 4;
  for (const [size, aligned] of SIZES) {
    length = Math.ceil(length / 4) * 4 + (aligned ? 0 : 1);
    places.push(length);
    length += size + 4;
  }
  length = Math.ceil(length / 4) * 4;
  const slices = SIZES.map(([size], i) => {
    const parameter = places[i];
    const end = places[i] + Math.ceil(size / 4) * 4;
    return { parameter, gradient: length - end, size, scalar: SIZES.length - i };
  });
  return { slices, length };
}

test("every slice is updated with its scalars, and nothing between them", async () => {
  const { slices, length } = slicesOf();
  const tables = sliceTables(slices);
  assert.equal(
    tables.map(({ value, sliceCount, blockCount, elements }) => [value, sliceCount, blockCount, elements]),
    [
      ["vec4f", 3, 2 + 2 + 1, 5000 + 8192 + 4],
      ["f32", 4, 1 + 2 + 1 + 3, 1 + 1027 + 64 + 2050],
    ],
  );
  const parameter = new Float32Array(length).fill(SENTINEL);
  const gradient = new Float32Array(length).fill(Number.NaN);
  const scalars = unwritten(4 * (SIZES.length + 1));
  const expected = Float64Array.from(parameter);
  const tolerance = new Float64Array(length);
  for (const [i, slice] of slices.entries()) {
    const rate = (i + 1) / 8;
    scalars.set([rate, 0], 4 * slice.scalar);
    parameter.set(randomValues(slice.size, i), slice.parameter);
    gradient.set(randomValues(slice.size, 100 + i), slice.gradient);
    for (let k = 0; k < slice.size; k++) {
      const [p, g] = [parameter[slice.parameter + k], gradient[slice.gradient + k]];
      expected[slice.parameter + k] = p - rate * g;
      // Two roundings: the product and the difference.
      tolerance[slice.parameter + k] = 2 ** -24 * (2 * Math.abs(rate * g) + Math.abs(p));
    }
  }
  const [whole, other] = tables;
  const got = await runTwice({
    buffers: { parameter, gradient, wholes: whole.words, others: other.words, scalars, clip: Float32Array.of(1, 1, 1) },
    commands: ({ wholes, others, ...names }) => [
      ...sgd({ ...names, slices: wholes }, whole, { momentum: 0 }),
      ...sgd({ ...names, slices: others }, other, { momentum: 0 }),
    ],
  });
  compareWithTolerance(got.parameter, expected, (i) => tolerance[i], "parameter");
});

test("no slices need no table", () => {
  assert.equal(sliceTables([{ parameter: 0, gradient: 0, size: 0, scalar: 0 }]), []);
});

test.run();
