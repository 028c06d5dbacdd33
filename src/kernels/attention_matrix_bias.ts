// The gradient of the relative position bias on matrix units. The query gradient's kernel has the gradients of scores at
// hand and leaves their sums for each block of queries and each distance (attention_matrix_diagonals.ts). Here these are
// summed over batches and blocks, and then over the distances of a bucket: in two steps, since some buckets have one
// distance and others hundreds. All in a fixed order.

import { matrixQueryGradientKernel, QUERY_GRADIENT_OWNED } from "./attention_matrix_backward.ts";
import { LINES, lineLength } from "./attention_matrix_diagonals.ts";
import { type AttentionDims, type AttentionVariant, paramsOf, repeat } from "./attention_wgsl.ts";
import { type Command, call, defineKernel, LINEAR_INDEX, madeOnce, read, spread, write } from "./kernel.ts";

const OWNED = QUERY_GRADIENT_OWNED;
const queryGradient = madeOnce(matrixQueryGradientKernel);

const blocksOf = ({ queryLength }: AttentionDims): number => Math.ceil(queryLength / OWNED.rows);
const distancesOf = ({ queryLength, keyLength }: AttentionDims): number => queryLength + keyLength - 1;
/** f32 elements of the lines of all workgroups, [batch, heads, blocks, LINES, lineLength]. */
const linesOf = (dims: AttentionDims): number =>
  dims.batch * dims.heads * blocksOf(dims) * LINES * lineLength(OWNED, dims.keyLength);

/** f32 elements of the scratch buffer: the lines, and behind them the sums of distances, [heads, distances]. */
export const matrixBiasScratch = (dims: AttentionDims): number => linesOf(dims) + dims.heads * distancesOf(dims);

const LANES = 64;
const PARTS = 4;

// A workgroup has 64 distances of a head, a lane each; each of its 4 parts has every fourth block.
const distancesKernel = defineKernel({
  name: "attention_bias_gradient_distances",
  params: {
    batch: "u32",
    heads: "u32",
    blocks: "u32",
    line: "u32",
    query_length: "u32",
    distances: "u32",
    sums_at: "u32",
  },
  buffers: { scratch: write("f32") },
  wgsl: /* wgsl */ `${LINEAR_INDEX}
var<workgroup> partial: array<f32, ${LANES * PARTS}>;
@compute @workgroup_size(${LANES * PARTS})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lid: u32) {
  let index = linear_index(wid, num);
  let chunks = (params.distances + ${LANES - 1}u) / ${LANES}u;
  if (index >= params.heads * chunks) { return; }
  let h = index / chunks;
  let distance = index % chunks * ${LANES}u + lid % ${LANES}u; // key - query + query_length - 1
  var sum = 0.0;
  for (var x = lid / ${LANES}u; x < params.batch * params.blocks; x += ${PARTS}u) {
    let block = x % params.blocks;
    let lines = ((x / params.blocks * params.heads + h) * params.blocks + block) * ${LINES}u;
    // In the first line; wraps around before it.
    let at = distance + (block + 1u) * ${OWNED.rows}u + 1u - params.query_length;
    ${repeat(
      LINES,
      (s) => /* wgsl */ `let exists${s} = at + ${s}u < params.line;
    let sum${s} = scratch[(lines + ${s}u) * params.line + select(0u, at + ${s}u, exists${s})];`,
      "\n    ",
    )}
    ${repeat(LINES, (s) => `sum += select(0.0, sum${s}, exists${s});`, " ")}
  }
  partial[lid] = sum;
  workgroupBarrier();
  if (lid < ${LANES}u && distance < params.distances) {
    scratch[params.sums_at + h * params.distances + distance] = ${repeat(PARTS, (x) => `partial[lid + ${x * LANES}u]`, " + ")};
  }
}
`,
});

// One workgroup per (bucket, head).
const bucketsKernel = defineKernel({
  name: "attention_bias_gradient_buckets",
  params: { heads: "u32", distances: "u32", buckets: "u32", sums_at: "u32" },
  buffers: { scratch: read("f32"), bucket_of_distance: read("u32"), d_bias: write("f32") },
  wgsl: /* wgsl */ `${LINEAR_INDEX}
var<workgroup> partial: array<f32, ${LANES}>;
@compute @workgroup_size(${LANES})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lid: u32) {
  let index = linear_index(wid, num);
  if (index >= params.buckets * params.heads) { return; }
  let bucket = index / params.heads;
  let sums_at = params.sums_at + index % params.heads * params.distances;
  var sum = 0.0;
  for (var distance = lid; distance < params.distances; distance += ${LANES}u) {
    sum += select(0.0, scratch[sums_at + distance], bucket_of_distance[distance] == bucket);
  }
  partial[lid] = sum;
  workgroupBarrier();
  if (lid == 0u) {
    for (var i = 1u; i < ${LANES}u; i++) { sum += partial[i]; }
    d_bias[index] = sum;
  }
}
`,
});

/** What the gradient of the position bias needs, see `attentionQueryBiasGradient`. */
export interface BiasGradientBuffers<T> {
  /** [queryLength + keyLength - 1] u32, from `relativeBuckets`. */
  readonly bucketOfDistance: T;
  /** `attentionBiasGradientScratch` f32 elements. */
  readonly scratch: T;
  /** [buckets, heads] f32. */
  readonly dBias: T;
}

/** As `attentionQueryBiasGradient`, of a call that `onMatrixUnits` takes; `inputs` are the bound buffers of a gradient. */
export function matrixQueryBiasGradient<T>(
  v: AttentionVariant,
  inputs: Record<string, T>,
  { dQ, bias }: { dQ?: T; bias?: BiasGradientBuffers<T> },
  dims: AttentionDims,
): Command<T>[] {
  const { batch, heads, queryLength, keyLength, buckets } = dims;
  const [blocks, distances, sums_at] = [blocksOf(dims), distancesOf(dims), linesOf(dims)];
  const line = lineLength(OWNED, keyLength);
  const bound = { ...inputs };
  if (dQ !== undefined) bound.d_q = dQ;
  if (bias) bound.scratch = bias.scratch;
  const kernel = queryGradient(v, { query: dQ !== undefined, bias: bias !== undefined });
  const gradient = call(kernel, paramsOf(dims), bound, spread(batch * heads * blocks));
  if (!bias) return [gradient];
  const { bucketOfDistance, scratch, dBias } = bias;
  return [
    gradient,
    call(
      distancesKernel,
      { batch, heads, blocks, line, query_length: queryLength, distances, sums_at },
      { scratch },
      spread(heads * Math.ceil(distances / LANES)),
    ),
    call(
      bucketsKernel,
      { heads, distances, buckets, sums_at },
      { scratch, bucket_of_distance: bucketOfDistance, d_bias: dBias },
      spread(buckets * heads),
    ),
  ];
}
