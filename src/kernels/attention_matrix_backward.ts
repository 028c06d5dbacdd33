// Attention's backward pass on matrix units: the kernels of attention_backward.ts from the parts in
// attention_matrix_wgsl.ts. The patch holds scores, which lanes take into registers, and then the gradients of probabilities.
// It could be two patches; but what counts is how many workgroups fit on a processor. (One H100, driver 580.159.04,
// 2026-11-24: under Vulkan all workgroups of one have 48 KiB together, so two of these fit into it, and only one with two
// patches.)

import {
  addDiagonals,
  DIAGONALS_MEMORY,
  declareDiagonals,
  finishDiagonals,
  storeDiagonals,
} from "./attention_matrix_diagonals.ts";
import { fullTile } from "./attention_matrix_seen.ts";
import { entry, matrixKernel, type TileLoads, tileLoads, walkTiles } from "./attention_matrix_walk.ts";
import {
  addPacked,
  declareSums,
  eights,
  laneVectors,
  type Ownership,
  ownFragments,
  PATCH_ROW,
  type Packed,
  packedIn,
  packedToPatch,
  packNumbers,
  productsToPatch,
  storeRows,
  WALKED,
} from "./attention_matrix_wgsl.ts";
import { type AttentionVariant, optionalDeclarations, PARAMS, repeat } from "./attention_wgsl.ts";
import { type Kernel, prefetched, read, write } from "./kernel.ts";

export const QUERY_GRADIENT_OWNED: Ownership = { side: "query", rows: 64 };
export const KEY_VALUE_GRADIENT_OWNED: Ownership = { side: "key", rows: 64 };

const VECTORS = laneVectors(QUERY_GRADIENT_OWNED);
const all = (text: (x: number) => string): string => repeat(VECTORS, text, "\n    ");

const gradientInputs = (v: AttentionVariant) => ({
  ...eights(v, ["q", "k", "v", "d_out"]),
  row_statistics: read("vec2f"),
  ...optionalDeclarations(v, prefetched),
});

/**
 * Leaves in the patch own · staged_aᵀ, declares of these a lane's s0 …, vec4f, and where it reads them, `at`; then leaves
 * there other · staged_bᵀ.
 */
const scoresAndGradients = (v: AttentionVariant, o: Ownership, own: string, other: string): string => /* wgsl */ `
    let at = own * ${PATCH_ROW}u + place / 4u;
    ${productsToPatch(v, o, own, "staged_a", "scores_patch")}
    workgroupBarrier();
    ${all((x) => `let s${x} = bitcast<vec4f>(scores_patch[at + ${x}u]);`)}
    workgroupBarrier();
    ${productsToPatch(v, o, other, "staged_b", "scores_patch")}`;

/**
 * After {@link scoresAndGradients}: declares a lane's p0 … and d_score0 …, vec4f. `of` gives the bits of what dropout keeps;
 * of score c, where its bias is; of vector x, the log-sum-exp times LOG2_E and delta.
 */
function gradientsOfScores(
  v: AttentionVariant,
  o: Ownership,
  of: { kept: string; bias: (c: number) => string; logSumExp: (x: number) => string; delta: (x: number) => string },
): string {
  const bias = (x: number): string =>
    v.biased ? ` + vec4f(${repeat(4, (c) => `bias_tile[${of.bias(4 * x + c)}]`, ", ")})` : "";
  return /* wgsl */ `
    ${fullTile(o)}
    ${all((x) => `var p${x} = exp2(s${x} * factor${bias(x)} - ${of.logSumExp(x)});`)}
    if (!full) {
      let bits = seen_bits(row, segment, tile + place, place);
      ${all((x) => `p${x} = select(vec4f(), p${x}, four_bits(bits >> ${4 * x}u));`)}
    }
    ${all((x) => `var d_score${x} = bitcast<vec4f>(scores_patch[at + ${x}u]);`)}
    ${
      v.dropout
        ? /* wgsl */ `let kept = ${of.kept};
    let kept_factor = 1.0 / (1.0 - params.dropout_rate);
    ${all((x) => `let kept${x} = select(vec4f(), vec4f(kept_factor), four_bits(kept >> ${4 * x}u));`)}
    ${all((x) => `d_score${x} *= kept${x};`)}`
        : ""
    }
    ${all((x) => `d_score${x} = p${x} * (d_score${x} - ${of.delta(x)});`)}`;
}

/** Where the query kernel leaves packed score gradients while the patch has them in f32: in place of v, which is done with. */
const PACKED_ROW = WALKED / 8;
const IN_STAGED: Packed = { array: "staged_b", row: PACKED_ROW, apart: 2, offset: 0 };

/**
 * As the query kernel of attention_backward.ts, for the gradients that are wanted: of the queries, of the position bias, or
 * both. The latter leaves its sums in the buffer `scratch`, as attention_matrix_diagonals.ts says.
 */
