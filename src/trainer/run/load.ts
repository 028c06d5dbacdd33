// A model's values from its checkpoint to the device, and the state of a run that is no tensor of its own.

import { FIRST_LOSS_SCALE, LOSS_SCALE_STATE } from "../../kernels/loss_scale.ts";
import type { Tensor } from "../graph/graph.ts";
import { LOSS_SCALE } from "../graph/ops/loss_scale.ts";
import { type OpenModel, readParameter } from "../model/open.ts";
import type { DeviceMemory } from "./device_memory.ts";

/** Allocates the parameters of the graphs that a model builds and uploads each as f32. */
export async function loadParameters(
  { model, checkpoint }: OpenModel,
  parameters: ReadonlyMap<string, Tensor>,
  memory: DeviceMemory,
): Promise<void> {
  await memory.createParameters(parameters);
  for (const p of model.parameters) {
    const { buffer, offset } = memory.parameters.get(p.name)!;
    memory.device.upload(buffer, await readParameter(checkpoint, p), offset);
  }
}

/** Uploads the checkpoint's selection biases to the layers that choose by one; others begin at 0. */
export async function loadSelectionBiases({ model, checkpoint }: OpenModel, memory: DeviceMemory): Promise<void> {
  for (const { key, experts } of model.selectionBiases) {
    const buffer = memory.inputs.get(key);
    if (!buffer || !checkpoint.tensors.has(key)) continue;
    const values = new Float32Array(experts);
    await checkpoint.readInto(key, values);
    memory.device.upload(buffer, values);
  }
}

/** Gives a run of mixed precision the loss scale of its checkpoint, or the first one. */
export function loadLossScale(memory: DeviceMemory, saved: readonly number[] = [FIRST_LOSS_SCALE, 0, 0]): void {
  const buffer = memory.inputs.get(LOSS_SCALE);
  if (buffer) memory.device.upload(buffer, Float32Array.from(saved));
}

/** The loss scale to save; undefined in f32. */
export async function readLossScale(memory: DeviceMemory): Promise<number[] | undefined> {
  const buffer = memory.inputs.get(LOSS_SCALE);
  return buffer && [...new Float32Array(await memory.device.read(buffer, LOSS_SCALE_STATE * 4))];
}
