// Compares a model directory with what its reference implementation computed: loss, logits, layer outputs, routing,
// every gradient, and five optimizer steps of each strategy. Formats: the reference fixtures' model folders
// (model.safetensors, config.json, batch, expected, grads, after, info.json).

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import type { Device } from "../../kernels/device/device.ts";
import { runProgram } from "../../kernels/program.ts";
import { packStepScalars } from "../../kernels/step_scalars.ts";
import { type Batch, completeBatch } from "../data/batches.ts";
import { openSafetensors, type SafetensorsFile } from "../formats/safetensors.ts";
import { arenaLimit } from "../graph/arenas.ts";
import { elements, type Tensor } from "../graph/graph.ts";
import { lowerGraph } from "../graph/lowered.ts";
import { linear } from "../graph/ops/dense.ts";
import { resolveTrainable, type TrainableSet } from "../groups.ts";
import type { BuildOptions, InferenceGraph, SparseLayer, TrainingGraph } from "../model/family.ts";
import { type OpenModel, openModelDirectory } from "../model/open.ts";
import { keyShape } from "../model/parameters.ts";
import { uploadBatch } from "../run/batch_upload.ts";
import { DeviceMemory } from "../run/device_memory.ts";
import { loadParameters } from "../run/load.ts";
import { OptimizerState } from "../run/optimizer_state.ts";
import type { RunSettings } from "../run/options.ts";
import { Run } from "../run/run.ts";
import type { AdamW, Preset, TrainablePlan } from "../types.ts";
import { generationParity } from "./generation_parity.ts";
import type { ErrorTable } from "./table.ts";

const LIMITS = {
  loss: 1e-5,
  outputs: 2e-5,
  gradients: 2e-4,
  losses: 1e-4,
  /** Of the norm of the parameter's update. */
  updates: 0.02,
};

interface Info {
  readonly optimizer: {
    readonly lr: number;
    readonly betas: readonly [number, number];
    readonly eps: number;
    readonly weight_decay: number;
    readonly steps: number;
  };
  readonly losses: Readonly<Record<string, readonly number[]>>;
}

function adamwOf({ optimizer: { betas, eps, weight_decay } }: Info): AdamW {
  return { kind: "adamw", beta1: betas[0], beta2: betas[1], epsilon: eps, weightDecay: weight_decay };
}

const floats = async (file: SafetensorsFile, name: string) => (await file.read(name)) as Float32Array<ArrayBuffer>;
const integers = async (file: SafetensorsFile, name: string) => Int32Array.from((await file.read(name)) as Int32Array);

export async function modelParity(device: Device, directory: string, table: ErrorTable): Promise<void> {
  const info: Info = JSON.parse(await readFile(join(directory, "info.json"), "utf8"));
  const batch = await readBatch(directory);
  await forwardAndGradients(device, directory, batch, info, table);
  for (const strategy of Object.keys(info.losses)) await strategySteps(device, directory, batch, info, strategy, table);
  await generationParity(device, directory, batch, settingsOf(batch, info), table);
}

async function readBatch(directory: string): Promise<Batch> {
  const source = await openModelDirectory(directory);
  await source.checkpoint.close();
  const file = await openSafetensors(join(directory, "batch.safetensors"));
  try {
    const [size, inputLength] = file.tensors.get("input_ids")!.shape;
    const targetLength = file.tensors.get("labels")!.shape[1];
    const content = {
      inputIds: Uint32Array.from(await integers(file, "input_ids")),
      inputSegments: Uint32Array.from(await integers(file, "attention_mask")),
      labels: await integers(file, "labels"),
      exampleIds: Uint32Array.from({ length: size }, (_, row) => row),
    };
    const { padTokenId, decoderStartTokenId } = source.model;
    return completeBatch(content, { size, inputLength, targetLength, padTokenId, decoderStartTokenId });
  } finally {
    await file.close();
  }
}

/** The references route padding, never drop, and add no router losses to the loss. */
const ROUTING = {
  trainCapacity: { rule: "dropless" },
  evalCapacity: { rule: "dropless" },
  group: "batch",
  routePadding: true,
  jitter: 0,
} as const;

