// Drawing the next token from its distribution (nucleus sampling: Holtzman et al. 2020). On the host, in float64, from
// counter-based random numbers: the same seed, input and position draw the same token on every adapter whose logits
// agree.

import { randomU32 } from "../data/random.ts";

/** Softmax of logits / temperature, in float64. */
export function softmax(logits: ArrayLike<number>, temperature = 1): Float64Array {
  let largest = Number.NEGATIVE_INFINITY;
  for (let i = 0; i < logits.length; i++) largest = Math.max(largest, logits[i]);
  const p = Float64Array.from(logits, (x) => Math.exp((x - largest) / temperature));
  const sum = p.reduce((a, b) => a + b, 0);
  return p.map((x) => x / sum);
}

/**
 * Draws from the most probable tokens whose probabilities reach `topP` together (at least one; the lower id first among
 * equals), renormalised.
 * @param draw uniform in [0, 1)
 */
export function sampleToken(
  logits: ArrayLike<number>,
  { temperature, topP }: { temperature: number; topP: number },
  draw: number,
): number {
  const p = softmax(logits, temperature);
  const order = [...p.keys()].sort((a, b) => p[b] - p[a] || a - b);
  let mass = 0;
  let count = 0;
  while (count < order.length && (count === 0 || mass < topP)) mass += p[order[count++]];
  let rest = draw * mass;
  for (let i = 0; i < count; i++) {
    rest -= p[order[i]];
    if (rest < 0) return order[i];
  }
  return order[count - 1];
}

/** Uniform in [0, 1) for one position of one input. */
export const uniformDraw = (seed: number, input: number, position: number): number =>
  randomU32(seed, input, position) / 2 ** 32;
