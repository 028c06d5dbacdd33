// The way back through attention: probabilities are recomputed from the scores and the saved log-sum-exp.
//
//   p      = exp(score[i,j] − logSumExp_i)            w = p · dropout factor
//   dScore = p · (dropout factor · dOut_i·v_j − delta_i),   delta_i = Σ_d out_i·dOut_i = Σ_j p dp
//   dQ_i = scale · Σ_j dScore k_j    dK_j = scale · Σ_i dScore q_i    dV_j = Σ_i w dOut_i    dBias[bucket] = Σ dScore
// Queries and keys each own their sums (FlashAttention's two kernels), so nothing is added atomically; the scores are
// computed twice, and a third time for the bias where it is trained, but for matrix units, where queries sum it by the way.
// A key/value head of grouped-query attention walks the queries of all its heads.

import { attentionCall, onMatrixUnits } from "./attention_matrix.ts";
import { KEY_VALUE_GRADIENT_OWNED, matrixKeyValueGradientKernel } from "./attention_matrix_backward.ts";
import { type BiasGradientBuffers, matrixBiasScratch, matrixQueryBiasGradient } from "./attention_matrix_bias.ts";
import {
  type AttentionDims,
  type AttentionOptionalBuffers,
  type AttentionVariant,
  common,
  dotProduct,
  each,
  entry,
  headFloats,
  optionalBuffers,
  optionalDeclarations,
  ownedRows,
  PARAMS,
  paramsOf,
  repeat,
  stagedTiles,
  variantName,
  variantOf,
  walk,
  workgroupCount,
} from "./attention_wgsl.ts";
import type { KernelTarget } from "./capabilities.ts";
import { type Command, call, defineKernel, LINEAR_INDEX, madeOnce, read, spread, write } from "./kernel.ts";

const WORKGROUP = 64;

const HEADS = { q: "read", k: "read", v: "read", d_out: "read" } as const;

const otherDeclarations = (v: AttentionVariant) => ({
  row_statistics: read("vec2f"), // [batch, heads, query_length]: log-sum-exp, delta
  ...optionalDeclarations(v),
});

/** What every gradient reads; see `attention`. dOut is shaped like q; rowStatistics comes from `attentionRowStatistics`. */
export type AttentionGradientInputs<T> = {
  q: T;
  k: T;
  v: T;
  dOut: T;
  rowStatistics: T;
} & AttentionOptionalBuffers<T>;

const inputBuffers = <T>(v: AttentionVariant, buffers: AttentionGradientInputs<T>): Record<string, T> => ({
  q: buffers.q,
  k: buffers.k,
  v: buffers.v,
  d_out: buffers.dOut,
  row_statistics: buffers.rowStatistics,
  ...optionalBuffers(v, buffers),
});

