import { test } from "uvu";
import * as assert from "uvu/assert";
import { sgd, sgdReference } from "../../src/kernels/sgd.ts";
import { sliceTables } from "../../src/kernels/slices.ts";
import { compareWithTolerance } from "../support/gpu.ts";
import { randomValues, runTwice, unwritten } from "./run_twice.ts";

const UNIT = 2 ** -24;

// [slices, their size, trainable slices in slot order]
const CASES: [number, number, number[]][] = [
  [1, 1, [0]],
  [1, 203, [0]],
  [4, 12, [0, 1, 2, 3]],
  [5, 24, [3, 0]],
  [3, 7, [2]],
];

for (const momentum of [0, Math.fround(0.9)])
  for (const [slices, sliceSize, trainable] of CASES) {
    const [table] = sliceTables(
      trainable.map((slice, s) => ({
        parameter: slice * sliceSize,
        gradient: s * sliceSize,
        size: sliceSize,
        scalar: 2 + s,
      })),
    );
    const perSlot = trainable.map((_, s) => ({
      learningRate: Math.fround(0.1 * (s + 1)),
      weightDecay: Math.fround(0.01 / (s + 1)),
      momentum,
    }));
    const scalars = unwritten(4 * (2 + trainable.length), 8);
    perSlot.forEach(({ learningRate, weightDecay }, s) => {
      scalars.set([learningRate, weightDecay], 4 * (2 + s));
    });
    const padded = (values: Float32Array): Float32Array => Float32Array.of(...values, ...unwritten(0));
    const parameter = padded(randomValues(slices * sliceSize, 1));
    const gradient = padded(randomValues(trainable.length * sliceSize, 2));
    const m = padded(randomValues(trainable.length * sliceSize, 3));
    const run = async (clip: Float32Array) => {
      const common = { parameter, gradient, slices: table.words, scalars, clip };
      if (momentum === 0)
        return { m, ...(await runTwice({ buffers: common, commands: (names) => sgd(names, table, { momentum }) })) };
      return runTwice({ buffers: { ...common, m }, commands: (names) => sgd(names, table, { momentum }) });
    };
    const label = `momentum ${momentum > 0 ? "0.9" : "0"}, ${slices}×${sliceSize}, slices ${trainable}`;

    test(`${label}: steps the trainable slices and no other bit`, async () => {
      const clip = Math.fround(0.3);
      const got = await run(Float32Array.of(7, clip, 1));
      const expected = { parameter: Float64Array.from(parameter), m: Float64Array.from(m) };
      const tolerance = { parameter: new Float64Array(parameter.length), m: new Float64Array(m.length) };
      trainable.forEach((slice, s) => {
        const p = expected.parameter.subarray(slice * sliceSize, (slice + 1) * sliceSize);
        const moment = expected.m.subarray(s * sliceSize, (s + 1) * sliceSize);
        const g = Array.from(gradient.slice(s * sliceSize, (s + 1) * sliceSize), (x) => x * clip);
        for (let i = 0; i < sliceSize; i++) {
          // One unit of the terms per rounding: three in m (the product g, momentum, their sum), five more in p.
          const terms = Math.abs(momentum * moment[i]) + Math.abs(g[i]);
          if (momentum > 0) tolerance.m[s * sliceSize + i] = 3 * UNIT * terms;
          tolerance.parameter[slice * sliceSize + i] =
            UNIT * (4 * Math.abs(p[i]) + 6 * perSlot[s].learningRate * terms);
        }
        sgdReference(p, g, momentum > 0 ? moment : undefined, perSlot[s]);
      });
      compareWithTolerance(got.parameter, expected.parameter, (i) => tolerance.parameter[i], "parameter");
      compareWithTolerance(got.m, expected.m, (i) => tolerance.m[i], "m");
    });

    test(`${label}: a gradient that is not finite changes nothing`, async () => {
      const got = await run(Float32Array.of(Number.NaN, 0, 0));
      assert.equal(got.parameter, parameter);
      assert.equal(got.m, m);
    });
  }

test.run();
