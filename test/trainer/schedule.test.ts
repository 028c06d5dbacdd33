import { test } from "uvu";
import * as assert from "uvu/assert";
import { learningRate } from "../../src/trainer/run/schedule.ts";
import type { OptimizerOptions } from "../../src/trainer/types.ts";

const options = (schedule: OptimizerOptions["schedule"], warmupSteps: number): OptimizerOptions => ({
  algorithm: { kind: "sgd", momentum: 0, weightDecay: 0 },
  learningRate: 0.5,
  maxGradientNorm: 0,
  schedule,
  warmupSteps,
});
const rates = (schedule: OptimizerOptions["schedule"], warmup: number, steps: number, run = steps) =>
  Array.from({ length: run }, (_, step) => learningRate(options(schedule, warmup), step, steps));

const close = (actual: number[], expected: number[]) => {
  assert.is(actual.length, expected.length);
  actual.forEach((rate, step) => {
    assert.ok(Math.abs(rate - expected[step]) <= 1e-15, `step ${step}: ${rate}, expected ${expected[step]}`);
  });
};

const WARMUP = [0.125, 0.25, 0.375, 0.5];
const s2 = Math.SQRT2;

// Four steps of warm-up, eight in all, the rate 0.5.
for (const [schedule, expected] of [
  ["constant", [0.5, 0.5, 0.5, 0.5]],
  ["linear", [0.5, 0.375, 0.25, 0.125]],
  ["cosine", [0.5, 0.25 * (1 + 1 / s2), 0.25, 0.25 * (1 - 1 / s2)]],
  ["inverse_sqrt", [5, 6, 7, 8].map((n) => 0.5 * Math.sqrt(4 / n))],
] as const)
  test(`${schedule}: rises over the warm-up, then follows its formula`, () => {
    close(rates(schedule, 4, 8), [...WARMUP, ...expected]);
  });

// Without warm-up the first step has the full rate.
for (const [schedule, expected] of [
  ["constant", [0.5, 0.5, 0.5]],
  ["linear", [0.5, 0.5 * (2 / 3), 0.5 / 3]],
  ["cosine", [0.5, 0.5 * 0.75, 0.5 * 0.25]],
  ["inverse_sqrt", [0.5, 0.5 / s2, 0.5 / Math.sqrt(3)]],
] as const)
  test(`${schedule}: without warm-up`, () => {
    close(rates(schedule, 0, 3), [...expected]);
  });

test("a run that goes on past its end, or is all warm-up, has a rate that is never negative", () => {
  close(rates("linear", 2, 4, 7), [0.25, 0.5, 0.5, 0.25, 0, 0, 0]);
  close(rates("cosine", 2, 4, 7), [0.25, 0.5, 0.5, 0.25, 0, 0, 0]);
  close(rates("linear", 4, 2, 6), [...WARMUP, 0.5, 0]);
  close(rates("cosine", 4, 4, 5), [...WARMUP, 0.5]);
});

test.run();
