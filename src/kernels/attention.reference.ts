// Attention in float64 on plain arrays, scores and all: the definition that the kernels are tested against.

import type { AttentionDims } from "./attention_wgsl.ts";
import { uniformElement } from "./random.ts";

export interface AttentionInputs {
  q: ArrayLike<number>; // [batch, queryLength, heads, headDim]
  k: ArrayLike<number>; // [batch, keyLength, kvHeads, headDim]
  v: ArrayLike<number>; // like k
  segments?: ArrayLike<number>; // [batch, …], by dims.segments
  bias?: ArrayLike<number>; // [buckets, heads]
  bucketOfDistance?: ArrayLike<number>;
  /** With dropout. */
  random?: { seed: number; step: number };
}

export interface AttentionForward {
  out: Float64Array; // like q
  logSumExp: Float64Array; // [batch, heads, queryLength]
  /** [batch, heads, queryLength, keyLength], before dropout; 0 where hidden. */
  probabilities: Float64Array;
  /** Same shape: 0 or 1 / (1 − rate). */
  dropoutFactors: Float64Array;
}

/** One (batch, head, query, key): where it lies in each array. */
interface Pair {
  b: number;
  h: number;
  i: number;
  j: number;
  row: number; // of [batch, heads, queryLength]
  pair: number; // of [batch, heads, queryLength, keyLength]
  queryAt: number;
  keyAt: number;
}

function forEachPair(dims: AttentionDims, visit: (pair: Pair) => void): void {
  const { batch, heads, kvHeads, queryLength, keyLength, headDim } = dims;
  for (let b = 0; b < batch; b++)
    for (let h = 0; h < heads; h++)
      for (let i = 0; i < queryLength; i++)
        for (let j = 0; j < keyLength; j++) {
          const row = (b * heads + h) * queryLength + i;
          const kvHead = Math.floor(h / (heads / kvHeads));
          const queryAt = ((b * queryLength + i) * heads + h) * headDim;
          const keyAt = ((b * keyLength + j) * kvHeads + kvHead) * headDim;
          visit({ b, h, i, j, row, pair: row * keyLength + j, queryAt, keyAt });
        }
}

function dot(a: ArrayLike<number>, aAt: number, b: ArrayLike<number>, bAt: number, length: number): number {
  let sum = 0;
  for (let d = 0; d < length; d++) sum += a[aAt + d] * b[bAt + d];
  return sum;
}

/** Whether query i may see key j, by their segments and their order. */
function visible({ queryLength, keyLength, causal, segments: layout }: AttentionDims, segments: ArrayLike<number>) {
  return ({ b, i, j }: Pair): boolean => {
    if (causal && j > i) return false;
    if (layout === undefined) return true;
    const row = b * (layout === "both" ? queryLength + keyLength : keyLength);
    const querySegment = layout === "keys" ? 1 : segments[row + i];
    const keySegment = segments[row + (layout === "both" ? queryLength : 0) + j];
    return keySegment !== 0 && keySegment === querySegment;
  };
}

/** Scores, softmax over the visible keys, dropout, weighted sum; 0 and −1e30 where a query sees no key. */
export function attentionReference(inputs: AttentionInputs, dims: AttentionDims): AttentionForward {
  const { batch, heads, queryLength, keyLength, headDim, dropout } = dims;
  const { q, k, v, segments = [], bias, bucketOfDistance, random } = inputs;
  const rows = batch * heads * queryLength;
  const scores = new Float64Array(rows * keyLength).fill(Number.NEGATIVE_INFINITY);
  const largest = new Float64Array(rows).fill(-1e30);
  const sees = visible(dims, segments);
  forEachPair(dims, (at) => {
    const { h, i, j, row, pair, queryAt, keyAt } = at;
    if (!sees(at)) return;
    const offset = bias && bucketOfDistance ? bias[bucketOfDistance[j - i + queryLength - 1] * heads + h] : 0;
    scores[pair] = dims.scale * dot(q, queryAt, k, keyAt, headDim) + offset;
    largest[row] = Math.max(largest[row], scores[pair]);
  });
  const sums = new Float64Array(rows);
  forEachPair(dims, ({ row, pair }) => {
    sums[row] += Math.exp(scores[pair] - largest[row]);
  });
  const logSumExp = largest.map((m, row) => (sums[row] > 0 ? m + Math.log(sums[row]) : m));
  const probabilities = scores.map((s, pair) => Math.exp(s - logSumExp[Math.floor(pair / keyLength)]));
  const dropoutFactors = new Float64Array(scores.length).fill(1);
  if (dropout && random)
    dropoutFactors.forEach((_, pair) => {
      const kept = uniformElement(random.seed, random.step, dropout.use, pair) >= Math.fround(dropout.rate);
      dropoutFactors[pair] = kept ? 1 / (1 - dropout.rate) : 0;
    });
  const out = new Float64Array(q.length);
  forEachPair(dims, ({ pair, queryAt, keyAt }) => {
    const weight = probabilities[pair] * dropoutFactors[pair];
    for (let d = 0; d < headDim; d++) out[queryAt + d] += weight * v[keyAt + d];
  });
  return { out, logSumExp, probabilities, dropoutFactors };
}

export interface AttentionGradients {
  dQ: Float64Array;
  dK: Float64Array;
  dV: Float64Array;
  dBias: Float64Array; // [buckets, heads]
}

/** All gradients from dOut, shaped like q. */
export function attentionGradientsReference(
  inputs: AttentionInputs,
  forward: AttentionForward,
  dOut: ArrayLike<number>,
  dims: AttentionDims,
): AttentionGradients {
  const { heads, queryLength, headDim, scale } = dims;
  const { q, k, v, bucketOfDistance } = inputs;
  const { probabilities, dropoutFactors } = forward;
  const dProbabilities = new Float64Array(probabilities.length);
  const delta = new Float64Array(forward.logSumExp.length); // Σ_j p dp
  const [dQ, dK, dV] = [q, k, v].map((x) => new Float64Array(x.length));
  const dBias = new Float64Array(dims.buckets * heads);
  forEachPair(dims, ({ row, pair, queryAt, keyAt }) => {
    dProbabilities[pair] = dropoutFactors[pair] * dot(dOut, queryAt, v, keyAt, headDim);
    delta[row] += probabilities[pair] * dProbabilities[pair];
  });
  forEachPair(dims, ({ h, i, j, row, pair, queryAt, keyAt }) => {
    const dScore = probabilities[pair] * (dProbabilities[pair] - delta[row]);
    if (bucketOfDistance) dBias[bucketOfDistance[j - i + queryLength - 1] * heads + h] += dScore;
    for (let d = 0; d < headDim; d++) {
      dQ[queryAt + d] += scale * dScore * k[keyAt + d];
      dK[keyAt + d] += scale * dScore * q[queryAt + d];
      dV[keyAt + d] += probabilities[pair] * dropoutFactors[pair] * dOut[queryAt + d];
    }
  });
  return { dQ, dK, dV, dBias };
}
