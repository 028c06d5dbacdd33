import { suite } from "uvu";
import * as assert from "uvu/assert";
import {
  type AttentionInputs,
  attentionGradientsReference,
  attentionReference,
} from "../../src/kernels/attention.reference.ts";
import {
  type AttentionDims,
  attention,
  attentionBiasGradientScratch,
  attentionKeyValueGradient,
  attentionQueryBiasGradient,
  attentionRowStatistics,
  distanceBias,
  relativeBuckets,
} from "../../src/kernels/attention.ts";
import type { KernelTarget, Products } from "../../src/kernels/capabilities.ts";
import { packStepScalars } from "../../src/kernels/step_scalars.ts";
import { EPSILON, floatOutput, randomNumbers, uniform, withGuard } from "../support/arrays.ts";
import { compareWithTolerance, relativeError, testDevice } from "../support/gpu.ts";
import { onMatrixUnits } from "../support/matrix_units.ts";
import { runTwice } from "./run_twice.ts";

const test = suite("attention");
const { capabilities } = await testDevice();

const SEED = 77;
const STEP = 5;
const step = new Float32Array(
  packStepScalars({ step: STEP, seed: SEED, lossScale: 1, inverseTargetCount: 1, maxGradientNorm: 0 }).buffer,
);

interface Case {
  what: string;
  batch?: number;
  heads?: number;
  kvHeads?: number;
  queryLength: number;
  keyLength: number;
  headDim: number;
  scale?: number;
  causal?: boolean;
  /** Share of keys hidden, or how many at the end, under layout `keys`. */
  hidden?: number;
  hiddenTail?: number;
  /** Rows of several examples of random lengths, some padding before one of them and some at the end. */
  packed?: "shared" | "both";
  buckets?: number;
  /** Buckets' biases go up from minus that to that; without, they are random up to 1. */
  largestBias?: number;
  rate?: number;
  /** Also on matrix units; few, for emulated units take long to compile. */
  matrix?: true;
}

const cases: Case[] = [
  { what: "one query, one key, one number", queryLength: 1, keyLength: 1, headDim: 1 },
  { what: "head of 3, cross lengths", batch: 2, heads: 2, queryLength: 5, keyLength: 19, headDim: 3, scale: 0.6 },
  { what: "causal over several blocks", queryLength: 133, keyLength: 133, headDim: 16, causal: true, matrix: true },
  { what: "T5 encoder", batch: 3, heads: 2, queryLength: 37, keyLength: 37, headDim: 8, hidden: 0.4, buckets: 8 },
  {
    what: "grouped queries, hidden keys, causal",
    batch: 2,
    heads: 6,
    kvHeads: 2,
    queryLength: 21,
    keyLength: 21,
    headDim: 16,
    scale: 0.25,
    causal: true,
    hidden: 0.3,
    matrix: true,
  },
  {
    what: "packed rows, causal, biased, dropout",
    batch: 3,
    heads: 2,
    queryLength: 41,
    keyLength: 41,
    headDim: 8,
    causal: true,
    packed: "shared",
    buckets: 8,
    rate: 0.2,
  },
  {
    what: "packed rows, both ways; a block of queries sees none of the first keys",
    queryLength: 140,
    keyLength: 140,
    headDim: 16,
    packed: "shared",
    buckets: 6,
    matrix: true,
  },
  {
    what: "packed rows against packed keys, grouped queries",
    batch: 3,
    heads: 4,
    kvHeads: 2,
    queryLength: 19,
    keyLength: 45,
    headDim: 4,
    packed: "both",
    rate: 0.1,
  },
  { what: "dropout, keys in fours", heads: 2, queryLength: 18, keyLength: 20, headDim: 4, rate: 0.3 },
  {
    what: "everything at once",
    batch: 2,
    heads: 4,
    kvHeads: 2,
    queryLength: 23,
    keyLength: 23,
    headDim: 5,
    scale: 0.5,
    causal: true,
    hidden: 0.2,
    buckets: 5,
    rate: 0.1,
  },
  { what: "a head too large to unroll", queryLength: 3, keyLength: 11, headDim: 132, scale: 0.09 },
  {
    what: "several tiles of keys, causal, biased, dropout",
    heads: 2,
    queryLength: 70,
    keyLength: 70,
    headDim: 32,
    scale: 0.2,
    causal: true,
    hidden: 0.1,
    buckets: 8,
    rate: 0.2,
    matrix: true,
  },
  {
    what: "several blocks of queries, scores that grow along the keys, padding",
    queryLength: 140,
    keyLength: 75,
    headDim: 16,
    scale: 0.2,
    hiddenTail: 7,
    buckets: 8,
    largestBias: 8,
    matrix: true,
  },
  {
    what: "cross lengths of a wide head",
    queryLength: 17,
    keyLength: 67,
    headDim: 48,
    scale: 0.14,
    packed: "both",
    matrix: true,
  },
];

