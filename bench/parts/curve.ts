// Whether mixed precision learns what f32 learns: loss curves of the same model on the same batches.

import type { Bench, Part, Scale } from "../part.ts";
import { openRandomRun, type RunShape, randomModel } from "../random_model.ts";
import { train } from "../steps.ts";
import { median } from "../timing.ts";
import { MODELS } from "./model.ts";

/** A small batch: f32 takes its time. */
const RUNS: Readonly<Record<Scale, { shape: RunShape; steps: number }>> = {
  small: { shape: { batch: 2, input: 16, target: 8 }, steps: 20 },
  gpu: { shape: { batch: 8, input: 128, target: 32 }, steps: 200 },
};
/** Issue: within 1 %. Losses of single batches are compared, so this bounds the median. */
const ALLOWED = 0.01;

async function measure(bench: Bench): Promise<void> {
  const device = await bench.device();
  const { shape, steps } = RUNS[bench.scale];
  const source = randomModel(MODELS[bench.scale].config);
  const losses: Record<string, number[]> = {};
  let overflowed = 0;
  for (const precision of ["mixed", "f32"] as const) {
    const run = await openRandomRun(device, source, shape, { precision, preset: "all" });
    const curve = await train(run, steps);
    losses[precision] = curve.map((m) => m.loss);
    overflowed += curve.filter((m) => m.lossScale?.overflowed).length;
    run.close();
  }
  const differences = losses.f32.map((loss, i) => Math.abs(losses.mixed[i] / loss - 1));
  const typical = median(differences);
  bench.report({
    name: `${steps} steps, all`,
    figures: {
      "first loss": losses.f32[0],
      "last loss, f32": losses.f32[steps - 1],
      "last loss, mixed": losses.mixed[steps - 1],
      "median difference, %": 100 * typical,
      "largest difference, %": 100 * Math.max(...differences),
      "steps skipped": overflowed,
    },
    wrong: !(typical <= ALLOWED),
  });
}

export const curve: Part = {
  name: "curve",
  title: "loss of mixed precision against f32, same model and batches; differences relative, step by step",
  seconds: { small: 60, gpu: 120 },
  measure,
};