async function forwardAndGradients(
  device: Device,
  directory: string,
  batch: Batch,
  info: Info,
  table: ErrorTable,
): Promise<void> {
  const source = await openModelDirectory(directory);
  const { model } = source;
  const options: BuildOptions = {
    batch: batch.size,
    inputLength: batch.inputLength,
    targetLength: batch.targetLength,
    packed: false,
    train: true,
    dropout: 0,
    expertDropout: 0,
    routing: ROUTING,
    losses: { balanceCoefficient: 0, zCoefficient: 0 },
    lossGradient: false,
    sumGradients: false,
    arenaBytes: arenaLimit(device.capabilities),
  };
  const everything: TrainableSet = new Map(model.parameters.map((p) => [p.name, true]));
  const training = model.trainingGraph(device.target, everything, options, adamwOf(info));
  const encoder = model.encoderGraph(device.target, options);
  const decoder = model.decoderGraph(device.target, options);
  const { hidden, weight, alpha } = decoder.head!;
  const logits = linear(decoder.graph, "logits", hidden, weight, { precise: true });
  decoder.graph.keep(logits);
  training.graph.keep(
    ...Object.values(training.hidden),
    ...training.sparse.flatMap((s) => [s.input, s.logits, s.output]),
  );

  const memory = new DeviceMemory(device);
  try {
    await loadParameters(source, training.graph.parameters, memory);
    await new OptimizerState(memory).change(training.optimizer.entries, "keep");
    const alignment = device.capabilities.limits.minUniformBufferOffsetAlignment;
    const lowered = [training, encoder, decoder].map((built: InferenceGraph) => lowerGraph(built.graph, alignment));
    await memory.prepare(lowered);
    const upload = { routePadding: true, vocabularySize: model.vocabularySize };
    uploadBatch(device, memory.inputs, batch, upload);
    const scalars = { step: 0, seed: 0, lossScale: 1, inverseTargetCount: 1 / batch.targetTokens, maxGradientNorm: 0 };
    device.upload(memory.inputs.get("step_scalars")!, packStepScalars(scalars));

    // The inference programs first: the training program ends with an update of the parameters (of rate 0 here).
    const recordings = [];
    for (const [i, graph] of lowered.entries()) recordings.push(await memory.record(`parity ${i}`, graph));
    const [recordedTraining, recordedEncoder, recordedDecoder] = recordings;
    const read = async (recorded: typeof recordedTraining, t: Tensor) => {
      const { buffer, offset } = recorded.range(t);
      return new Float32Array(await device.read(buffer, 4 * elements(t.shape), offset));
    };
    runProgram(device, recordedEncoder.program);
    runProgram(device, recordedDecoder.program);
    const scaled = (await read(recordedDecoder, logits)).map((x) => x * alpha);
    runProgram(device, recordedTraining.program);
    await compareForward(directory, training, (t) => read(recordedTraining, t), scaled, batch, table);
    await compareGradients(directory, source, training, (t) => read(recordedTraining, t), table);
    for (const recorded of recordings) recorded.destroy();
  } finally {
    memory.destroy();
    await source.checkpoint.close();
  }
}

type Read = (t: Tensor) => Promise<Float32Array<ArrayBuffer>>;

async function compareForward(
  directory: string,
  training: TrainingGraph,
  read: Read,
  logits: Float32Array,
  batch: Batch,
  table: ErrorTable,
): Promise<void> {
  const expected = await openSafetensors(join(directory, "expected.safetensors"));
  try {
    const rows = await read(training.loss.rowLoss);
    const loss = rows.reduce((sum, x) => sum + x, 0) / batch.targetTokens;
    table.compare("loss", "loss", [loss], await floats(expected, "loss"), LIMITS.loss);
    table.compare("logits", "logits", logits, await floats(expected, "logits"), LIMITS.outputs);
    for (const name of expected.tensors.keys()) {
      const [kind, rest] = [name.slice(0, name.indexOf("/")), name.slice(name.indexOf("/") + 1)];
      if (kind === "hidden") {
        const t = training.hidden[rest as "encoder" | "decoder"];
        table.compare("hidden states", name, t ? await read(t) : [], await floats(expected, name), LIMITS.outputs);
        continue;
      }
      const layer = training.sparse.find((s) => isLayer(s, rest));
      const compare = async (quantity: string, t: Tensor | undefined) =>
        table.compare(quantity, name, t ? await read(t) : [], await floats(expected, name), LIMITS.outputs);
      if (kind === "router_logits") await compare("router logits", layer?.logits);
      else if (kind === "router_input") await compare("router input", layer?.input);
      else if (kind === "moe_output") await compare("MoE output", layer?.output);
      else if (kind === "expert_index") {
        const chosen = layer ? new Uint32Array((await read(layer.routing.expertIds)).buffer) : [];
        const wanted = await integers(expected, name);
        const wrong = [...wanted].filter((e, i) => e !== chosen[i]).length;
        table.add("expert choices", name, chosen.length === wanted.length ? wrong : Infinity, 0);
      }
    }
  } finally {
    await expected.close();
  }
}

