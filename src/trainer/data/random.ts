// Random numbers on the host, for the order of examples and for corrupting text: a pure function of (seed, stream,
// counter), so that anything drawn can be drawn again from its position alone. Not for the device (that is Philox in
// src/kernels) and not for secrets.

/** A bijection of 32-bit integers with low bias: `lowbias32` of github.com/skeeto/hash-prospector. */
function mix(x: number): number {
  x ^= x >>> 16;
  x = Math.imul(x, 0x7feb352d);
  x ^= x >>> 15;
  x = Math.imul(x, 0x846ca68b);
  return x ^ (x >>> 16);
}

/** A 32-bit unsigned integer. `seed` counts up to 53 bits; `stream` and `counter` up to 32. */
export function randomU32(seed: number, stream: number, counter: number): number {
  let hash = 0;
  for (const word of [seed, seed / 2 ** 32, stream, counter]) hash = mix(hash ^ word) + 0x9e3779b9;
  return mix(hash) >>> 0;
}

/** An integer in [0, below). The bias of scaling 32 bits, below / 2^32, is of no account here. */
export const randomBelow = (below: number, seed: number, stream: number, counter: number): number =>
  Math.floor((randomU32(seed, stream, counter) / 2 ** 32) * below);

/** A permutation of 0 … length − 1 (Fisher–Yates). */
export function randomPermutation(length: number, seed: number, stream: number): Uint32Array<ArrayBuffer> {
  const order = Uint32Array.from({ length }, (_, i) => i);
  for (let i = length - 1; i > 0; i--) {
    const j = randomBelow(i + 1, seed, stream, i);
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}