/** Queries own the sums: of dQ, or (`bias`) of each bucket's dScore over the thread's rows. */
function queryKernel(v: AttentionVariant, sums: "query" | "bias") {
  const heads = headFloats<string>(v, sums === "query" ? { ...HEADS, d_q: "write" } : HEADS);
  const eachRow = (text: (r: number) => string) => repeat(ownedRows(v), text);
  const forQuery = (text: string) => (sums === "query" ? text : "");
  const forBias = (text: string) => (sums === "bias" ? text : "");
  const body = eachRow(
    (r) => /* wgsl */ `
    if (segment == segment${r} && sees(row + ${r}u, j)) {
      ${dotProduct(v, "product", `q${r}`, "k_row")}
      let p = exp(score(product, h, row + ${r}u, j) - statistics${r}.x);
      ${dotProduct(v, "dp", `d_out${r}`, "v_row")}
      ${v.dropout ? `dp *= dropout_factor(b * params.heads + h, row + ${r}u, j);` : ""}
      let d_score = p * (dp - statistics${r}.y);
      ${forQuery(each(v, (d) => `d_q${r}[${d}] += d_score * k_row[${d}];`))}
      ${forBias(`scratch[sums_at + bucket_of_distance[j + params.query_length - 1u - row - ${r}u]] += d_score;`)}
    }`,
  );
  return defineKernel<string, string>({
    name: `attention_${sums}_gradient_${variantName(v)}`,
    params: sums === "query" ? PARAMS : { ...PARAMS, buckets: "u32" },
    buffers: {
      ...heads.buffers,
      ...otherDeclarations(v),
      // scratch: [batch, heads, owners, buckets]
      ...(sums === "query" ? {} : { bucket_of_distance: read("u32"), scratch: write("f32") }),
    },
    wgsl: /* wgsl */ `${common(v)}${heads.functions}${stagedTiles(v)}
${entry("heads", "query_length")}
  let kv_h = h / (params.heads / params.kv_heads);
${forBias(/* wgsl */ `
  let owners = (params.query_length + OWNED - 1u) / OWNED;
  let sums_at = ((b * params.heads + h) * owners + row / OWNED) * params.buckets;
  if (row < params.query_length) {
    for (var bucket = 0u; bucket < params.buckets; bucket++) { scratch[sums_at + bucket] = 0.0; }
  }`)}
${eachRow(
  (r) => /* wgsl */ `
  // A row past the end reads the last row and writes nothing.
  let i${r} = min(row + ${r}u, params.query_length - 1u);
  let at${r} = query_at(b, h, i${r});
  let segment${r} = owned(query_segment(b, i${r}));
  var q${r}: Registers;
  var d_out${r}: Registers;
  ${each(v, (d) => `q${r}[${d}] = load_q(at${r} + ${d}); d_out${r}[${d}] = load_d_out(at${r} + ${d});`)}
  ${forQuery(`var d_q${r}: Registers;`)}
  let statistics${r} = row_statistics[(b * params.heads + h) * params.query_length + i${r}];`,
)}
  let key_end = select(params.key_length, min(params.key_length, block + BLOCK), params.causal != 0u);
${walk(v, { index: "j", begin: "0u", end: "key_end", at: "key_at(b, kv_h, j)", first: "k", second: "v", segment: "key_segment(b, j)", body })}
${forQuery(
  eachRow(
    (r) => /* wgsl */ `
  if (row + ${r}u < params.query_length) {
    ${each(v, (d) => `store_d_q(at${r} + ${d}, params.scale * d_q${r}[${d}]);`)}
  }`,
  ),
)}
}
`,
  });
}

const queryGradient = madeOnce(queryKernel);

// Second stage of the bias gradient: one workgroup per (bucket, head) over all batches and owners.
const biasSumKernel = defineKernel({
  name: "attention_bias_gradient_sum",
  params: { batch: "u32", heads: "u32", owners: "u32", buckets: "u32" },
  buffers: { scratch: read("f32"), d_bias: write("f32") },
  wgsl: /* wgsl */ `${LINEAR_INDEX}
const WORKGROUP = ${WORKGROUP}u;
var<workgroup> partial: array<f32, WORKGROUP>;
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lane: u32) {
  let index = linear_index(wid, num);
  if (index >= params.buckets * params.heads) { return; }
  let bucket = index / params.heads;
  let h = index % params.heads;
  var sum = 0.0;
  for (var x = lane; x < params.batch * params.owners; x += WORKGROUP) {
    let b = x / params.owners;
    sum += scratch[((b * params.heads + h) * params.owners + x % params.owners) * params.buckets + bucket];
  }
  partial[lane] = sum;
  workgroupBarrier();
  if (lane == 0u) {
    for (var i = 1u; i < WORKGROUP; i++) { sum += partial[i]; }
    d_bias[index] = sum;
  }
}
`,
});

/** Elements (f32) of the scratch buffer of {@link BiasGradientBuffers}, enough for every target. */
export const attentionBiasGradientScratch = (dims: AttentionDims): number =>
  Math.max(dims.batch * dims.heads * dims.queryLength * dims.buckets, matrixBiasScratch(dims));

/**
 * dQ, shaped like q, and what `bias` asks for where dims.buckets > 0, dBias [buckets, heads]: the sum of dScore over every
 * visible pair of each bucket. Only what is given is computed; both together, on matrix units, cost little more than
 * either. dims as in the forward call.
 */
