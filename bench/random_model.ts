// A model of random weights and batches of random tokens, made in memory: a run of any size without a file. A server needs
// files: `writeModel` makes them.

import { readFileSync } from "node:fs";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { Device } from "../src/kernels/device/device.ts";
import { collate } from "../src/trainer/data/batches.ts";
import type { EncodedExample } from "../src/trainer/data/dataset.ts";
import type { SafetensorsFile, TensorInfo } from "../src/trainer/formats/safetensors.ts";
import { writeSafetensors } from "../src/trainer/formats/safetensors_writer.ts";
import { elements } from "../src/trainer/graph/graph.ts";
import { modelOf, type OpenModel } from "../src/trainer/model/open.ts";
import { keyShape, type ParameterSpec } from "../src/trainer/model/parameters.ts";
import { initialValues } from "../src/trainer/model/switch/init.ts";
import { DROPLESS, type RunSettings } from "../src/trainer/run/options.ts";
import { Run } from "../src/trainer/run/run.ts";
import type { Preset, TrainablePlan } from "../src/trainer/types.ts";
import { noiseAt } from "./noise.ts";
import { ADAMW } from "./recorded_graph.ts";

const CONFIGS = join(import.meta.dirname, "../examples/configs");

export type ModelConfig = Readonly<Record<string, unknown>>;

/** A configuration of examples/configs, with fields replaced. */
export const configOf = (name: string, changes: ModelConfig = {}): ModelConfig => ({
  ...JSON.parse(readFileSync(join(CONFIGS, `${name}.json`), "utf8")),
  ...changes,
});

/** Draws of a distribution, repeated: a prime number of them, so that no row of a matrix repeats another. */
const DRAWS = 65_521;

/** Starting values as model/switch/init.ts draws them, from a stretch of draws for each distribution. */
function startingValues(): (p: ParameterSpec, stream: number, count: number) => Float32Array<ArrayBuffer> {
  const stretches = new Map<string, Float32Array>();
  return (p, stream, count) => {
    const width = p.shape[p.shape.length - 1];
    const key = [p.kind, p.shape.length, width, p.name.endsWith(".relative_attention_bias.weight")].join();
    const shape = p.shape.map((_, axis) => (axis === p.shape.length - 1 ? DRAWS : 1));
    // The last axis is the fan-in, which the deviation depends on: draw whole rows of it.
    const rows = p.shape.length > 1 ? [...shape.slice(0, -2), Math.ceil(DRAWS / width), width] : shape;
    const stretch = stretches.get(key) ?? initialValues({ ...p, shape: rows }, 1, stretches.size).subarray(0, DRAWS);
    stretches.set(key, stretch);
    const values = new Float32Array(count);
    let from = (stream * 7919) % DRAWS;
    for (let at = 0; at < count; from = 0) {
      const part = stretch.subarray(from, Math.min(DRAWS, from + count - at));
      values.set(part, at);
      at += part.length;
    }
    return values;
  };
}

/** A model of this configuration, its checkpoint drawn as it is read. */
export function randomModel(config: ModelConfig): OpenModel {
  const model = modelOf(config);
  const draw = startingValues();
  const drawn = new Map<string, () => Float32Array<ArrayBuffer>>();
  for (const [i, p] of model.parameters.entries())
    for (const [j, key] of p.keys.entries())
      drawn.set(key, () => draw(p, 131 * i + j, elements(p.shape) / p.keys.length));
  const checkpoint: SafetensorsFile = {
    tensors: new Map<string, TensorInfo>(),
    metadata: {},
    read: async (name) => drawn.get(name)!(),
    readInto: async (name, target) => target.set(drawn.get(name)!()),
    close: async () => undefined,
  };
  return { directory: "", config, model, tokenizer: undefined, checkpoint };
}

/** Writes a random model as a Hugging Face directory. */
export async function writeModel(directory: string, { config, model, checkpoint }: OpenModel): Promise<void> {
  await mkdir(directory);
  await writeFile(join(directory, "config.json"), JSON.stringify(config));
  const tensors = model.parameters.flatMap((p) =>
    p.keys.map((name) => ({
      name,
      dtype: "F32" as const,
      shape: keyShape(p),
      data: () => checkpoint.read(name),
    })),
  );
  await writeSafetensors(join(directory, "model.safetensors"), tensors, { format: "pt" });
}

export interface RunShape {
  readonly batch: number;
  readonly input: number;
  readonly target: number;
}

/** Positions of a step, padding being none: what tokens per second count. */
export const tokensOf = ({ batch, input, target }: RunShape): number => batch * (input + target);

const EXAMPLES = 512;

/**
 * Examples without padding. Ids follow Zipf's law (the logarithm is uniform), and a target repeats the beginning of its
 * input, so that there is something to learn.
 */
export function randomExamples({ input, target }: RunShape, vocabulary: number): EncodedExample[] {
  const id = (i: number): number => Math.floor(2 * ((vocabulary - 1) / 2) ** ((noiseAt({}, i) + 1) / 2));
  return Array.from({ length: EXAMPLES }, (_, e) => {
    const inputIds = Uint32Array.from({ length: input }, (_, j) => id(e * input + j));
    return { inputIds, labels: Int32Array.from({ length: target }, (_, j) => inputIds[j % input]) };
  });
}

export const planOf = (preset: Preset): TrainablePlan => ({
  selection: { preset, add: [], remove: [] },
  optimizerState: "keep",
  routerLosses: "keep",
});

/** AdamW without dropout, drops, jitter or clipping: what the PyTorch twin does. */
export const settings = (shape: RunShape, precision: "f32" | "mixed"): RunSettings => ({
  steps: 1_000_000,
  batchSize: shape.batch,
  maxInputTokens: shape.input,
  maxTargetTokens: shape.target,
  seed: 1,
  precision,
  optimizer: { algorithm: ADAMW, learningRate: 1e-4, maxGradientNorm: 0, schedule: "constant", warmupSteps: 0 },
  routing: DROPLESS,
  losses: { balanceCoefficient: 1e-2, zCoefficient: 1e-3 },
  dropout: 0,
});

/** Opens a run of random weights on random tokens. @throws MemoryError, KernelError, OutOfMemoryError */
export function openRandomRun(
  device: Device,
  source: OpenModel,
  shape: RunShape,
  { precision, preset }: { readonly precision: "f32" | "mixed"; readonly preset: Preset },
): Promise<Run> {
  const { model } = source;
  const examples = randomExamples(shape, model.vocabularySize);
  const { padTokenId, decoderStartTokenId } = model;
  const rows = { size: shape.batch, inputLength: shape.input, targetLength: shape.target };
  const batchAt = (index: number) =>
    collate(
      examples,
      Array.from({ length: shape.batch }, (_, row) => (index * shape.batch + row) % EXAMPLES),
      { ...rows, padTokenId, decoderStartTokenId },
    );
  const lengths = { input: shape.input, target: shape.target };
  const data = { examples: EXAMPLES, truncatedInputs: 0, truncatedTargets: 0, padding: 0 };
  return Run.open(device, source, settings(shape, precision), {
    training: {
      plan: planOf(preset),
      batches: { batchAt },
      data: { ...data, shapes: [{ ...lengths, share: 1 }] },
    },
    inference: { input: 1, target: 1 },
  });
}
