import { test } from "uvu";
import * as assert from "uvu/assert";
import { dropout, dropoutReference, residualDropout } from "../../src/kernels/dropout.ts";
import { packStepScalars } from "../../src/kernels/step_scalars.ts";
import { compareWithTolerance } from "../support/gpu.ts";
import { randomValues, runTwice, unwritten } from "./run_twice.ts";

const scalars = (seed: number, step: number): Uint32Array =>
  new Uint32Array(packStepScalars({ seed, step, lossScale: 1, inverseTargetCount: 1, maxGradientNorm: 0 }).buffer);

const UNIT = 2 ** -24;

test("drops exactly the elements whose random number is below the rate, and scales the others", async () => {
  for (const count of [1, 2, 255, 1027, 1028])
    for (const rate of [0, 0.1, 0.5, 0.95]) {
      const at = { seed: 77, step: 5 };
      const dims = { count, rate, use: 3 };
      const x = randomValues(count, 1);
      const residual = randomValues(count, 2);
      const got = await runTwice({
        buffers: { x, residual, step: scalars(at.seed, at.step), out: unwritten(count), sum: unwritten(count) },
        commands: ({ x, residual, step, out, sum }) => [
          ...dropout({ x, step, out }, dims),
          ...residualDropout({ residual, x, step, out: sum }, dims),
        ],
      });
      const expected = dropoutReference(x, dims, at);
      const label = `${count} at rate ${rate}`;
      // 1 / (1 - rate) is rounded once, the product once; the sum once more.
      compareWithTolerance(
        got.out,
        [...expected, ...unwritten(0)],
        (i) => 2 * UNIT * Math.abs(expected[i] ?? 0),
        label,
      );
      compareWithTolerance(
        got.sum,
        [...expected.map((v, i) => v + residual[i]), ...unwritten(0)],
        (i) => (i < count ? UNIT * (2 * Math.abs(expected[i]) + Math.abs(expected[i] + residual[i])) : 0),
        `residual, ${label}`,
      );
    }
});

test("the mask changes with seed, step and use, and its share is the rate", async () => {
  const count = 4096;
  const rate = 0.25;
  const masks = new Set<string>();
  for (const [seed, step, use] of [
    [1, 1, 1],
    [2, 1, 1],
    [1, 2, 1],
    [1, 1, 2],
  ]) {
    const got = await runTwice({
      buffers: { x: new Float32Array(count).fill(1), step: scalars(seed, step), out: unwritten(count) },
      commands: (names) => dropout(names, { count, rate, use }),
    });
    const mask = got.out.slice(0, count).map((v) => (v === 0 ? 1 : 0));
    const share = mask.reduce((a, b) => a + b) / count;
    // Five standard errors of a share.
    assert.ok(Math.abs(share - rate) < 5 * Math.sqrt((rate * (1 - rate)) / count), `share ${share}`);
    masks.add(mask.join(""));
  }
  assert.is(masks.size, 4);
});

test.run();
