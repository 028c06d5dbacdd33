// Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011;
// reference implementation Random123). A value is a pure function of (seed, step, use, element), so a dropout mask is
// recomputed in the backward pass instead of stored, and a run replays bit for bit on any adapter.
//
// `use` names one consumer of randomness in a model (one dropout site); key = (seed, use), counter = (element / 4,
// step, 0, 0), and element % 4 picks one of the four words.

/**
 * WGSL: `philox(counter: vec4u, key: vec2u) -> vec4u`, `uniform_of_word(word: u32) -> f32` in [0, 1), a multiple of
 * 2^-24, and `uniform_element(seed, step, use, element) -> f32`, which is both for one element.
 */
export const PHILOX = /* wgsl */ `
// The 64-bit product of two u32 as (high, low); WGSL has no wider integer.
fn multiply_wide(a: u32, b: u32) -> vec2u {
  let low = (a & 0xffffu) * (b & 0xffffu);
  let middle_1 = (a >> 16) * (b & 0xffffu) + (low >> 16);
  let middle_2 = (a & 0xffffu) * (b >> 16) + (middle_1 & 0xffffu);
  return vec2u((a >> 16) * (b >> 16) + (middle_1 >> 16) + (middle_2 >> 16), a * b);
}

fn philox(counter: vec4u, key: vec2u) -> vec4u {
  var c = counter;
  var k = key;
  for (var round = 0; round < 10; round++) {
    let product_0 = multiply_wide(0xd2511f53u, c.x);
    let product_1 = multiply_wide(0xcd9e8d57u, c.z);
    c = vec4u(product_1.x ^ c.y ^ k.x, product_1.y, product_0.x ^ c.w ^ k.y, product_0.y);
    k += vec2u(0x9e3779b9u, 0xbb67ae85u);
  }
  return c;
}

fn uniform_of_word(word: u32) -> f32 { return f32(word >> 8) * ${2 ** -24}; }

fn uniform_element(seed: u32, step: u32, use_id: u32, element: u32) -> f32 {
  let words = philox(vec4u(element / 4, step, 0, 0), vec2u(seed, use_id));
  return uniform_of_word(words[element % 4]);
}
`;

type Four = [number, number, number, number];

/** Philox4x32-10 of a counter and a key of u32 words. */
export function philox(counter: Readonly<Four>, key: readonly [number, number]): Four {
  const c = counter.map(BigInt);
  const k = key.map(BigInt);
  const word = (x: bigint): bigint => x & 0xffffffffn;
  for (let round = 0; round < 10; round++) {
    const product0 = 0xd2511f53n * c[0];
    const product1 = 0xcd9e8d57n * c[2];
    c.splice(0, 4, (product1 >> 32n) ^ c[1] ^ k[0], word(product1), (product0 >> 32n) ^ c[3] ^ k[1], word(product0));
    k.splice(0, 2, word(k[0] + 0x9e3779b9n), word(k[1] + 0xbb67ae85n));
  }
  return c.map(Number) as Four;
}

/** The uniform value in [0, 1) of one element, exactly as the kernels compute it. */
export function uniformElement(seed: number, step: number, use: number, element: number): number {
  const words = philox([Math.floor(element / 4), step, 0, 0], [seed, use]);
  return (words[element % 4] >>> 8) * 2 ** -24;
}