/** Whether a reference tensor called `{stack}.block.{layer}.…` belongs to this sparse layer. */
function isLayer(s: SparseLayer, name: string): boolean {
  const match = /^(encoder|decoder)\.block\.(\d+)\./.exec(name);
  return match !== null && match[1] === s.stack && Number(match[2]) === s.layer;
}

async function compareGradients(
  directory: string,
  { model }: OpenModel,
  training: TrainingGraph,
  read: Read,
  table: ErrorTable,
): Promise<void> {
  const file = await openSafetensors(join(directory, "grads.safetensors"));
  try {
    for (const p of model.parameters) {
      const gradient = training.gradients.get(p.name);
      const all = gradient ? await read(gradient) : new Float32Array(elements(p.shape));
      const size = elements(keyShape(p));
      for (const [i, key] of p.keys.entries()) {
        if (!file.tensors.has(key)) continue;
        const actual = all.subarray(i * size, (i + 1) * size);
        table.compare("gradients", key, actual, await floats(file, key), LIMITS.gradients);
      }
    }
  } finally {
    await file.close();
  }
}

const settingsOf = (batch: Batch, info: Info): RunSettings => ({
  steps: info.optimizer.steps,
  batchSize: batch.size,
  maxInputTokens: batch.inputLength,
  maxTargetTokens: batch.targetLength,
  seed: 0,
  dropout: 0,
  losses: { balanceCoefficient: 0, zCoefficient: 0 },
  routing: ROUTING,
  optimizer: {
    algorithm: adamwOf(info),
    learningRate: info.optimizer.lr,
    maxGradientNorm: 0,
    schedule: "constant",
    warmupSteps: 0,
  },
});

/** Trains on the one batch and compares every loss, every trained parameter and every frozen one. */
async function strategySteps(
  device: Device,
  directory: string,
  batch: Batch,
  info: Info,
  strategy: string,
  table: ErrorTable,
): Promise<void> {
  const plan: TrainablePlan = {
    selection: { preset: strategy as Preset, add: [], remove: [] },
    optimizerState: "keep",
    routerLosses: "keep",
  };
  const lengths = { input: batch.inputLength, target: batch.targetLength };
  const source = await openModelDirectory(directory);
  const after = await openSafetensors(join(directory, "after.safetensors"));
  const run = await Run.open(device, source, settingsOf(batch, info), {
    training: {
      plan,
      batches: { batchAt: () => batch },
      data: {
        examples: batch.size,
        truncatedInputs: 0,
        truncatedTargets: 0,
        padding: 0,
        shapes: [{ ...lengths, share: 1 }],
      },
    },
    inference: lengths,
  });
  try {
    const trainable = resolveTrainable(source.model.parameters, plan.selection);
    const losses: number[] = [];
    for (let step = 0; step < info.optimizer.steps; step++) losses.push((await run.trainStep()).loss);
    for (const p of source.model.parameters) {
      const all = await run.readParameter(p.name);
      const size = elements(keyShape(p));
      for (const [i, key] of p.keys.entries()) {
        const actual = all.subarray(i * size, (i + 1) * size);
        const start = await floats(source.checkpoint, key);
        const name = `${strategy}/${key}`;
        if (!trainable.has(p.name)) {
          const original = bits(start);
          const changed = bits(actual).filter((x, j) => x !== original[j]).length;
          table.add("frozen parameters", name, changed, 0);
          continue;
        }
        const update = (values: Float32Array) => values.map((x, j) => x - start[j]);
        table.compare("updates", name, update(actual), update(await floats(after, name)), LIMITS.updates);
      }
    }
    losses.push((await run.trainStep()).loss);
    info.losses[strategy].forEach((expected, step) => {
      table.compare("losses in training", `${strategy} after ${step} steps`, [losses[step]], [expected], LIMITS.losses);
    });
  } finally {
    run.close();
    await Promise.all([after.close(), source.checkpoint.close()]);
  }
}

const bits = (x: Float32Array): Uint32Array => new Uint32Array(x.buffer, x.byteOffset, x.length);
