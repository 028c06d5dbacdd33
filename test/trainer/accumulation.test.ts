import { mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "uvu";
import * as assert from "uvu/assert";
import { openRun } from "../../src/trainer/engine.ts";
import { DROPLESS } from "../../src/trainer/run/options.ts";
import type { Run } from "../../src/trainer/run/run.ts";
import type { RunConfig, StepMetrics } from "../../src/trainer/types.ts";
import { testDevice } from "../support/gpu.ts";
import { plan, tinyData, tinyModel, tinyRun } from "../support/tiny_model.ts";

const device = await testDevice();
const model = await tinyModel();
const data = await tinyData();
/** Nothing that depends on which examples share a batch. */
const QUIET: Partial<RunConfig> = {
  dropout: 0,
  losses: { balanceCoefficient: 0, zCoefficient: 0 },
  routing: DROPLESS,
};

const open = (changes: Partial<RunConfig>, resumeFrom?: string): Promise<Run> =>
  openRun(device, tinyRun(model, data, changes), { resumeFrom });

async function train(run: Run, steps: number): Promise<StepMetrics[]> {
  const metrics: StepMetrics[] = [];
  for (let i = 0; i < steps; i++) metrics.push(await run.trainStep());
  return metrics;
}

for (const preset of ["all", "moe"] as const)
  test(`${preset}: three batches of two make the step of one batch of six`, async () => {
    const trainable = plan({ preset });
    const whole = await open({ ...QUIET, trainable, batchSize: 6 });
    const parts = await open({ ...QUIET, trainable, batchSize: 2, accumulationSteps: 3 });
    const expected = await train(whole, 4);
    const actual = await train(parts, 4);
    actual.forEach((metrics, step) => {
      assert.is(metrics.tokens, expected[step].tokens);
      // Equal but for the order of the sums, which the first steps' Adam, dividing by |gradient|, magnifies.
      for (const key of ["loss", "gradientNorm"] as const) {
        const error = Math.abs(metrics[key] - expected[step][key]) / expected[step][key];
        assert.ok(error < 1e-4, `${key} of step ${step}: ${metrics[key]} is not ${expected[step][key]}`);
      }
    });
    whole.close();
    parts.close();
  });

test("router losses are means over a step's batches, and part of its total", async () => {
  const run = await open({ dropout: 0, batchSize: 2, accumulationSteps: 4 });
  const [{ loss, totalLoss, layers }] = await train(run, 1);
  for (const layer of layers)
    assert.ok(layer.balanceLoss >= 0.9 && layer.balanceLoss <= 4, "of the size of one batch's");
  assert.ok(totalLoss > loss && totalLoss < loss + 1e-2 * 4 * layers.length + 1);
  run.close();
});

test("planned bytes are what is allocated, and an interrupted run goes on with the same bits", async () => {
  const changes = { batchSize: 2, accumulationSteps: 2, dropout: 0.1 };
  const before = device.allocatedBytes;
  const unbroken = await open(changes);
  assert.is(device.allocatedBytes - before, unbroken.cost.peakBytes);
  const expected = (await train(unbroken, 5)).map((m) => m.loss);
  unbroken.close();
  const first = await open(changes);
  const losses = (await train(first, 2)).map((m) => m.loss);
  const directory = await mkdtemp(join(tmpdir(), "thaw-checkpoint-"));
  await first.saveCheckpoint(directory);
  first.close();
  const second = await open(changes, directory);
  losses.push(...(await train(second, 3)).map((m) => m.loss));
  second.close();
  assert.equal(losses, expected);
  assert.ok(new Set(losses).size === losses.length, "each step has batches of its own");
});

test.run();
