// Values for benchmarks: large buffers are filled on the device with a repeated stretch of noise, so that any element is
// known on the host without a copy of the whole.

import type { Device } from "../src/kernels/device/device.ts";

/** Length of the stretch: a prime, so that no row of a matrix repeats another. */
const PERIOD = 4_194_301;

export interface Noise {
  /** Uniform in [offset - scale, offset + scale). */
  readonly scale?: number;
  readonly offset?: number;
  /** Where in the stretch the buffer begins. */
  readonly start?: number;
}

let unit: Float32Array | undefined;

/** In [-1, 1), by a linear congruential generator. */
function unitNoise(): Float32Array {
  if (unit) return unit;
  let state = 0x9e3779b9;
  unit = Float32Array.from({ length: PERIOD }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state >>> 8) / 2 ** 23 - 1;
  });
  return unit;
}

/** Element `index` of a buffer filled with this noise, as the device has it. */
export function noiseAt({ scale = 1, offset = 0, start = 0 }: Noise, index: number): number {
  return Math.fround(unitNoise()[(start + index) % PERIOD] * scale + offset);
}

/** Fills a buffer of f32 with noise. */
export async function fillWithNoise(device: Device, buffer: GPUBuffer, noise: Noise): Promise<void> {
  const { scale = 1, offset = 0, start = 0 } = noise;
  const count = Math.min(PERIOD, buffer.size / 4);
  const stretch = unitNoise();
  const values = Float32Array.from({ length: count }, (_, i) => stretch[(start + i) % PERIOD] * scale + offset);
  device.upload(buffer, values);
  // The rest repeats whole periods.
  const encoder = device.gpu.createCommandEncoder({ label: "noise" });
  let filled = count * 4;
  if (filled < buffer.size) {
    const source = await device.createBuffer({ label: "noise", bytes: filled });
    encoder.copyBufferToBuffer(buffer, 0, source, 0, filled);
    while (filled < buffer.size) {
      const bytes = Math.min(source.size, buffer.size - filled);
      encoder.copyBufferToBuffer(source, 0, buffer, filled, bytes);
      filled += bytes;
    }
    device.submit(encoder.finish());
    await device.gpu.queue.onSubmittedWorkDone();
    device.destroyBuffer(source);
  }
}
