// f16 in test buffers: two to a u32, as kernels store them (src/kernels/storage.ts).

import { float16Bits } from "../../src/server/worker/convert/float16.ts";
import { float16ToFloat32 } from "../../src/trainer/formats/float_conversion.ts";

/** Half a unit in the last place of 1: the relative error of rounding to f16, for values of 2^-14 and more. */
export const HALF_EPSILON = 2 ** -11;
/** The error of rounding what is smaller. */
export const SMALLEST_HALF = 2 ** -25;

/** `values`, an even number of them, rounded to f16. */
export function toHalves(values: ArrayLike<number>): Uint32Array {
  const packed = new Uint32Array(values.length / 2);
  for (let i = 0; i < values.length; i++) packed[i >> 1] |= float16Bits(values[i]) << (16 * (i % 2));
  return packed;
}

/** What {@link toHalves} packed, or a kernel did. */
export function fromHalves(packed: Uint32Array): Float32Array {
  const values = new Float32Array(2 * packed.length);
  float16ToFloat32(new Uint8Array(packed.slice().buffer as ArrayBuffer), values);
  return values;
}

/** What `values` are once they are stored as f16. */
export const asHalves = (values: ArrayLike<number>): Float32Array => fromHalves(toHalves(values));