export function matrixQueryGradientKernel(
  v: AttentionVariant,
  wanted: { query: boolean; bias: boolean },
): Kernel<keyof typeof PARAMS, string> {
  const o = QUERY_GRADIENT_OWNED;
  const forQuery = (text: string) => (wanted.query ? text : "");
  const forBias = (text: string) => (wanted.bias ? text : "");
  const forBoth = (text: string) => forQuery(forBias(text));
  return matrixKernel(
    `attention${forQuery("_query")}${forBias("_bias")}_gradient`,
    v,
    o,
    PARAMS,
    { ...gradientInputs(v), ...(wanted.bias ? { scratch: write("vec4f") } : {}) },
    wanted.query ? ["d_q"] : [],
    /* wgsl */ `${forBias(DIAGONALS_MEMORY)}${entry(v, o)}
  let query_h = h;
  let kv_h = h / (params.heads / params.kv_heads);
  let head = b * params.heads + h;
  ${ownFragments(v, o, "query", "q")}
  ${ownFragments(v, o, "gradient", "d_out")}
  let statistics = row_statistics[head * params.query_length + min(row, params.query_length - 1u)];
  let log_sum = statistics.x * LOG2_E;
  let factor = params.scale * LOG2_E;
  ${v.biased ? `let bias_at = ${o.rows - 1}u - own + place;` : ""}
  ${forQuery(declareSums(v, o, "result"))}
  ${forBias(declareDiagonals(o))}
  ${walkTiles(tileLoads(v, o, "k", "v"), {
    scores: /* wgsl */ `${forBias(storeDiagonals)}
    ${scoresAndGradients(v, o, "query", "gradient")}`,
    middle: /* wgsl */ `${gradientsOfScores(v, o, {
      kept: "kept_bits(head, row, tile + place)",
      bias: (c) => `bias_at + ${c}u`,
      logSumExp: () => "log_sum",
      delta: () => "statistics.y",
    })}
    ${forQuery(packNumbers(o, "packed_score", "d_score"))}
    ${
      wanted.bias
        ? all((x) => `scores_patch[at + ${x}u] = bitcast<vec4u>(d_score${x});`)
        : packedToPatch(o, "packed_score", "scores_patch")
    }
    ${forBoth(repeat(VECTORS / 2, (x) => `staged_b[own * ${PACKED_ROW}u + place / 8u + ${x}u] = packed_score${x};`, "\n    "))}
    workgroupBarrier();`,
    products: `${forBias(addDiagonals)}
    ${forQuery(addPacked(v, o, "result", wanted.bias ? IN_STAGED : packedIn("scores_patch"), "staged_a"))}`,
  })}
  ${forBias(finishDiagonals)}
  ${forQuery(storeRows(v, o, "result", "scores_patch", "d_q", "params.scale"))}
}
`,
    wanted.query && wanted.bias ? o.rows * PACKED_ROW : 0,
  );
}

/** With the statistics of the walked queries. */
function queryLoads(v: AttentionVariant, o: Ownership): TileLoads {
  const { declare, fetch, stage } = tileLoads(v, o, "q", "d_out");
  return {
    declare: `${declare}
  var next_log_sum: vec4f; var next_delta: vec4f;`,
    fetch: (tile) => /* wgsl */ `${fetch(tile)}
    {
      let r = ${tile} + lid % ${WALKED / 4}u * 4u;
      ${repeat(4, (c) => `let of${c} = row_statistics[head * params.query_length + min(r + ${c}u, params.query_length - 1u)];`, "\n      ")}
      next_log_sum = vec4f(of0.x, of1.x, of2.x, of3.x) * LOG2_E;
      next_delta = vec4f(of0.y, of1.y, of2.y, of3.y);
    }`,
    stage: `${stage}
    if (lid < ${WALKED / 4}u) { log_sum_tile[lid] = next_log_sum; delta_tile[lid] = next_delta; }`,
  };
}

/** As the key and value kernel of attention_backward.ts. */
export function matrixKeyValueGradientKernel(v: AttentionVariant): Kernel<keyof typeof PARAMS, string> {
  const o = KEY_VALUE_GRADIENT_OWNED;
  return matrixKernel(
    "attention_key_value_gradient",
    v,
    o,
    PARAMS,
    gradientInputs(v),
    ["d_k", "d_v"],
    /* wgsl */ `
var<workgroup> log_sum_tile: array<vec4f, ${WALKED / 4}>; // times LOG2_E
var<workgroup> delta_tile: array<vec4f, ${WALKED / 4}>;
${entry(v, o)}
  let kv_h = h;
  ${ownFragments(v, o, "key", "k")}
  ${ownFragments(v, o, "value", "v")}
  let factor = params.scale * LOG2_E;
  ${v.biased ? `let bias_at = own + ${WALKED - 1}u - place;` : ""}
  ${declareSums(v, o, "key_sums")}
  ${declareSums(v, o, "value_sums")}
  let group = params.heads / params.kv_heads;
  for (var query_h = h * group; query_h < (h + 1u) * group; query_h++) {
    let head = b * params.heads + query_h;
    ${walkTiles(queryLoads(v, o), {
      scores: /* wgsl */ `${v.dropout ? "make_kept_tile(head, tile, block, lid);" : ""}
    ${scoresAndGradients(v, o, "key", "value")}`,
      middle: /* wgsl */ `${gradientsOfScores(v, o, {
        kept: "kept_bits(head, tile, place, block, own)",
        bias: (c) => `bias_at - ${c}u`,
        logSumExp: (x) => `log_sum_tile[place / 4u + ${x}u]`,
        delta: (x) => `delta_tile[place / 4u + ${x}u]`,
      })}
    ${v.dropout ? all((x) => `p${x} *= kept${x};`) : ""}
    ${packNumbers(o, "packed_p", "p")}
    ${packedToPatch(o, "packed_p", "scores_patch")}
    ${packNumbers(o, "packed_score", "d_score")}
    ${packedToPatch(o, "packed_score", "scores_patch", 2)}
    workgroupBarrier();`,
      products: /* wgsl */ `
    ${addPacked(v, o, "value_sums", packedIn("scores_patch"), "staged_b")}
    ${addPacked(v, o, "key_sums", packedIn("scores_patch", 2), "staged_a")}`,
    })}
  }
  ${storeRows(v, o, "key_sums", "scores_patch", "d_k", "params.scale")}
  ${storeRows(v, o, "value_sums", "scores_patch", "d_v", "1.0")}
}
`,
  );
}
