import { test } from "uvu";
import * as assert from "uvu/assert";
import { jitter, jitterReference } from "../../src/kernels/jitter.ts";
import { packStepScalars } from "../../src/kernels/step_scalars.ts";
import { compareWithTolerance } from "../support/gpu.ts";
import { randomValues, runTwice, unwritten } from "./run_twice.ts";

const random = { seed: 7, step: 3 };

for (const count of [1, 63, 65, 1000])
  test(`jitter multiplies ${count} elements by the reference's noise`, async () => {
    const dims = { count, epsilon: 0.01, use: 5 };
    const x = randomValues(count, 1);
    const scalars = packStepScalars({ ...random, lossScale: 1, inverseTargetCount: 1, maxGradientNorm: 0 });
    const step = new Uint32Array(scalars.buffer);
    const { out } = await runTwice({
      buffers: { x, step, out: unwritten(count, 4) },
      commands: (names) => jitter(names, dims),
    });
    const expected = jitterReference(x, dims, random);
    // u is exact; 2u - 1, its product with epsilon, the sum and the last product each round once.
    compareWithTolerance(out.subarray(0, count), expected, (i) => 4 * 2 ** -24 * Math.abs(expected[i]));
    assert.ok(count < 60 || expected.some((value, i) => value !== x[i]), "noise must do something");
    assert.ok(expected.every((value, i) => Math.abs(value - x[i]) <= 0.01 * Math.abs(x[i]) + 1e-9));
  });

test.run();
