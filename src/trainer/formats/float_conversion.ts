// Stored floating-point formats to f32. Sources are raw little-endian bytes, as they lie in a file.
// F16 and BF16 are subsets of f32, so their conversion is exact; F64 rounds to nearest even.

/** Every f16 value by its bits; 256 KiB, made at first use. */
let float16Values: Float32Array | undefined;

function makeFloat16Values(): Float32Array {
  const values = new Float32Array(1 << 16);
  for (let bits = 0; bits < values.length; bits++) {
    const sign = bits & 0x8000 ? -1 : 1;
    const exponent = (bits >> 10) & 0x1f;
    const fraction = bits & 0x3ff;
    if (exponent === 0) values[bits] = sign * fraction * 2 ** -24;
    else if (exponent === 0x1f) values[bits] = fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
    else values[bits] = sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  }
  return values;
}

/** source: [n] f16 as bytes → target: [n] f32 */
export function float16ToFloat32(source: Uint8Array<ArrayBuffer>, target: Float32Array<ArrayBuffer>): void {
  float16Values ??= makeFloat16Values();
  for (let i = 0; i < target.length; i++) target[i] = float16Values[source[2 * i] | (source[2 * i + 1] << 8)];
}

/** source: [n] bf16 as bytes → target: [n] f32. A bf16 is the upper half of an f32. */
export function bfloat16ToFloat32(source: Uint8Array<ArrayBuffer>, target: Float32Array<ArrayBuffer>): void {
  const bits = new Uint32Array(target.buffer, target.byteOffset, target.length);
  for (let i = 0; i < bits.length; i++) bits[i] = (source[2 * i] << 16) | (source[2 * i + 1] << 24);
}

/** source: [n] f64 as bytes → target: [n] f32 */
export function float64ToFloat32(source: Uint8Array<ArrayBuffer>, target: Float32Array<ArrayBuffer>): void {
  const view = new DataView(source.buffer, source.byteOffset, source.byteLength);
  for (let i = 0; i < target.length; i++) target[i] = view.getFloat64(8 * i, true);
}
