// Training steps by the clock, the next one submitted while one runs, as the server does.

import type { Run } from "../src/trainer/run/run.ts";
import type { StepMetrics } from "../src/trainer/types.ts";

/** Steps submitted before the first of them has come back. */
const IN_FLIGHT = 2;
/** Before steps are measured, two at least: as a share of the time in which they are. */
const WARM_UP = 0.25;

/** Trains while `more` says so of the number of steps submitted; returns their metrics in order. */
async function trainWhile(run: Run, more: (submitted: number) => boolean): Promise<StepMetrics[]> {
  const metrics: StepMetrics[] = [];
  const flying: Promise<StepMetrics>[] = [];
  let submitted = 0;
  while (true) {
    while (flying.length < IN_FLIGHT && more(submitted)) {
      flying.push(run.trainStep());
      submitted++;
    }
    const next = flying.shift();
    if (!next) return metrics;
    metrics.push(await next);
  }
}

/** Trains `steps` steps. */
export const train = (run: Run, steps: number): Promise<StepMetrics[]> => trainWhile(run, (n) => n < steps);

export interface StepRate {
  /** Of one step, the mean of those measured. */
  readonly seconds: number;
  readonly steps: number;
}

/** Warms up and trains for `seconds`, at least `least` steps. */
export async function stepRate(run: Run, seconds: number, least = 3): Promise<StepRate> {
  const during = (lasting: number, atLeast: number): Promise<StepMetrics[]> => {
    const end = performance.now() + 1e3 * lasting;
    return trainWhile(run, (n) => n < atLeast || performance.now() < end);
  };
  await during(WARM_UP * seconds, 2);
  const begin = performance.now();
  const { length: steps } = await during(seconds, least);
  return { seconds: (performance.now() - begin) / 1e3 / steps, steps };
}
