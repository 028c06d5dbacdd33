// Learning-rate schedules (moe-spec section 5). All rise linearly for `warmupSteps` steps, the last of which has the full
// rate; linear and cosine would reach 0 at the step after the last, the inverse square root is T5's,
// rate · sqrt(warm-up / n) at the n-th step, and knows no end.

import type { OptimizerOptions } from "../types.ts";

/** Learning rate of optimizer step `step` (0-based) of `steps`. */
export function learningRate(o: OptimizerOptions, step: number, steps: number): number {
  const warmup = o.warmupSteps;
  if (step < warmup) return (o.learningRate * (step + 1)) / warmup;
  const progress = Math.min(1, (step - warmup) / Math.max(1, steps - warmup));
  switch (o.schedule) {
    case "constant":
      return o.learningRate;
    case "linear":
      return o.learningRate * (1 - progress);
    case "cosine":
      return o.learningRate * 0.5 * (1 + Math.cos(Math.PI * progress));
    case "inverse_sqrt":
      return o.learningRate * Math.sqrt(Math.max(1, warmup) / (step + 1));
  }
}