export function attentionQueryBiasGradient<T>(
  buffers: AttentionGradientInputs<T> & { dQ?: T; bias?: BiasGradientBuffers<T> },
  dims: AttentionDims,
  target: KernelTarget,
): Command<T>[] {
  const { dQ, bias } = buffers;
  const { batch, heads, queryLength, buckets } = dims;
  if (dQ === undefined && !bias) return [];
  const v = variantOf(buffers, dims, target);
  const inputs = inputBuffers(v, buffers);
  if (onMatrixUnits(dims, v)) return matrixQueryBiasGradient(v, inputs, { dQ, bias }, dims);
  const workgroups = spread(workgroupCount(v, batch * heads, queryLength));
  const commands: Command<T>[] = [];
  if (dQ !== undefined)
    commands.push(call(queryGradient(v, "query"), paramsOf(dims), { ...inputs, d_q: dQ }, workgroups));
  if (bias) {
    const { bucketOfDistance, scratch, dBias } = bias;
    const bound = { ...inputs, bucket_of_distance: bucketOfDistance, scratch };
    const owners = Math.ceil(queryLength / ownedRows(v));
    commands.push(
      call(queryGradient(v, "bias"), { ...paramsOf(dims), buckets }, bound, workgroups),
      call(biasSumKernel, { batch, heads, owners, buckets }, { scratch, d_bias: dBias }, spread(buckets * heads)),
    );
  }
  return commands;
}

function keyValueKernel(v: AttentionVariant) {
  const heads = headFloats(v, { ...HEADS, d_k: "write", d_v: "write" });
  const eachRow = (text: (r: number) => string) => repeat(ownedRows(v), text);
  const body = eachRow(
    (r) => /* wgsl */ `
    if (segment == segment${r} && sees(i, row + ${r}u)) {
      ${dotProduct(v, "product", "q_row", `k${r}`)}
      let p = exp(score(product, query_h, i, row + ${r}u) - statistics.x);
      ${dotProduct(v, "dp", "d_out_row", `v${r}`)}
      var weight = p;
      ${
        v.dropout
          ? /* wgsl */ `
      let factor = dropout_factor(head, i, row + ${r}u);
      dp *= factor;
      weight *= factor;`
          : ""
      }
      let d_score = p * (dp - statistics.y);
      ${each(v, (d) => `d_k${r}[${d}] += d_score * q_row[${d}]; d_v${r}[${d}] += weight * d_out_row[${d}];`)}
    }`,
  );
  const loop = walk(v, {
    index: "i",
    begin: "query_begin",
    end: "params.query_length",
    at: "query_at(b, query_h, i)",
    first: "q",
    second: "d_out",
    segment: "query_segment(b, i)",
    body: /* wgsl */ `
    let statistics = row_statistics[head * params.query_length + i];
    ${body}`,
  });
  return defineKernel<keyof typeof PARAMS, string>({
    name: `attention_key_value_gradient_${variantName(v)}`,
    params: PARAMS,
    buffers: { ...heads.buffers, ...otherDeclarations(v) },
    wgsl: /* wgsl */ `${common(v)}${heads.functions}${stagedTiles(v)}
${entry("kv_heads", "key_length")}
${eachRow(
  (r) => /* wgsl */ `
  let j${r} = min(row + ${r}u, params.key_length - 1u);
  let segment${r} = select(NOBODY, owned(key_segment(b, j${r})), row + ${r}u < params.key_length);
  let at${r} = key_at(b, h, j${r});
  var k${r}: Registers;
  var v${r}: Registers;
  var d_k${r}: Registers;
  var d_v${r}: Registers;
  ${each(v, (d) => `k${r}[${d}] = load_k(at${r} + ${d}); v${r}[${d}] = load_v(at${r} + ${d});`)}`,
)}
  let query_begin = select(0u, min(block, params.query_length), params.causal != 0u);
  let group = params.heads / params.kv_heads;
  for (var query_h = h * group; query_h < (h + 1u) * group; query_h++) {
    let head = b * params.heads + query_h;
${loop}
  }
${eachRow(
  (r) => /* wgsl */ `
  if (row + ${r}u < params.key_length) {
    ${each(v, (d) => `store_d_k(at${r} + ${d}, params.scale * d_k${r}[${d}]); store_d_v(at${r} + ${d}, d_v${r}[${d}]);`)}
  }`,
)}
}
`,
  });
}

const KEY_VALUE_GRADIENT = {
  owned: KEY_VALUE_GRADIENT_OWNED,
  matrix: madeOnce(matrixKeyValueGradientKernel),
  plain: madeOnce(keyValueKernel),
};

/** dK and dV, shaped like k; exactly 0 for hidden keys. */
export function attentionKeyValueGradient<T>(
  buffers: AttentionGradientInputs<T> & { dK: T; dV: T },
  dims: AttentionDims,
  target: KernelTarget,
): Command<T>[] {
  const v = variantOf(buffers, dims, target);
  const bound = { ...inputBuffers(v, buffers), d_k: buffers.dK, d_v: buffers.dV };
  return [attentionCall(v, dims, KEY_VALUE_GRADIENT, bound)];
}
