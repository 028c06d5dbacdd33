// A model's values from its checkpoint to the device.

import { type OpenModel, readParameter } from "../model/open.ts";
import type { DeviceMemory } from "./device_memory.ts";

/** Allocates every parameter and uploads it as f32. */
export async function loadParameters({ model, checkpoint }: OpenModel, memory: DeviceMemory): Promise<void> {
  for (const p of model.parameters) {
    const data = await readParameter(checkpoint, p);
    const buffer = await memory.create({ name: p.name, bytes: data.byteLength });
    memory.parameters.set(p.name, buffer);
    memory.device.upload(buffer, data);
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