/** Target and products; matrix units take heads of multiples of 16. */
const WAYS: readonly { target: KernelTarget; products: Products }[] = [
  { target: "software", products: "f32" },
  { target: "hardware", products: "f32" },
  { target: "hardware", products: "matrix" },
];

/** Segment ids of one row: examples 1, 2, 3 of lengths that leave a sixth of it, half of that between 1 and 2. */
function packedRow(length: number, random: () => number): number[] {
  const gap = Math.floor(length / 12);
  const first = 1 + Math.floor((random() * length) / 3);
  const second = 1 + Math.floor((random() * length) / 3);
  const third = Math.max(0, length - 2 * gap - first - second);
  const parts = [first, gap, second, third].flatMap((n, part) => new Array<number>(n).fill([1, 0, 2, 3][part]));
  return [...parts, ...new Array<number>(length).fill(0)].slice(0, length);
}

const largest = (x: ArrayLike<number>): number => Array.from(x).reduce((m, value) => Math.max(m, Math.abs(value)), 0);

/** The largest Σ_d |a·b| over rows of a and b: what rounding in a dot product scales with. */
function largestProduct(a: Float32Array, b: Float32Array, headDim: number): number {
  const norm = (x: Float32Array) => {
    let most = 0;
    for (let at = 0; at < x.length; at += headDim) most = Math.max(most, Math.hypot(...x.subarray(at, at + headDim)));
    return most;
  };
  return norm(a) * norm(b);
}

