// A batch on its way to the device: each input of a program by name.

import type { Device } from "../../kernels/device/device.ts";
import { sortTokens } from "../../kernels/embedding.ts";
import type { Batch } from "../data/batches.ts";

/** What of a batch one program reads; the other fields stay as they are on the device. */
export type BatchPart = "all" | "decoder";

/**
 * Uploads the inputs that `inputs` has buffers for. `routePadding` marks every token as routable (Hugging Face Switch).
 * Token orders, which only the embedding's gradient reads, are made only where a program has them.
 */
export function uploadBatch(
  device: Device,
  inputs: ReadonlyMap<string, GPUBuffer>,
  batch: Batch,
  options: { routePadding: boolean; vocabularySize: number; part?: BatchPart },
): void {
  const set = (name: string, data: () => Uint32Array<ArrayBuffer> | Int32Array<ArrayBuffer>) => {
    const buffer = inputs.get(name);
    if (buffer) device.upload(buffer, data());
  };
  const lookup = (name: string, ids: Uint32Array<ArrayBuffer>) => {
    set(`${name}_ids`, () => ids);
    if (!inputs.has(`${name}_order`)) return;
    const { tokenOrder, rowStart } = sortTokens(ids, options.vocabularySize);
    set(`${name}_order`, () => tokenOrder);
    set(`${name}_row_start`, () => rowStart);
  };
  const routed = (real: Uint32Array<ArrayBuffer>) =>
    real.map((segment) => Number(options.routePadding || segment !== 0));

  lookup("decoder", batch.decoderInputIds);
  set("decoder_routed", () => routed(batch.decoderMask));
  set("labels", () => batch.labels);
  if (options.part === "decoder") return;
  lookup("input", batch.inputIds);
  set("input_segments", () => batch.inputSegments);
  set("input_routed", () => routed(batch.inputSegments));
  set("decoder_segments", () => batch.decoderSegments);
  set("cross_segments", () => crossSegments(batch));
}

/** [B, T + S]: what cross-attention reads, a row's segments in the decoder and then those of its input. */
function crossSegments({
  size,
  inputLength,
  targetLength,
  inputSegments,
  decoderSegments,
}: Batch): Uint32Array<ArrayBuffer> {
  const length = targetLength + inputLength;
  const both = new Uint32Array(size * length);
  for (let row = 0; row < size; row++) {
    both.set(decoderSegments.subarray(row * targetLength, (row + 1) * targetLength), row * length);
    both.set(inputSegments.subarray(row * inputLength, (row + 1) * inputLength), row * length + targetLength);
  }
  return both;
}
