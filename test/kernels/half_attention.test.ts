// Attention whose heads and gradients are f16. That it is right in f32 is attention.test.ts's business.

import { test } from "uvu";
import {
  type AttentionDims,
  attention,
  attentionBiasGradientScratch,
  attentionKeyValueGradient,
  attentionQueryBiasGradient,
  attentionRowStatistics,
  relativeBuckets,
} from "../../src/kernels/attention.ts";
import { packStepScalars } from "../../src/kernels/step_scalars.ts";
import { held, sameInHalves } from "./in_halves.ts";
import { randomValues } from "./run_twice.ts";

const [BATCH, HEADS, KEY_HEADS, QUERIES, KEYS, BUCKETS] = [2, 2, 1, 37, 41, 8];
const CASES = [
  ["software", "f32", 8],
  ["software", "f32", 48],
  ["hardware", "f32", 16],
  ["hardware", "matrix", 16],
  ["hardware", "matrix", 80],
] as const;

for (const [target, products, headDim] of CASES)
  test(`${target} ${products}, heads of ${headDim}: forward and every gradient`, async () => {
    const dims: AttentionDims = {
      ...{ batch: BATCH, heads: HEADS, kvHeads: KEY_HEADS, queryLength: QUERIES, keyLength: KEYS, headDim },
      ...{ scale: 0.5, causal: false, buckets: BUCKETS, segments: "keys", dropout: { rate: 0.2, use: 1 }, products },
    };
    const [queries, keys] = [BATCH * QUERIES * HEADS * headDim, BATCH * KEYS * KEY_HEADS * headDim];
    const rows = BATCH * HEADS * QUERIES;
    const floats = {
      ...{ q: held(queries, 1), k: held(keys, 2), v: held(keys, 3), out: held(queries, 4), dOut: held(queries, 5) },
      ...{ dQ: held(queries, 6), dK: held(keys, 7), dV: held(keys, 8) },
      ...{ logSumExp: randomValues(rows, 9), dBias: randomValues(BUCKETS * HEADS, 10) },
      given: held(queries, 11),
    };
    const bucketing = { buckets: BUCKETS, maxDistance: 16, bidirectional: true };
    const others = {
      segments: Uint32Array.from({ length: BATCH * KEYS }, (_, i) => Number(i % KEYS < 35)),
      distanceBias: randomValues((QUERIES + KEYS - 1) * HEADS, 12),
      bucketOfDistance: relativeBuckets(QUERIES, KEYS, bucketing),
      step: new Uint32Array(
        packStepScalars({ seed: 3, step: 2, lossScale: 1, inverseTargetCount: 1, maxGradientNorm: 0 }).buffer,
      ),
      rowStatistics: new Float32Array(2 * rows),
      scratch: new Float32Array(attentionBiasGradientScratch(dims)),
    };
    // `given` stands for the output of the forward pass, so that rounding it does not change what the gradients read.
    const halves = ["q", "k", "v", "out", "dOut", "dQ", "dK", "dV", "given"];
    const outputs = { out: queries, logSumExp: rows, dQ: queries, dK: keys, dV: keys, dBias: BUCKETS * HEADS };
    await sameInHalves(floats, others, halves, outputs, (b, stored) => {
      const half = { ...dims, half: stored.length > 0 };
      return [
        ...attention(b, half, target),
        ...attentionRowStatistics({ ...b, out: b.given }, half),
        ...attentionQueryBiasGradient({ ...b, bias: b }, half, target),
        ...attentionKeyValueGradient(b, half, target),
      ];
    });
  });

test.run();