for (const { target, products } of WAYS)
  for (const given of cases) {
    const matrix = products === "matrix";
    if (matrix && !given.matrix) continue;
    test(`forward and gradients agree with float64: ${given.what} (${target} ${products})`, async () => {
      const { hidden = 0, hiddenTail = 0, packed, rate, largestBias } = given;
      const dims: AttentionDims = {
        batch: 1,
        heads: 1,
        scale: 1,
        causal: false,
        buckets: 0,
        ...given,
        kvHeads: given.kvHeads ?? given.heads ?? 1,
        segments: packed ?? (hidden + hiddenTail > 0 ? "keys" : undefined),
        dropout: rate === undefined ? undefined : { rate, use: 9 },
        products,
      };
      const { batch, heads, kvHeads, queryLength, keyLength, headDim, scale, buckets } = dims;
      const random = randomNumbers(queryLength * 1000 + keyLength * 10 + headDim);
      const queries = batch * queryLength * heads * headDim;
      const keys = batch * keyLength * kvHeads * headDim;
      const rows = batch * heads * queryLength;
      const inputs = {
        q: uniform(queries, 1, random),
        k: uniform(keys, 1, random),
        v: uniform(keys, 1, random),
        dOut: uniform(queries, 1, random),
        segments: Uint32Array.from(
          Array.from({ length: batch }, () => {
            if (packed === undefined)
              return Array.from({ length: keyLength }, (_, j) =>
                Number(random() >= hidden && j < keyLength - hiddenTail),
              );
            const keySegments = packedRow(keyLength, random);
            return packed === "both" ? [...packedRow(queryLength, random), ...keySegments] : keySegments;
          }).flat(),
        ),
        bias: uniform(Math.max(buckets * heads, 1), 1, random).map((x, i) =>
          largestBias === undefined ? x : largestBias * ((2 * Math.floor(i / heads)) / (buckets - 1) - 1),
        ),
        bucketOfDistance: relativeBuckets(queryLength, keyLength, {
          buckets: Math.max(buckets, 4),
          maxDistance: 20,
          bidirectional: !dims.causal,
        }),
        step,
      };
      const out = await runTwice({
        buffers: {
          ...inputs,
          out: floatOutput(queries),
          logSumExp: floatOutput(rows),
          rowStatistics: floatOutput(2 * rows),
          distanceBias: floatOutput(heads * (queryLength + keyLength - 1)),
          dQ: floatOutput(queries),
          dK: floatOutput(keys),
          dV: floatOutput(keys),
          scratch: floatOutput(attentionBiasGradientScratch(dims)),
          dBias: floatOutput(buckets * heads),
          dBiasAlone: floatOutput(buckets * heads),
        },
        commands: ({ segments, bias: table, distanceBias: byDistance, step: scalars, ...b }) => {
          const optional = {
            segments: dims.segments && segments,
            distanceBias: buckets > 0 ? byDistance : undefined,
            step: rate === undefined ? undefined : scalars,
          };
          const buffers = { ...b, ...optional };
          const alone = { dQ: undefined, bias: { ...b, dBias: b.dBiasAlone } };
          const commands = [
            ...(buckets > 0 ? distanceBias({ ...b, table, out: byDistance }, dims) : []),
            ...attention(buffers, dims, target),
            ...attentionRowStatistics(buffers, dims),
            ...attentionQueryBiasGradient({ ...buffers, bias: buckets > 0 ? b : undefined }, dims, target),
            ...attentionKeyValueGradient(buffers, dims, target),
            ...(buckets > 0 ? attentionQueryBiasGradient({ ...buffers, ...alone }, dims, target) : []),
          ];
          return onMatrixUnits(capabilities, commands);
        },
      });

      const reference: AttentionInputs = {
        ...inputs,
        bias: buckets > 0 ? inputs.bias : undefined,
        bucketOfDistance: buckets > 0 ? inputs.bucketOfDistance : undefined,
        random: { seed: SEED, step: STEP },
      };
      const forward = attentionReference(reference, dims);
      const gradients = attentionGradientsReference(reference, forward, inputs.dOut, dims);

      // Rounding of a dot product of headDim terms: 4 · sqrt(headDim) · EPSILON · Σ|ab| (c = 4 covers the walk's luck).
      // Rounding both operands of a product to f16, to nearest or towards zero, changes it by 2·2^-10 of itself and a
      // little; numbers of f16 below its normal range, 2^-25.
      const rounding = matrix ? 2.1 * 2 ** -10 : 0;
      const subnormal = matrix ? 2 ** -25 : 0;
      const dot = (4 * Math.sqrt(headDim) + 4) * EPSILON + rounding;
      const largestScore = scale * largestProduct(inputs.q, inputs.k, headDim);
      const bias = buckets > 0 ? (largestBias ?? 1) : 0;
      // A probability: the score's rounding, of its product and its bias; exp (3 + 2|x| units) of a difference up to twice
      // both; the sum over keys; log-sum-exp brings log's 2^-21 into the backward pass.
      const spread = 2 * (largestScore + bias);
      const roundings = 2 * (3 + 2 * spread) + spread + 4 * bias + 4 * Math.sqrt(keyLength) + 8;
      const relative = 2 * (dot * largestScore + EPSILON * roundings) + 2 ** -21;
      const factor = rate === undefined ? 1 : 1 / (1 - rate);
      const outTolerance = (2 * relative + 8 * EPSILON + rounding) * factor + keyLength * subnormal;
      const dp = factor * largestProduct(inputs.dOut, inputs.v, headDim); // bounds |dp| and |delta|
      const dpError = dot * dp + relative * dp + headDim * outTolerance; // of dp and of delta
      const dScore = 2 * (relative * dp + dpError + rounding * dp); // relative to p
      // Sums over keys have Σp ≤ 1; sums over queries have Σp as large as the key's column.
      const columns = new Float64Array(batch * kvHeads * keyLength);
      const bucketSums = new Float64Array(buckets * heads);
      forward.probabilities.forEach((p, pair) => {
        const [j, i] = [pair % keyLength, Math.floor(pair / keyLength) % queryLength];
        const h = Math.floor(pair / keyLength / queryLength) % heads;
        const b = Math.floor(pair / keyLength / queryLength / heads);
        columns[(b * keyLength + j) * kvHeads + Math.floor((h * kvHeads) / heads)] += p;
        if (buckets > 0) bucketSums[inputs.bucketOfDistance[j - i + queryLength - 1] * heads + h] += p;
      });
      const column = (i: number) => columns[Math.floor(i / headDim)];
      const check = (
        name: "out" | "logSumExp" | "dQ" | "dK" | "dV" | "dBias" | "dBiasAlone",
        expected: Float64Array,
        toleranceOf: (i: number) => number,
      ) => {
        const guarded = withGuard(expected, out[name]);
        compareWithTolerance(out[name], guarded, (i) => (i < expected.length ? toleranceOf(i) : 0), name);
        // The bounds of single numbers are wide in f16; as a whole, a few roundings of 2^-11 do not come near 2^-8.
        if (matrix && name !== "logSumExp")
          assert.ok(relativeError(out[name].subarray(0, expected.length), expected) < 2 ** -8, `${name} as a whole`);
      };
      check("out", forward.out, () => outTolerance * largest(inputs.v));
      check("logSumExp", forward.logSumExp, (i) =>
        forward.logSumExp[i] < -1e29 ? 1e30 * EPSILON : relative + 4 * EPSILON * Math.abs(forward.logSumExp[i]),
      );
      check("dQ", gradients.dQ, () => scale * (dScore + keyLength * subnormal));
      check("dK", gradients.dK, (i) => scale * (dScore * column(i) + (heads / kvHeads) * queryLength * subnormal));
      check(
        "dV",
        gradients.dV,
        (i) => (2 * relative + rounding) * factor * column(i) + (heads / kvHeads) * queryLength * subnormal,
      );
      check("dBias", gradients.dBias, (i) => dScore * bucketSums[i]);
      check("dBiasAlone", gradients.dBias, (i) => dScore * bucketSums[i]);
    });
  }

