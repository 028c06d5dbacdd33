// The gradient of the relative position bias on matrix units: scores and their gradients as the query gradient has them,
// then sums along the diagonals of every tile, since the bias of a pair depends on its distance alone. A second kernel sums
// what blocks of queries found for a distance, and distances of a bucket, all in a fixed order.
//
// In a tile of 64 queries and 32 keys, a thread (y, k) has the pairs of distance y - 32k between their rows in the tile: in
// column (i + y) % 32 for i = 0 … 31, so that threads read neighbouring words. The next tile's keys are 32 further, where
// thread (y, k + 1) has the same distance: it takes over the sum, and that of k = 2 is complete.

import {
  gradientInputs,
  QUERY_GRADIENT_OWNED,
  queryEntry,
  queryMiddle,
  queryScores,
} from "./attention_matrix_backward.ts";
import { matrixKernel, tileLoads, walkTiles } from "./attention_matrix_walk.ts";
import { laneVectors, PATCH_ROW, WALKED } from "./attention_matrix_wgsl.ts";
import { type AttentionDims, type AttentionVariant, PARAMS, paramsOf, repeat } from "./attention_wgsl.ts";
import { type Command, call, defineKernel, type Kernel, LINEAR_INDEX, read, spread, write } from "./kernel.ts";

const OWNED = QUERY_GRADIENT_OWNED;
/** Threads that take a distance over from each other. */
const TURNS = OWNED.rows / WALKED + 1;

const blocksOf = ({ queryLength }: AttentionDims): number => Math.ceil(queryLength / OWNED.rows);
/** Distances of a block: one of key j and query i of it is at j - (i - block) + rows. */
const stretchOf = ({ keyLength }: AttentionDims): number => Math.ceil(keyLength / WALKED) * WALKED + OWNED.rows;

/** f32 elements of the scratch buffer: [batch, heads, blocks, stretch]. */
export const matrixBiasScratch = (dims: AttentionDims): number =>
  dims.batch * dims.heads * blocksOf(dims) * stretchOf(dims);

function distancesKernel(v: AttentionVariant): Kernel<keyof typeof PARAMS | "stretch", string> {
  const o = OWNED;
  const products = /* wgsl */ `
    if (lid < ${TURNS * WALKED}u) {
      let y = lid % ${WALKED}u;
      let k = lid / ${WALKED}u;
      let parity = tile / ${WALKED}u % 2u;
      var sum = 0.0;
      for (var i = 0u; i < ${WALKED}u; i++) {
        let c = (i + y) % ${WALKED}u;
        let r = i + k * ${WALKED}u - select(0u, ${WALKED}u, i + y >= ${WALKED}u); // wraps around before the first row
        let pair = gradients_patch[min(r, ${o.rows - 1}u) * ${PATCH_ROW}u + c / 4u][c % 4u];
        sum += select(0.0, bitcast<f32>(pair), r < ${o.rows}u);
      }
      if (k > 0u && tile > walk_begin) { sum += carried[(1u - parity) * ${(TURNS - 1) * WALKED}u + lid - ${WALKED}u]; }
      if (k < ${TURNS - 1}u) {
        carried[parity * ${(TURNS - 1) * WALKED}u + lid] = sum;
      } else {
        scratch[stretch_at + tile + y] = sum;
      }
    }`;
  return matrixKernel(
    "attention_bias_gradient",
    v,
    o,
    { ...PARAMS, stretch: "u32" },
    { ...gradientInputs(v), scratch: write("f32") },
    [],
    ["scores_patch", "gradients_patch"],
    /* wgsl */ `
var<workgroup> carried: array<f32, ${2 * (TURNS - 1) * WALKED}>; // [parity of the tile, k, y]
${queryEntry(v, o)}
  let stretch_at = index * params.stretch;
  for (var t = lid; t < params.stretch; t += 128u) { scratch[stretch_at + t] = 0.0; }
  storageBarrier();
  ${walkTiles(tileLoads(v, o, "k", "v"), {
    scores: queryScores(v, o),
    middle: /* wgsl */ `${queryMiddle(v, o)}
    ${repeat(laneVectors(o), (x) => `gradients_patch[at + ${x}u] = bitcast<vec4u>(d_score${x});`, "\n    ")}
    workgroupBarrier();`,
    products,
  })}
  if (walk_begin < walk_end && lid < ${(TURNS - 1) * WALKED}u) {
    let last = (walk_end - 1u - walk_begin) / ${WALKED}u * ${WALKED}u + walk_begin;
    let at = last + lid % ${WALKED}u + (${TURNS - 1}u - lid / ${WALKED}u) * ${WALKED}u;
    scratch[stretch_at + at] = carried[last / ${WALKED}u % 2u * ${(TURNS - 1) * WALKED}u + lid];
  }
}
`,
  );
}

const LANES = 64;
const PARTS = 4;

// One workgroup per (bucket, head); each of 64 lanes has distances, and each of 4 parts of the workgroup has blocks.
const bucketsKernel = defineKernel({
  name: "attention_bias_gradient_buckets",
  params: {
    batch: "u32",
    heads: "u32",
    blocks: "u32",
    stretch: "u32",
    query_length: "u32",
    distances: "u32",
    buckets: "u32",
  },
  buffers: { scratch: read("f32"), bucket_of_distance: read("u32"), d_bias: write("f32") },
  wgsl: /* wgsl */ `${LINEAR_INDEX}
var<workgroup> partial: array<f32, ${LANES * PARTS}>;
@compute @workgroup_size(${LANES * PARTS})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lid: u32) {
  let index = linear_index(wid, num);
  if (index >= params.buckets * params.heads) { return; }
  let bucket = index / params.heads;
  let h = index % params.heads;
  var sum = 0.0;
  for (var distance = lid % ${LANES}u; distance < params.distances; distance += ${LANES}u) {
    if (bucket_of_distance[distance] != bucket) { continue; }
    for (var x = lid / ${LANES}u; x < params.batch * params.blocks; x += ${PARTS}u) {
      let block = x % params.blocks;
      // Of the block's stretch; wraps around before.
      let at = distance + (block + 1u) * ${OWNED.rows}u + 1u - params.query_length;
      let exists = at < params.stretch;
      let stretch = (x / params.blocks * params.heads + h) * params.blocks + block;
      sum += select(0.0, scratch[stretch * params.stretch + select(0u, at, exists)], exists);
    }
  }
  partial[lid] = sum;
  workgroupBarrier();
  if (lid == 0u) {
    for (var i = 1u; i < ${LANES * PARTS}u; i++) { sum += partial[i]; }
    d_bias[index] = sum;
  }
}
`,
});

/** As `attentionBiasGradient`, of a call that {@link onMatrixUnits} takes; `inputs` are the bound buffers of a gradient. */
export function matrixBiasGradient<T>(
  v: AttentionVariant,
  inputs: Record<string, T>,
  { bucketOfDistance, scratch, dBias }: { bucketOfDistance: T; scratch: T; dBias: T },
  dims: AttentionDims,
): Command<T>[] {
  const { batch, heads, queryLength, keyLength, buckets } = dims;
  const [blocks, stretch] = [blocksOf(dims), stretchOf(dims)];
  const distances = queryLength + keyLength - 1;
  return [
    call(distancesKernel(v), { ...paramsOf(dims), stretch }, { ...inputs, scratch }, spread(batch * heads * blocks)),
    call(
      bucketsKernel,
      { batch, heads, blocks, stretch, query_length: queryLength, distances, buckets },
      { scratch, bucket_of_distance: bucketOfDistance, d_bias: dBias },
      spread(buckets * heads),
    ),
  ];
}
