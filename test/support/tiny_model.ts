// A Switch model of a few thousand parameters in a temporary directory, and data for it as token ids, so that trainer
// tests need neither fixtures nor a tokenizer.

import { mkdtemp, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { writeSafetensors } from "../../src/trainer/formats/safetensors_writer.ts";
import { modelOf } from "../../src/trainer/model/open.ts";
import { keyShape } from "../../src/trainer/model/parameters.ts";
import type { RunConfig, TrainablePlan, TrainableSelection } from "../../src/trainer/types.ts";

export const TINY_CONFIG = {
  model_type: "switch_transformers",
  vocab_size: 37,
  d_model: 12,
  d_kv: 4,
  num_heads: 3,
  d_ff: 20,
  num_layers: 4,
  num_decoder_layers: 2,
  num_sparse_encoder_layers: 2,
  num_sparse_decoder_layers: 1,
  num_experts: 4,
  router_jitter_noise: 0,
  dropout_rate: 0.1,
};

/** Deterministic values in [-1, 1). */
export function noise(count: number, seed: number): Float32Array<ArrayBuffer> {
  let state = (Math.imul(seed + 1, 2654435761) ^ 0x9e3779b9) >>> 0;
  return Float32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state >>> 8) / 2 ** 23 - 1;
  });
}

/** Writes a model directory and returns its path; `changes` replace fields of {@link TINY_CONFIG}. */
export async function tinyModel(changes: Record<string, unknown> = {}): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), "thaw-model-"));
  const config = { ...TINY_CONFIG, ...changes };
  await writeFile(join(directory, "config.json"), JSON.stringify(config));
  const tensors = modelOf(config).parameters.flatMap((p, i) =>
    p.keys.map((name, j) => {
      const shape = keyShape(p);
      const values = noise(
        shape.reduce((n, d) => n * d, 1),
        100 * i + j,
      );
      const data = values.map((x) => (p.kind === "norm" ? 1 + 0.1 * x : p.kind === "embedding" ? x : 0.4 * x));
      return { name, dtype: "F32" as const, shape, data };
    }),
  );
  await writeSafetensors(join(directory, "model.safetensors"), tensors);
  return directory;
}

/** Writes `examples` lines of token ids that a model can learn: the target repeats the input's first two tokens. */
export async function tinyData(examples = 24): Promise<string> {
  const path = join(await mkdtemp(join(tmpdir(), "thaw-data-")), "train.jsonl");
  const token = (i: number, j: number) => 2 + ((i * 7 + j * 5) % 35);
  const lines = Array.from({ length: examples }, (_, i) => {
    const input = Array.from({ length: 3 + (i % 6) }, (_, j) => token(i, j));
    return JSON.stringify({ input_ids: [...input, 1], target_ids: [input[0], input[1], 1] });
  });
  await writeFile(path, `${lines.join("\n")}\n`);
  return path;
}

export const plan = (selection: Partial<TrainableSelection>, changes: Partial<TrainablePlan> = {}): TrainablePlan => ({
  selection: { add: [], remove: [], ...selection },
  optimizerState: "keep",
  routerLosses: "keep",
  ...changes,
});

/** A run of the tiny model; `changes` replace fields. */
export function tinyRun(modelDirectory: string, trainFile: string, changes: Partial<RunConfig> = {}): RunConfig {
  return {
    modelDirectory,
    trainFiles: [trainFile],
    steps: 20,
    batchSize: 4,
    maxInputTokens: 16,
    maxTargetTokens: 8,
    seed: 11,
    trainable: plan({ preset: "all" }),
    optimizer: {
      algorithm: { kind: "adamw", beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0.01 },
      learningRate: 1e-2,
      maxGradientNorm: 1,
      schedule: "constant",
      warmupSteps: 0,
    },
    routing: {
      trainCapacity: { rule: "factor", factor: 1.25 },
      evalCapacity: { rule: "dropless" },
      group: "batch",
      routePadding: false,
      jitter: 0.01,
    },
    losses: { balanceCoefficient: 1e-2, zCoefficient: 1e-3 },
    dropout: 0.1,
    ...changes,
  };
}

/** A tiny model that reads and writes text byte by byte. */
export async function tinyByteModel(): Promise<string> {
  const directory = await tinyModel({ vocab_size: 272 });
  const tokenizer = { tokenizer_class: "ByT5Tokenizer", extra_ids: 10 };
  await writeFile(join(directory, "tokenizer_config.json"), JSON.stringify(tokenizer));
  return directory;
}
