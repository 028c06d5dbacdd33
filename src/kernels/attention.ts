// Attention without a score matrix: each query row keeps a running maximum, sum and output while it walks the keys
// (Milakov and Gimelshein 2018; FlashAttention), and leaves the log-sum-exp from which the backward pass recomputes
// every probability.
//
//   score[i,j] = scale · q_i·k_j + bias[bucket(j - i), head]     visible: of i's segment and, when causal, j ≤ i
//   out_i      = Σ_j dropout(softmax_j(score[i,·])) · v_j
// q, out: [batch · queryLength, heads · headDim], k, v: [batch · keyLength, kvHeads · headDim]. T5 has scale 1 and
// a bias; grouped-query attention has kvHeads < heads. A query that sees no key gives 0, and no gradient.
//
// The backward pass is in attention_backward.ts, the float64 definition in attention.reference.ts.

import { attentionCall, FORWARD_OWNED, matrixForwardKernel } from "./attention_matrix.ts";
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
  repeat,
  stagedTiles,
  variantName,
  variantOf,
  walk,
} from "./attention_wgsl.ts";
import type { KernelTarget } from "./capabilities.ts";
import { type Command, defineKernel, madeOnce, write } from "./kernel.ts";

export {
  attentionBiasGradientScratch,
  attentionKeyValueGradient,
  attentionQueryBiasGradient,
} from "./attention_backward.ts";
export { distanceBias, type RelativeBucketOptions, relativeBuckets } from "./attention_relative.ts";
export { attentionRowStatistics } from "./attention_row_statistics.ts";
export type { AttentionDims, AttentionOptionalBuffers, SegmentLayout } from "./attention_wgsl.ts";

function forwardKernel(v: AttentionVariant) {
  const heads = headFloats(v, { q: "read", k: "read", v: "read", out: "write" });
  const rows = ownedRows(v);
  const eachRow = (text: (r: number) => string) => repeat(rows, text);
  const body = eachRow(
    (r) => /* wgsl */ `
    if (segment == segment${r} && sees(row + ${r}u, j)) {
      ${dotProduct(v, "product", `q${r}`, "k_row")}
      let s = score(product, h, row + ${r}u, j);
      if (s > largest${r}) { // the running sums are relative to the largest score so far
        let correction = exp(largest${r} - s);
        largest${r} = s;
        sum${r} *= correction;
        ${each(v, (d) => `out${r}[${d}] *= correction;`)}
      }
      let p = exp(s - largest${r});
      sum${r} += p;
      let weight = p${v.dropout ? ` * dropout_factor(b * params.heads + h, row + ${r}u, j)` : ""};
      ${each(v, (d) => `out${r}[${d}] += weight * v_row[${d}];`)}
    }`,
  );
  return defineKernel<keyof typeof PARAMS, string>({
    name: `attention_${variantName(v)}`,
    params: PARAMS,
    buffers: {
      ...heads.buffers,
      ...optionalDeclarations(v),
      log_sum_exp: write("f32"), // [batch, heads, query_length]
    },
    wgsl: /* wgsl */ `${common(v)}${heads.functions}${stagedTiles(v)}
const LOWEST = -1e30; // below every score; also the log-sum-exp of a query that sees no key
${entry("heads", "query_length")}
  let kv_h = h / (params.heads / params.kv_heads);
${eachRow(
  (r) => /* wgsl */ `
  // A row past the end reads the last row and writes nothing.
  let i${r} = min(row + ${r}u, params.query_length - 1u);
  let at${r} = query_at(b, h, i${r});
  let segment${r} = owned(query_segment(b, i${r}));
  var q${r}: Registers;
  var out${r}: Registers;
  ${each(v, (d) => `q${r}[${d}] = load_q(at${r} + ${d});`)}
  var largest${r} = LOWEST;
  var sum${r} = 0.0;`,
)}
  let key_end = select(params.key_length, min(params.key_length, block + BLOCK), params.causal != 0u);
${walk(v, { index: "j", begin: "0u", end: "key_end", at: "key_at(b, kv_h, j)", first: "k", second: "v", segment: "key_segment(b, j)", body })}
${eachRow(
  (r) => /* wgsl */ `
  if (row + ${r}u < params.query_length) {
    let inverse = select(0.0, 1.0 / sum${r}, sum${r} > 0.0);
    ${each(v, (d) => `store_out(at${r} + ${d}, out${r}[${d}] * inverse);`)}
    log_sum_exp[(b * params.heads + h) * params.query_length + row + ${r}u] = select(LOWEST, largest${r} + log(sum${r}), sum${r} > 0.0);
  }`,
)}
}
`,
  });
}

const FORWARD = { owned: FORWARD_OWNED, matrix: madeOnce(matrixForwardKernel), plain: madeOnce(forwardKernel) };

/**
 * Writes out, shaped like q, and logSumExp [batch, heads, queryLength] f32 (-1e30 where a query sees no key; scores
 * must lie above that). Dropout's element index is ((b·heads + h)·queryLength + i)·keyLength + j.
 * @throws RangeError for a head dimension outside 1..256 or kvHeads that do not divide heads; TypeError when
 * segments, bias or step scalars are missing.
 */
export function attention<T>(
  buffers: { q: T; k: T; v: T; out: T; logSumExp: T } & AttentionOptionalBuffers<T>,
  dims: AttentionDims,
  target: KernelTarget,
): Command<T>[] {
  const variant = variantOf(buffers, dims, target);
  const { q, k, v, out } = buffers;
  const bound = { q, k, v, ...optionalBuffers(variant, buffers), out, log_sum_exp: buffers.logSumExp };
  return [attentionCall(variant, dims, FORWARD, bound)];
}