for (const { target, products } of WAYS)
  test(`a query that sees no key gives exactly 0 and sends exactly 0 back (${target} ${products})`, async () => {
    const dims: AttentionDims = {
      ...{ batch: 1, heads: 1, kvHeads: 1, queryLength: 2, keyLength: 3, headDim: 16, scale: 1, causal: false },
      ...{ buckets: 4, segments: "keys", products },
    };
    const [queries, keys] = [2 * 16, 3 * 16];
    const random = randomNumbers(1);
    const out = await runTwice({
      buffers: {
        q: uniform(queries, 1, random),
        k: uniform(keys, 1, random),
        v: uniform(keys, 1, random),
        dOut: uniform(queries, 1, random),
        segments: new Uint32Array(3),
        distanceBias: uniform(4, 1, random),
        bucketOfDistance: Uint32Array.of(0, 1, 2, 3),
        out: floatOutput(queries),
        logSumExp: floatOutput(2),
        rowStatistics: floatOutput(4),
        dQ: floatOutput(queries),
        dK: floatOutput(keys),
        dV: floatOutput(keys),
        scratch: floatOutput(attentionBiasGradientScratch(dims)),
        dBias: floatOutput(4),
      },
      commands: (b) =>
        onMatrixUnits(capabilities, [
          ...attention(b, dims, target),
          ...attentionRowStatistics(b, dims),
          ...attentionQueryBiasGradient({ ...b, bias: b }, dims, target),
          ...attentionKeyValueGradient(b, dims, target),
        ]),
    });
    for (const name of ["out", "dQ", "dK", "dV", "dBias"] as const)
      assert.equal(Array.from(out[name]), withGuard(new Float32Array(out[name].length - 7), out[name]), name);
  });

// Boundaries in exact integers: with half h = buckets of one side / 2, distance d ≥ h lies in bucket h + m for the
// largest m with (d/h)^h ≥ (maxDistance/h)^m.
for (const { buckets, maxDistance, bidirectional } of [
  { buckets: 32, maxDistance: 128, bidirectional: true },
  { buckets: 32, maxDistance: 128, bidirectional: false },
  { buckets: 8, maxDistance: 20, bidirectional: true },
]) {
  const what = `${buckets} buckets to ${maxDistance}, ${bidirectional ? "both ways" : "backwards"}`;
  test(`relative buckets have T5's boundaries: ${what}`, () => {
    const length = 300;
    const table = relativeBuckets(length, length, { buckets, maxDistance, bidirectional });
    const side = bidirectional ? buckets / 2 : buckets;
    const half = BigInt(side / 2);
    const expected = (relative: number): number => {
      const later = bidirectional && relative > 0;
      const d = BigInt(bidirectional ? Math.abs(relative) : Math.max(-relative, 0));
      let bucket = d < half ? d : half;
      // (d/h)^h ≥ (M/h)^m  ⇔  d^h · h^m ≥ M^m · h^h
      for (let m = 1n; d >= half && m < half && d ** half * half ** m >= BigInt(maxDistance) ** m * half ** half; m++)
        bucket = half + m;
      return Number(bucket) + (later ? side : 0);
    };
    const wanted = Array.from(table, (_, i) => expected(i - length + 1));
    assert.equal(Array.from(table), wanted);
  });
}

test.run();
