// Fine-tuning by group: tokens per second of a whole step under each freeze strategy, the time to the first step, and the
// bytes that were planned beside those that were allocated. Weights and tokens are random; nothing is dropped.

import { PRESET_KINDS } from "../../src/trainer/groups.ts";
import type { Preset } from "../../src/trainer/types.ts";
import { type Bench, type Part, type Scale, workRate } from "../part.ts";
import { configOf, type ModelConfig, openRandomRun, type RunShape, randomModel, tokensOf } from "../random_model.ts";
import { stepRate } from "../steps.ts";

export const MODELS: Readonly<Record<Scale, { config: ModelConfig; shape: RunShape }>> = {
  small: { config: configOf("switch-tiny"), shape: { batch: 2, input: 32, target: 8 } },
  gpu: { config: configOf("switch-base-8"), shape: { batch: 32, input: 512, target: 128 } },
};

/** Seconds of measured steps for each strategy. */
export const SECONDS = { small: 0.5, gpu: 4 } as const;

const measure = (precision: "f32" | "mixed") => async (bench: Bench) => {
  const { scale } = bench;
  const device = await bench.device();
  const { config, shape } = MODELS[scale];
  const source = randomModel(config);
  for (const preset of Object.keys(PRESET_KINDS) as Preset[]) {
    const before = device.allocatedBytes;
    const begin = performance.now();
    const run = await openRandomRun(device, source, shape, { precision, preset });
    await run.trainStep();
    const first = (performance.now() - begin) / 1e3;
    const { peakBytes, forwardFlops, backwardFlops, trainableParameters } = run.cost;
    const allocated = device.allocatedBytes - before;
    const { seconds, steps } = await stepRate(run, SECONDS[scale]);
    run.close();
    const work = workRate(scale, forwardFlops + backwardFlops, seconds);
    bench.report({
      name: preset,
      figures: {
        "tokens/s": tokensOf(shape) / seconds,
        "step, ms": 1e3 * seconds,
        steps,
        trained: trainableParameters,
        "peak GiB": peakBytes / 2 ** 30,
        "planned - allocated, bytes": peakBytes - allocated,
        "first step, s": first,
        [work.rate]: work.value,
      },
      rate: "tokens/s",
      wrong: peakBytes !== allocated,
    });
  }
};

const part = (precision: "f32" | "mixed", seconds: Part["seconds"]): Part => ({
  name: `model-${precision}`,
  title: `switch-base-8 (small: switch-tiny) in ${precision}, AdamW, by the clock; the first strategy's first step compiles every kernel`,
  seconds,
  measure: measure(precision),
});

export const modelMixed = part("mixed", { small: 60, gpu: 110 });
export const modelF32 = part("f32", { small: 60, gpu: 120 });
