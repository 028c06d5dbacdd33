// A run on disk. A checkpoint is a Hugging Face model directory with two files more: the optimizer's state and
// `training.json`, which says the step, the freeze plan and what the state belongs to. Any checkpoint can therefore be
// loaded as a model by thaw or by transformers.

import { copyFile, readFile } from "node:fs/promises";
import { join } from "node:path";
import { inputError } from "../formats/problems.ts";
import { openSafetensors } from "../formats/safetensors.ts";
import { type WritableTensor, writeSafetensors } from "../formats/safetensors_writer.ts";
import { elements } from "../graph/graph.ts";
import type { OpenModel } from "../model/open.ts";
import { keyShape } from "../model/parameters.ts";
import type { TrainablePlan } from "../types.ts";
import type { DeviceMemory } from "./device_memory.ts";
import { writeFileDurably } from "./durable.ts";
import { fileChecksums } from "./file_checksums.ts";
import type { EntryState, HostState, OptimizerState } from "./optimizer_state.ts";

/** Files of a model directory that travel with its weights unchanged. */
const COMPANIONS = [
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "spiece.model",
  "generation_config.json",
];

/** Contents of training.json. */
interface TrainingState {
  /** 1 had AdamW alone, and did not say `tensors`. */
  readonly format: 1 | 2;
  readonly step: number;
  /** Steps' worth of batches passed over: step n trains on batches of the data's step n + this. Absent: 0. */
  readonly passedOver?: number;
  readonly plan: TrainablePlan;
  /** State of the loss scale (kernels/loss_scale.ts); absent in f32. */
  readonly lossScale?: readonly number[];
  /** Parameter → the entries with state. */
  readonly state: Readonly<Record<string, readonly EntryRecord[]>>;
}

interface EntryRecord {
  readonly entry: number;
  readonly updates: number;
  /** Whether it trains, or is kept for a thaw. */
  readonly trainable: boolean;
  /** Names of its state tensors; `NAME.ENTRY.PARAMETER` in optimizer.safetensors. */
  readonly tensors?: readonly string[];
}

const FORMAT_1_TENSORS = ["m", "v"];

/**
 * Writes config.json, model.safetensors (f32) and the tokenizer into an empty directory. Selection biases stand beside the
 * parameters. Returns bytes of weights.
 */
export async function writeModel(source: OpenModel, memory: DeviceMemory, directory: string): Promise<number> {
  const { torch_dtype: _, ...config } = source.config;
  await writeFileDurably(
    join(directory, "config.json"),
    `${JSON.stringify({ ...config, dtype: "float32" }, null, 2)}\n`,
  );
  for (const name of COMPANIONS)
    await copyFile(join(source.directory, name), join(directory, name)).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== "ENOENT") throw error;
    });
  const tensors = source.model.parameters.flatMap((p): WritableTensor[] => {
    const size = elements(keyShape(p));
    return p.keys.map((name, i) => ({
      name,
      dtype: "F32",
      shape: keyShape(p),
      data: async () => {
        const { buffer, offset } = memory.parameters.get(p.name)!;
        return new Float32Array(await memory.device.read(buffer, size * 4, offset + i * size * 4));
      },
    }));
  });
  for (const { key, experts } of source.model.selectionBiases) {
    const buffer = memory.inputs.get(key);
    if (!buffer) continue;
    const data = async () => new Float32Array(await memory.device.read(buffer, experts * 4));
    tensors.push({ name: key, dtype: "F32", shape: [experts], data });
  }
  return writeSafetensors(join(directory, "model.safetensors"), tensors, { format: "pt" });
}

/** Adds what training needs to go on to a directory that holds the model already. Returns bytes of optimizer state. */
export async function writeTrainingState(
  directory: string,
  position: Pick<TrainingState, "step" | "passedOver" | "plan" | "lossScale">,
  optimizer: OptimizerState,
): Promise<number> {
  const state: Record<string, EntryRecord[]> = {};
  const tensors: WritableTensor[] = [];
  const add = (name: string, entry: number, s: EntryState, trainable: boolean) => {
    state[name] ??= [];
    state[name].push({ entry, updates: s.updates, trainable, tensors: [...s.tensors.keys()] });
    for (const [kind, data] of s.tensors)
      tensors.push({ name: `${kind}.${entry}.${name}`, dtype: "F32", shape: [data.length], data });
  };
  for (const e of optimizer.entries) {
    const states = await optimizer.read(e);
    for (const [i, slot] of e.slots.entries()) add(e.parameter.name, slot, states[i], true);
  }
  for (const [name, entries] of optimizer.kept) for (const [entry, s] of entries) add(name, entry, s, false);
  const training: TrainingState = { format: 2, ...position, state };
  await writeFileDurably(join(directory, "training.json"), `${JSON.stringify(training, null, 1)}\n`);
  return writeSafetensors(join(directory, "optimizer.safetensors"), tensors, await fileChecksums(directory));
}

/** What {@link writeTrainingState} wrote; all state comes back as kept, for the run to put where it belongs. */
export async function readTrainingState(
  directory: string,
): Promise<
  Required<Pick<TrainingState, "step" | "passedOver" | "plan">> &
    Pick<TrainingState, "lossScale"> & { state: HostState }
> {
  let training: TrainingState;
  try {
    training = JSON.parse(await readFile(join(directory, "training.json"), "utf8"));
  } catch {
    throw inputError("training.json", ["is missing or not JSON: this directory is not a checkpoint of a run"]);
  }
  if (training.format !== 1 && training.format !== 2)
    throw inputError("training.json", [`format ${training.format} is not known, 1 and 2 are`]);
  const file = await openSafetensors(join(directory, "optimizer.safetensors"));
  try {
    const state: HostState = new Map();
    for (const [name, entries] of Object.entries(training.state)) {
      const held = new Map<number, EntryState>();
      for (const { entry, updates, tensors: kinds = FORMAT_1_TENSORS } of entries) {
        const tensors = new Map<string, Float32Array<ArrayBuffer>>();
        for (const kind of kinds)
          tensors.set(kind, (await file.read(`${kind}.${entry}.${name}`)) as Float32Array<ArrayBuffer>);
        held.set(entry, { tensors, updates });
      }
      state.set(name, held);
    }
    const { step, passedOver = 0, plan, lossScale } = training;
    return { step, passedOver, plan, lossScale, state };
  } finally {
    await file.close();
  }
}
