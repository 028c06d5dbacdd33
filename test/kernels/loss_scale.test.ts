import { test } from "uvu";
import * as assert from "uvu/assert";
import {
  FIRST_LOSS_SCALE,
  updateLossScale,
  updateLossScaleReference,
  useLossScale,
} from "../../src/kernels/loss_scale.ts";
import { packStepScalars } from "../../src/kernels/step_scalars.ts";
import { runTwice } from "./run_twice.ts";

const CASES: { why: string; state: [number, number, number]; finite: boolean; scale: number }[] = [
  { why: "a good step", state: [FIRST_LOSS_SCALE, 5, 0], finite: true, scale: FIRST_LOSS_SCALE },
  { why: "the last good step before growth", state: [1024, 1998, 0], finite: true, scale: 1024 },
  { why: "growth", state: [1024, 1999, 0], finite: true, scale: 2048 },
  { why: "no growth beyond the largest", state: [2 ** 24, 1999, 0], finite: true, scale: 2 ** 24 },
  { why: "an overflow", state: [1024, 1999, 0], finite: false, scale: 512 },
  { why: "an overflow at the smallest", state: [1, 7, 0], finite: false, scale: 1 },
];

for (const { why, state, finite, scale } of CASES)
  test(`${why}: from ${state[0]} to ${scale}`, async () => {
    const norm = Float32Array.of(finite ? 2 : Number.POSITIVE_INFINITY, 1, Number(finite));
    const got = await runTwice({ buffers: { norm, state: Float32Array.from(state) }, commands: updateLossScale });
    assert.equal([...got.state], updateLossScaleReference(state, finite));
    assert.is(got.state[0], scale);
    assert.is(got.state[2], state[0]);
  });

test("the step scalars take the scale and keep the rest", async () => {
  const scalars = { step: 7, seed: 9, lossScale: 1, inverseTargetCount: 0.25, maxGradientNorm: 3 };
  const step = new Float32Array(packStepScalars(scalars).buffer);
  const got = await runTwice({ buffers: { step, state: Float32Array.of(512, 0, 0) }, commands: useLossScale });
  assert.equal(new Uint8Array(got.step.buffer), packStepScalars({ ...scalars, lossScale: 512 }));
});

test.run();
