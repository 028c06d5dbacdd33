// Test arrays: seeded numbers, buffers filled with sentinels, and the unit of f32 rounding.

/** Half a unit in the last place of 1: the relative error of one correctly rounded f32 operation. */
export const EPSILON = 2 ** -24;

/** What an f32 output holds before a kernel writes it; no test computes this value. */
export const SENTINEL = 12345.678;
/** The same for integer outputs. */
export const INTEGER_SENTINEL = 0xabcdef;
/** Elements behind the end of every output, to catch writes out of range. */
const GUARD = 7;

/** Uniform numbers in [0, 1) (mulberry32). */
export function randomNumbers(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** `count` f32 numbers, uniform in (-scale, scale). */
export const uniform = (count: number, scale: number, random: () => number): Float32Array =>
  Float32Array.from({ length: count }, () => scale * (2 * random() - 1));

export const floatOutput = (count: number): Float32Array => new Float32Array(count + GUARD).fill(SENTINEL);
export const integerOutput = (count: number): Uint32Array => new Uint32Array(count + GUARD).fill(INTEGER_SENTINEL);

/** The reference result, followed by the sentinels that a kernel must leave behind its output. */
export function withGuard(expected: ArrayLike<number>, output: Float32Array | Uint32Array): number[] {
  const tail = output.length - expected.length;
  const sentinel = output instanceof Float32Array ? Math.fround(SENTINEL) : INTEGER_SENTINEL;
  return [...Array.from(expected), ...Array.from({ length: tail }, () => sentinel)];
}
