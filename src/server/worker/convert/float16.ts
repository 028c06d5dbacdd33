// f32 to IEEE 754 binary16, rounding to nearest even: gates travel at half width. (Node 20 has no Float16Array.)

const float = new Float32Array(1);
const bits = new Uint32Array(float.buffer);

/** The bits of the f16 nearest to `value`; beyond 65520 it is infinity. */
export function float16Bits(value: number): number {
  float[0] = value;
  const sign = (bits[0] >>> 16) & 0x8000;
  const magnitude = bits[0] & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00; // NaN
  if (magnitude >= 0x477ff000) return sign | 0x7c00; // ≥ 65520
  if (magnitude < 0x38800000) {
    // Below 2^-14 f16 is a fixed-point number of 2^-24; scaling by a power of two is exact.
    return sign | roundToEven(Math.abs(float[0]) * 2 ** 24);
  }
  // Drop 13 fraction bits, then move the exponent's bias from 127 to 15. A carry out of the fraction is right as it is.
  const rounded = magnitude + 0xfff + ((magnitude >>> 13) & 1);
  return sign | ((rounded >>> 13) - (112 << 10));
}

function roundToEven(value: number): number {
  const floor = Math.floor(value);
  const rest = value - floor;
  if (rest !== 0.5) return rest < 0.5 ? floor : floor + 1;
  return floor % 2 === 0 ? floor : floor + 1;
}
