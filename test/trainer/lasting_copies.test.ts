// Copies of weights that last are never stale: a run goes on from its own checkpoint, whose opening rounds them all anew, with
// the same bits, whatever had happened to its weights before.

import { mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "uvu";
import * as assert from "uvu/assert";
import { openRun } from "../../src/trainer/engine.ts";
import type { Run } from "../../src/trainer/run/run.ts";
import type { OptimizerAlgorithm, RunConfig } from "../../src/trainer/types.ts";
import { testDevice } from "../support/gpu.ts";
import { plan, tinyData, tinyModel, tinyRun } from "../support/tiny_model.ts";

const device = await testDevice();
const model = await tinyModel({ d_model: 16, d_ff: 24, d_kv: 8, num_heads: 2, vocab_size: 40 });
const data = await tinyData();

const ALGORITHMS: OptimizerAlgorithm[] = [
  { kind: "adamw", beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0.01 },
  { kind: "sgd", momentum: 0.9, weightDecay: 0.01 },
  {
    kind: "adafactor",
    decayRate: 0.8,
    clipThreshold: 1,
    epsilon: 1e-30,
    minParameterScale: 1e-3,
    minDimensionToFactor: 8,
    weightDecay: 0,
  },
];

const open = (algorithm: OptimizerAlgorithm, changes: Partial<RunConfig> = {}, resumeFrom?: string): Promise<Run> => {
  const config = tinyRun(model, data, { precision: "mixed", ...changes });
  // A rate at which a step moves weights by far more than f16 rounds them by.
  return openRun(
    device,
    { ...config, optimizer: { ...config.optimizer, algorithm, learningRate: 0.05 } },
    { resumeFrom },
  );
};

async function continued(run: Run, again: (checkpoint: string) => Promise<Run>): Promise<void> {
  const checkpoint = await mkdtemp(join(tmpdir(), "thaw-checkpoint-"));
  await run.saveCheckpoint(checkpoint);
  const other = await again(checkpoint);
  const evaluated = async (of: Run) => (await of.evaluate(data, "train", 8)).loss;
  assert.is(await evaluated(run), await evaluated(other));
  for (let i = 0; i < 2; i++) {
    const [expected, actual] = [await other.trainStep(), await run.trainStep()];
    assert.equal([actual.loss, actual.gradientNorm], [expected.loss, expected.gradientNorm]);
  }
  other.close();
  run.close();
}

for (const algorithm of ALGORITHMS)
  test(`${algorithm.kind}: a step, a live change, experts apart and a caller's own loop leave no copy behind`, async () => {
    const run = await open(algorithm);
    await run.trainStep();
    await run.setTrainable(plan({ preset: "attention" }));
    await run.trainStep();
    await run.setTrainable(plan({ preset: "ffn", add: [{ kinds: ["expert"], stacks: [], experts: [1] }] }));
    await run.trainStep();
    await run.forwardBackward([{ inputIds: [2, 3, 1], targetIds: [2, 1] }]);
    await run.optimStep();
    await run.endDriving();
    await run.trainStep();
    await continued(run, (checkpoint) => open(algorithm, {}, checkpoint));
  });

test("batches that add up: the copies follow the one update", async () => {
  const [adamw] = ALGORITHMS;
  const run = await open(adamw, { accumulationSteps: 2 });
  await run.trainStep();
  await continued(run, (checkpoint) => open(adamw, { accumulationSteps: 2 }, checkpoint));
});

test.run();
