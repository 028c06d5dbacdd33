// Results come back through staging buffers, after the step that made them, while the next step already runs. Two
// buffers in turn: one being filled while the other is being read.

import { BUFFER_USAGE, type Device } from "../../kernels/device/device.ts";
import { elements, type Tensor, tensorBytes } from "../graph/graph.ts";
import type { RecordedGraph } from "./device_memory.ts";

/** Values of the tensors that were read. */
export interface Results {
  f32(t: Tensor): Float32Array<ArrayBuffer>;
  u32(t: Tensor): Uint32Array<ArrayBuffer>;
}

/** Staging buffers in turn. */
const DEPTH = 2;

/** Bytes of the staging buffers for these tensors. */
export const stagingBytes = (tensors: readonly Tensor[]): number =>
  DEPTH * tensors.reduce((n, t) => n + tensorBytes(t), 0);

export class Readback {
  readonly #device: Device;
  readonly #tensors: readonly Tensor[];
  readonly #offsets = new Map<Tensor, number>();
  readonly #bytes: number;
  #staging: { buffer: GPUBuffer; free: Promise<void> }[] = [];
  #turn = 0;

  private constructor(device: Device, tensors: readonly Tensor[]) {
    this.#device = device;
    this.#tensors = tensors;
    let bytes = 0;
    for (const t of tensors) {
      this.#offsets.set(t, bytes);
      bytes += tensorBytes(t);
    }
    this.#bytes = bytes;
  }

  static async create(device: Device, tensors: readonly Tensor[]): Promise<Readback> {
    const readback = new Readback(device, tensors);
    for (let i = 0; i < DEPTH; i++) {
      const buffer = await device.createBuffer({
        label: `staging ${i}`,
        bytes: readback.#bytes,
        usage: BUFFER_USAGE.MAP_READ | BUFFER_USAGE.COPY_DST,
      });
      readback.#staging.push({ buffer, free: Promise.resolve() });
    }
    return readback;
  }

  /**
   * Encodes and submits `recorded`, then copies `tensors` (a subset of those given at creation) to the host. Returns
   * when the commands are submitted; `results` resolves when they have run. `part` says which part of an optimizer step
   * this is: the first batch clears the gradients that add up, the last is followed by the optimizer, which also runs
   * without a batch.
   * @throws DeviceLostError, KernelError (through `results`)
   */
  async run(
    recorded: RecordedGraph,
    tensors: readonly Tensor[] = this.#tensors,
    part?: { readonly clear: Iterable<Tensor>; readonly batch: boolean; readonly update: boolean },
  ): Promise<{ results: Promise<Results> }> {
    const device = this.#device;
    const slot = this.#staging[this.#turn];
    this.#turn = (this.#turn + 1) % DEPTH;
    await slot.free;
    const encoder = device.gpu.createCommandEncoder({ label: recorded.program.label });
    for (const t of part?.clear ?? []) {
      const { buffer, offset, size } = recorded.range(t);
      encoder.clearBuffer(buffer, offset, size);
    }
    if (part?.batch ?? true) recorded.program.encode(encoder);
    if (part?.update) recorded.update?.encode(encoder);
    for (const t of tensors) {
      const { buffer, offset, size } = recorded.range(t);
      encoder.copyBufferToBuffer(buffer, offset, slot.buffer, this.#offsets.get(t)!, size);
    }
    device.submit(encoder.finish());
    const results = device.readMapped(slot.buffer, this.#bytes).then((copy) => ({
      f32: (t: Tensor) => new Float32Array(copy, this.#offsets.get(t), elements(t.shape)),
      u32: (t: Tensor) => new Uint32Array(copy, this.#offsets.get(t), elements(t.shape)),
    }));
    slot.free = results.then(
      () => undefined,
      () => undefined,
    );
    return { results };
  }

  destroy(): void {
    for (const { buffer } of this.#staging) this.#device.destroyBuffer(buffer);
    this.#staging = [];
  }
}
