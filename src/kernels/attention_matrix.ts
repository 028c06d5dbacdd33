// Attention's forward pass on matrix units, and which calls are for them. attention_matrix_wgsl.ts has the parts, and says
// how they fit together.
//
// One pass over the keys, with a running maximum as in attention.ts. But fragments cannot be rescaled where they are, only
// on a way through memory; so a row's reference stays behind its maximum until that is 2^8 times above it, which is rare
// after the first tile. Until then its probabilities are up to 2^8, as exact in f16 as below 1. Exponents are of 2, with its
// logarithm in the factors.

import { fullTile } from "./attention_matrix_seen.ts";
import { entry, matrixKernel, tileLoads, walkTiles } from "./attention_matrix_walk.ts";
import {
  addPacked,
  declareSums,
  eights,
  laneVectors,
  type Ownership,
  ownFragments,
  PATCH_ROW,
  packedIn,
  packedToPatch,
  packNumbers,
  productsToPatch,
  rescaleSums,
  storeRows,
} from "./attention_matrix_wgsl.ts";
import {
  type AttentionDims,
  type AttentionVariant,
  optionalDeclarations,
  PARAMS,
  paramsOf,
  repeat,
  workgroupCount,
} from "./attention_wgsl.ts";
import { type Command, call, type Kernel, prefetched, spread, write } from "./kernel.ts";

/** Whether a call is for these kernels: asked for, and heads of a size that they take. */
export const onMatrixUnits = ({ headDim, products }: AttentionDims, { target }: AttentionVariant): boolean =>
  products === "matrix" && target === "hardware" && headDim % 16 === 0 && headDim <= 128;

/** A kernel whose workgroups own rows of a side: on matrix units, or without. */
interface AttentionKernels {
  readonly owned: Ownership;
  readonly matrix: (v: AttentionVariant) => Kernel<keyof typeof PARAMS, string>;
  readonly plain: (v: AttentionVariant) => Kernel<keyof typeof PARAMS, string>;
}

export function attentionCall<T>(
  v: AttentionVariant,
  dims: AttentionDims,
  { owned, matrix, plain }: AttentionKernels,
  buffers: Record<string, T>,
): Command<T> {
  const { batch, heads, kvHeads, queryLength, keyLength } = dims;
  const [batchHeads, rows] = owned.side === "query" ? [batch * heads, queryLength] : [batch * kvHeads, keyLength];
  const onUnits = onMatrixUnits(dims, v);
  const workgroups = onUnits ? batchHeads * Math.ceil(rows / owned.rows) : workgroupCount(v, batchHeads, rows);
  return call(onUnits ? matrix(v) : plain(v), paramsOf(dims), buffers, spread(workgroups));
}

/** What the forward kernel owns: with a lane for each row, the row's maximum and sum are the lane's. */
export const FORWARD_OWNED: Ownership = { side: "query", rows: 128 };

/** As the forward kernel of attention.ts. */
export function matrixForwardKernel(v: AttentionVariant): Kernel<keyof typeof PARAMS, string> {
  const o = FORWARD_OWNED;
  const vectors = laneVectors(o);
  const all = (text: (x: number) => string, separator = "\n      "): string => repeat(vectors, text, separator);
  const bias = (x: number): string =>
    v.biased ? ` + vec4f(${repeat(4, (c) => `bias_tile[bias_at + ${4 * x + c}u]`, ", ")})` : "";
  /** s0 … folded by a function of two. */
  const folded = (of: string): string =>
    Array.from({ length: vectors }, (_, x) => `s${x}`).reduce((text, s) => `${of}(${text}, ${s})`);
  const middle = /* wgsl */ `
    let at = own * ${PATCH_ROW}u;
    ${all((x) => `var s${x} = bitcast<vec4f>(scores_patch[at + ${x}u]) * factor${bias(x)};`)}
    ${fullTile(o)}
    var bits = 0xffffffffu;
    if (!full) {
      bits = seen_bits(row, segment, tile, 0u);
      ${all((x) => `s${x} = select(vec4f(HIDDEN), s${x}, four_bits(bits >> ${4 * x}u));`)}
    }
    let most_of_four = ${folded("max")};
    let most = max(max(most_of_four.x, most_of_four.y), max(most_of_four.z, most_of_four.w));
    var correction = 1.0;
    if (most > reference + 8.0) {
      correction = exp2(reference - most);
      if (total > 0.0) { atomicStore(&stale, 1u); }
      reference = most;
      total *= correction;
    }
    ${all((x) => `s${x} = exp2(s${x} - reference);`)}
    if (!full) {
      ${all((x) => `s${x} = select(vec4f(), s${x}, four_bits(bits >> ${4 * x}u));`)}
    }
    let sum_of_four = ${all((x) => `s${x}`, " + ")};
    total += sum_of_four.x + sum_of_four.y + sum_of_four.z + sum_of_four.w;
    ${
      v.dropout
        ? /* wgsl */ `let kept = kept_bits(b * params.heads + h, row, tile);
    ${all((x) => `s${x} = select(vec4f(), s${x}, four_bits(kept >> ${4 * x}u));`)}`
        : ""
    }
    ${packNumbers(o, "p", "s")}
    ${packedToPatch(o, "p", "scores_patch")}
    if (workgroupUniformLoad(&stale) != 0u) {
      ${rescaleSums(v, o, "result", "scores_patch", "correction")}
      ${packedToPatch(o, "p", "scores_patch")}
      workgroupBarrier();
    }
    if (lid == 0u) { atomicStore(&stale, 0u); }`;
  return matrixKernel(
    "attention",
    v,
    o,
    PARAMS,
    { ...eights(v, ["q", "k", "v"]), ...optionalDeclarations(v, prefetched), log_sum_exp: write("f32") },
    ["out"],
    /* wgsl */ `
const LOWEST = -1e30; // the log-sum-exp of a query that sees no key
const HIDDEN = -1e30; // below the reference that a row begins with, and that below every score
var<workgroup> stale: atomic<u32>; // is there a row whose sums are to be rescaled
var<workgroup> row_factor: array<f32, ${o.rows}>;
${entry(v, o)}
  let query_h = h;
  let kv_h = h / (params.heads / params.kv_heads);
  if (lid == 0u) { atomicStore(&stale, 0u); }
  ${ownFragments(v, o, "query", "q")}
  let factor = params.scale * LOG2_E;
  ${v.biased ? `let bias_at = ${o.rows - 1}u - own;` : ""}
  var reference = 0.1 * HIDDEN;
  var total = 0.0;
  ${declareSums(v, o, "result")}
  ${walkTiles(tileLoads(v, o, "k", "v"), {
    scores: productsToPatch(v, o, "query", "staged_a", "scores_patch"),
    middle,
    products: addPacked(v, o, "result", packedIn("scores_patch"), "staged_b"),
  })}
  row_factor[own] = select(0.0, ${v.dropout ? "1.0 / (total * (1.0 - params.dropout_rate))" : "1.0 / total"}, total > 0.0);
  if (row < params.query_length) {
    let at = (b * params.heads + h) * params.query_length + row;
    log_sum_exp[at] = select(LOWEST, (reference + log2(total)) / LOG2_E, total > 0.0);
  }
  ${storeRows(v, o, "result", "scores_patch", "out", "row_factor[r]")}
}
`,
  );
}
