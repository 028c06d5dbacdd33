// Whether cost grows as it should: with the tokens of a step, and with experts of which each token still takes one.

import type { Preset } from "../../src/trainer/types.ts";
import type { Bench, Part, Scale } from "../part.ts";
import { configOf, type ModelConfig, openRandomRun, type RunShape, randomModel, tokensOf } from "../random_model.ts";
import { stepRate } from "../steps.ts";

/** switch-base-8 with a dense and a sparse layer in each stack: a step of 64k tokens then fits a GPU in f32 activations. */
const SHALLOW = { num_layers: 2, num_decoder_layers: 2, num_sparse_encoder_layers: 1, num_sparse_decoder_layers: 1 };

interface Curve {
  readonly config: ModelConfig;
  readonly shape: RunShape;
  readonly batches: readonly number[];
  readonly experts: readonly number[];
}

const CURVES: Readonly<Record<Scale, Curve>> = {
  small: {
    config: configOf("switch-tiny"),
    shape: { batch: 4, input: 16, target: 8 },
    batches: [2, 4, 8],
    experts: [4, 8, 16],
  },
  gpu: {
    config: configOf("switch-base-8", SHALLOW),
    shape: { batch: 26, input: 512, target: 128 },
    batches: [6, 13, 26, 51, 102],
    experts: [8, 16, 32, 64, 128],
  },
};
const SECONDS = { small: 0.5, gpu: 1.5 } as const;

/** Reports one point; returns its seconds of a step. */
async function point(bench: Bench, name: string, config: ModelConfig, shape: RunShape, preset: Preset, base?: number) {
  const device = await bench.device();
  const before = device.allocatedBytes;
  const run = await openRandomRun(device, randomModel(config), shape, { precision: "mixed", preset });
  const { peakBytes } = run.cost;
  const unplanned = device.allocatedBytes - before - peakBytes;
  const { seconds } = await stepRate(run, SECONDS[bench.scale]);
  run.close();
  const tokens = tokensOf(shape);
  const perToken = (1e6 * seconds) / tokens;
  bench.report({
    name,
    figures: {
      tokens,
      "step, ms": 1e3 * seconds,
      "µs/token": perToken,
      "of first": perToken / (base ?? perToken),
      "tokens/s": tokens / seconds,
      "peak GiB": peakBytes / 2 ** 30,
      "allocated - planned, bytes": unplanned,
    },
    rate: "tokens/s",
    wrong: unplanned !== 0,
  });
  return perToken;
}

async function tokens(bench: Bench): Promise<void> {
  const { config, shape, batches } = CURVES[bench.scale];
  let base: number | undefined;
  for (const batch of batches) {
    const row = { ...shape, batch };
    const perToken = await point(bench, `${tokensOf(row)} tokens`, config, row, "all", base);
    base ??= perToken;
  }
}

async function experts(bench: Bench): Promise<void> {
  const { config, shape, experts } = CURVES[bench.scale];
  for (const preset of ["non_moe", "all"] as const) {
    let base: number | undefined;
    for (const count of experts) {
      const changed = { ...config, num_experts: count };
      const perToken = await point(bench, `${count} experts, ${preset}`, changed, shape, preset, base);
      base ??= perToken;
    }
  }
}

export const scalingTokens: Part = {
  name: "scaling-tokens",
  title:
    "a step of more and more tokens; switch-base-8 of 2 + 2 layers (small: switch-tiny), mixed, all groups trained",
  seconds: { small: 40, gpu: 60 },
  measure: tokens,
};

export const scalingExperts: Part = {
  name: "scaling-experts",
  title: "more and more experts at the same work for a token; where they train, AdamW steps all their parameters",
  seconds: { small: 60, gpu: 75 },
  measure: experts,
};
