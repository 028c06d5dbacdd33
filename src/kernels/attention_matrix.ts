// Attention on matrix units (matrix_tiles.ts says what they are): the kernels of attention.ts and attention_backward.ts with
// operands rounded to f16 and sums in f32. Scores, probabilities and their gradients exist as one tile in workgroup memory.
//
// A workgroup owns 64 rows of one side (queries, or keys), 16 a subgroup, and walks the other side in tiles. Fragments are
// opaque, so what happens to single scores happens in memory: a product is stored to the subgroup's patch, each lane works on
// units of eight neighbouring numbers of it and leaves them packed as f16, and the next product reads those. Rows of a running
// sum cannot be rescaled for the same reason; the forward pass therefore walks the keys twice, first for the log-sum-exp alone.

import {
  type AttentionDims,
  type AttentionVariant,
  common,
  optionalDeclarations,
  PARAMS,
  paramsOf,
  repeat,
  variantName,
  workgroupCount,
} from "./attention_wgsl.ts";
import {
  type BufferDeclaration,
  type Command,
  call,
  defineKernel,
  type Kernel,
  read,
  spread,
  write,
} from "./kernel.ts";
import { MATRIX_ENABLES, MATRIX_TYPES } from "./matrix_tiles.ts";

/** Rows that a workgroup owns, and its threads. */
const MATRIX_OWNED = 64;
const THREADS = 128;

/** Whether a call is for these kernels: asked for, and heads of a size that they take. */
const onMatrixUnits = ({ headDim, products }: AttentionDims, { target }: AttentionVariant): boolean =>
  products === "matrix" && target === "hardware" && headDim % 16 === 0 && headDim <= 128;

/** The call of a kernel whose workgroups own rows of `side`: on matrix units, or without. */
export function attentionCall<T>(
  v: AttentionVariant,
  dims: AttentionDims,
  side: "query" | "key",
  kernels: Readonly<Record<"matrix" | "plain", (v: AttentionVariant) => Kernel<keyof typeof PARAMS, string>>>,
  buffers: Record<string, T>,
): Command<T> {
  const { batch, heads, kvHeads, queryLength, keyLength } = dims;
  const [batchHeads, rows] = side === "query" ? [batch * heads, queryLength] : [batch * kvHeads, keyLength];
  const matrix = onMatrixUnits(dims, v);
  const workgroups = matrix ? batchHeads * Math.ceil(rows / MATRIX_OWNED) : workgroupCount(v, batchHeads, rows);
  return call(kernels[matrix ? "matrix" : "plain"](v), paramsOf(dims), buffers, spread(workgroups));
}

/** Walked rows held at a time. Up to heads of 64 it all fits 32 KiB of workgroup memory, up to 128 it fits 48 KiB. */
const walkedOf = (v: AttentionVariant): number => (v.headDim > 16 ? 32 : 64);

/** A vec4u is eight f16 of a staged row; one more a row keeps columns in different banks. */
const packsOf = (v: AttentionVariant): number => v.headDim / 8;
const stagedRow = (v: AttentionVariant): number => packsOf(v) + 1;
const packedRow = (v: AttentionVariant): number => walkedOf(v) / 8 + 1;
const patchRow = (v: AttentionVariant): number => walkedOf(v) + 4;
/** Units of eight that a lane has of its subgroup's 16 rows. */
const unitsOf = (v: AttentionVariant): number => walkedOf(v) / 16;

const memory = (v: AttentionVariant): string => /* wgsl */ `${MATRIX_TYPES}
var<workgroup> staged_a: array<vec4u, ${MATRIX_OWNED * stagedRow(v)}>; // [rows, headDim]
var<workgroup> staged_b: array<vec4u, ${MATRIX_OWNED * stagedRow(v)}>;
var<workgroup> staged_p: array<vec4u, ${MATRIX_OWNED * packedRow(v)}>; // [owned rows, walked rows]
var<workgroup> sums_patch: array<f32, ${MATRIX_OWNED * patchRow(v)}>; // [owned rows, walked rows]
const LOWEST = -1e30;
fn visible(b: u32, i: u32, j: u32) -> bool {
  return j < params.key_length && sees(i, j) && owned(query_segment(b, i)) == key_segment(b, j);
}
`;

/** Declares b, h, block, and of the thread: lane, the first row of its subgroup, the first row and column of its units. */
const entryOf = (v: AttentionVariant, heads: string, length: string): string => /* wgsl */ `
@compute @workgroup_size(${THREADS})
fn main(
  @builtin(workgroup_id) wid: vec3u,
  @builtin(num_workgroups) num: vec3u,
  @builtin(local_invocation_index) lid: u32,
  @builtin(subgroup_id) subgroup: u32,
) {
  let index = linear_index(wid, num);
  let blocks = (params.${length} + ${MATRIX_OWNED - 1}u) / ${MATRIX_OWNED}u;
  if (index >= params.batch * params.${heads} * blocks) { return; }
  let block = index % blocks * ${MATRIX_OWNED}u;
  let b = index / blocks / params.${heads};
  let h = index / blocks % params.${heads};
  let lane = lid % 32u;
  let first = subgroup * 16u; // of the workgroup's rows
  let first_unit = first + lane / ${walkedOf(v) / 8}u; // row of the lane's first unit; one every ${256 / walkedOf(v)} rows
  let column = lane % ${walkedOf(v) / 8}u * 8u; //     of every unit
`;

/** Rows `begin …` of `from`, as far as there are, packed into a staged tile of `count` rows. */
const stage = (
  v: AttentionVariant,
  into: string,
  from: string,
  count: number,
  begin: string,
  length: string,
  at: string,
) => /* wgsl */ `
  for (var t = lid; t < ${count * packsOf(v)}u; t += ${THREADS}u) {
    let r = ${begin} + t / ${packsOf(v)}u;
    var eight = vec4u();
    if (r < ${length}) {
      let at = ${at} + t % ${packsOf(v)}u * 2u;
      eight = packed(${from}[at], ${from}[at + 1u]);
    }
    ${into}[t / ${packsOf(v)}u * ${stagedRow(v)}u + t % ${packsOf(v)}u] = eight;
  }`;

/** Fragments `name0` … of the subgroup's owned rows, from a staged tile. */
const ownFragments = (v: AttentionVariant, name: string, from: string): string =>
  repeat(
    v.headDim / 16,
    (d) =>
      `let ${name}${d} = subgroupMatrixLoad<Left, row_major>(&${from}, first * ${stagedRow(v)}u + ${d * 2}u, ${stagedRow(v)}u);`,
  );

/** patch [own rows, walked rows] = own · walkedᵀ. */
const productsToPatch = (v: AttentionVariant, own: string, walked: string): string =>
  repeat(
    walkedOf(v) / 16,
    (n) => /* wgsl */ `{
      var products = Sums();
      ${repeat(
        v.headDim / 16,
        (
          d,
        ) => `let w${d} = subgroupMatrixLoad<Right, col_major>(&${walked}, ${n * 16 * stagedRow(v) + d * 2}u, ${stagedRow(v)}u);
      products = subgroupMatrixMultiplyAccumulate(${own}${d}, w${d}, products);`,
      )}
      subgroupMatrixStore<row_major>(&sums_patch, first * ${patchRow(v)}u + ${n * 16}u, products, ${patchRow(v)}u);
    }`,
  );

/** A turn of the walk: stages the walked rows of a tile by `stages`, the first into staged_a, and multiplies with it. */
const tileProducts = (v: AttentionVariant, own: string, ...stages: string[]): string => /* wgsl */ `workgroupBarrier();
    ${stages.join("\n    ")}
    workgroupBarrier();
    ${productsToPatch(v, own, "staged_a")}
    workgroupBarrier();`;

const sumsOf = (v: AttentionVariant, name: string): string =>
  repeat(v.headDim / 16, (d) => `var ${name}${d} = Sums();`, " ");

/** sums += staged_p · walked. */
const addPacked = (v: AttentionVariant, sums: string, walked: string): string =>
  repeat(
    walkedOf(v) / 16,
    (n) => /* wgsl */ `{
      let weights = subgroupMatrixLoad<Left, row_major>(&staged_p, first * ${packedRow(v)}u + ${n * 2}u, ${packedRow(v)}u);
      ${repeat(
        v.headDim / 16,
        (
          d,
        ) => `let w${d} = subgroupMatrixLoad<Right, row_major>(&${walked}, ${n * 16 * stagedRow(v) + d * 2}u, ${stagedRow(v)}u);
      ${sums}${d} = subgroupMatrixMultiplyAccumulate(weights, w${d}, ${sums}${d});`,
      )}
    }`,
  );

/** Runs `body` for each of a lane's units e: of row `row`, row `own` of the workgroup's. */
const eachUnit = (v: AttentionVariant, body: string): string => /* wgsl */ `
    for (var e = 0u; e < ${unitsOf(v)}u; e++) {
      let own = first_unit + e * ${256 / walkedOf(v)}u;
      let row = block + own;
      ${body}
    }`;

/** The same for each number c of a unit, with its index n among the lane's and its product in the patch. */
const eachNumber = (v: AttentionVariant, body: string): string =>
  eachUnit(
    v,
    /* wgsl */ `for (var c = 0u; c < 8u; c++) {
        let n = e * 8u + c;
        let product = sums_patch[own * ${patchRow(v)}u + column + c];
        ${body}
      }`,
  );

/** Packs the lane's numbers, an array called `from`, into staged_p. */
const pack = (v: AttentionVariant, from: string): string =>
  eachUnit(
    v,
    /* wgsl */ `let n = e * 8u;
      staged_p[own * ${packedRow(v)}u + column / 8u] = packed(
        vec4f(${repeat(4, (c) => `${from}[n + ${c}u]`, ", ")}), vec4f(${repeat(4, (c) => `${from}[n + ${c + 4}u]`, ", ")}));`,
  );

/** Stores `factor` · sums to rows of `into` that there are, through the patch. */
function storeRows(
  v: AttentionVariant,
  sums: string,
  into: string,
  length: string,
  at: string,
  factor: string,
): string {
  const fragments = v.headDim / 16;
  const atOnce = [4, 3, 2, 1].find((n) => fragments % n === 0 && n * 16 <= walkedOf(v))!;
  const width = atOnce * 16;
  return repeat(
    fragments / atOnce,
    (part) => /* wgsl */ `
  workgroupBarrier();
  ${repeat(atOnce, (n) => `subgroupMatrixStore<row_major>(&sums_patch, first * ${patchRow(v)}u + ${n * 16}u, ${sums}${part * atOnce + n}, ${patchRow(v)}u);`)}
  workgroupBarrier();
  for (var t = lane; t < ${16 * (width / 4)}u; t += 32u) {
    let r = block + first + t / ${width / 4}u;
    if (r < ${length}) {
      let start = (first + t / ${width / 4}u) * ${patchRow(v)}u + t % ${width / 4}u * 4u;
      let four = vec4f(sums_patch[start], sums_patch[start + 1u], sums_patch[start + 2u], sums_patch[start + 3u]);
      ${into}[${at} + ${(part * width) / 4}u + t % ${width / 4}u] = four * ${factor};
    }
  }`,
  );
}

const kernelOf = (
  name: string,
  v: AttentionVariant,
  buffers: Record<string, BufferDeclaration>,
  main: string,
): Kernel<keyof typeof PARAMS, string> =>
  defineKernel<keyof typeof PARAMS, string>({
    name: `${name}_${variantName(v)}_matrix`,
    params: PARAMS,
    buffers,
    enables: MATRIX_ENABLES,
    wgsl: `${common(v)}${memory(v)}${main}`,
  });

const heads = { q: read("vec4f"), k: read("vec4f"), v: read("vec4f") };
const walkedKeys = (v: AttentionVariant, into: string, from: string): string =>
  stage(v, into, from, walkedOf(v), "tile", "params.key_length", "key_at(b, kv_h, r)");

const KEY_END = "let key_end = select(params.key_length, min(params.key_length, block + 64u), params.causal != 0u);";
const KV_HEAD = "let kv_h = h / (params.heads / params.kv_heads);";

/** As the forward kernel of attention.ts. */
export function matrixForwardKernel(v: AttentionVariant): Kernel<keyof typeof PARAMS, string> {
  const lanes = walkedOf(v) / 8; // with a row's numbers
  const factor = v.dropout ? " * dropout_factor(b * params.heads + h, row, j)" : "";
  return kernelOf(
    "attention",
    v,
    { ...heads, ...optionalDeclarations(v), out: write("vec4f"), log_sum_exp: write("f32") },
    /* wgsl */ `
fn seen_score(product: f32, b: u32, h: u32, i: u32, j: u32) -> f32 {
  if (!visible(b, i, j)) { return LOWEST; }
  return score(product, h, i, j);
}
${entryOf(v, "heads", "query_length")}
  ${KV_HEAD}
  ${KEY_END}
  ${stage(v, "staged_a", "q", MATRIX_OWNED, "block", "params.query_length", "query_at(b, h, r)")}
  workgroupBarrier();
  ${ownFragments(v, "query", "staged_a")}
  var largest: array<f32, ${unitsOf(v)}>;
  var total: array<f32, ${unitsOf(v)}>;
  for (var e = 0u; e < ${unitsOf(v)}u; e++) { largest[e] = LOWEST; }
  for (var tile = 0u; tile < key_end; tile += ${walkedOf(v)}u) {
    ${tileProducts(v, "query", walkedKeys(v, "staged_a", "k"))}
    ${eachNumber(
      v,
      /* wgsl */ `let s = seen_score(product, b, h, row, tile + column + c);
        if (s > largest[e]) { // the running sum is relative to the largest score so far
          total[e] *= exp(largest[e] - s);
          largest[e] = s;
        }
        if (s > LOWEST) { total[e] += exp(s - largest[e]); }`,
    )}
  }
  // Every lane sums up its rows over the ${lanes} lanes that have their numbers, in their order.
  workgroupBarrier();
  ${eachUnit(
    v,
    /* wgsl */ `let place = own * ${patchRow(v)}u + column / 4u;
      sums_patch[place] = largest[e];
      sums_patch[place + 1u] = total[e];`,
  )}
  workgroupBarrier();
  var log_sum: array<f32, ${unitsOf(v)}>;
  ${eachUnit(
    v,
    /* wgsl */ `let place = own * ${patchRow(v)}u;
      var most = LOWEST;
      for (var x = 0u; x < ${lanes}u; x++) { most = max(most, sums_patch[place + 2u * x]); }
      var sum = 0.0;
      for (var x = 0u; x < ${lanes}u; x++) {
        sum += sums_patch[place + 2u * x + 1u] * exp(sums_patch[place + 2u * x] - most);
      }
      log_sum[e] = select(LOWEST, most + log(sum), sum > 0.0);
      if (column == 0u && row < params.query_length) {
        log_sum_exp[(b * params.heads + h) * params.query_length + row] = log_sum[e];
      }`,
  )}
  var p: array<f32, ${unitsOf(v) * 8}>;
  ${sumsOf(v, "result")}
  for (var tile = 0u; tile < key_end; tile += ${walkedOf(v)}u) {
    ${tileProducts(v, "query", walkedKeys(v, "staged_a", "k"), walkedKeys(v, "staged_b", "v"))}
    ${eachNumber(
      v,
      /* wgsl */ `let j = tile + column + c;
        let s = seen_score(product, b, h, row, j);
        p[n] = 0.0;
        if (s > LOWEST) { p[n] = exp(s - log_sum[e])${factor}; }`,
    )}
    ${pack(v, "p")}
    workgroupBarrier();
    ${addPacked(v, "result", "staged_b")}
  }
  ${storeRows(v, "result", "out", "params.query_length", "query_at(b, h, r)", "1.0")}
}
`,
  );
}

const gradientInputs = (v: AttentionVariant) => ({
  ...heads,
  d_out: read("vec4f"),
  row_statistics: read("vec2f"),
  ...optionalDeclarations(v),
});

/** Of every number of a lane: p, p times its dropout factor, and what is packed. Not 0 again in the next turn of a loop. */
const numbers = (v: AttentionVariant): string =>
  ["p", "kept", "packable"].map((name) => `var ${name}: array<f32, ${unitsOf(v) * 8}>;`).join(" ");

/** As the query kernel of attention_backward.ts. */
export function matrixQueryGradientKernel(v: AttentionVariant): Kernel<keyof typeof PARAMS, string> {
  return kernelOf(
    "attention_query_gradient",
    v,
    { ...gradientInputs(v), d_q: write("vec4f") },
    /* wgsl */ `
${entryOf(v, "heads", "query_length")}
  ${KV_HEAD}
  ${KEY_END}
  ${stage(v, "staged_a", "q", MATRIX_OWNED, "block", "params.query_length", "query_at(b, h, r)")}
  ${stage(v, "staged_b", "d_out", MATRIX_OWNED, "block", "params.query_length", "query_at(b, h, r)")}
  workgroupBarrier();
  ${ownFragments(v, "query", "staged_a")}
  ${ownFragments(v, "gradient", "staged_b")}
  let head = b * params.heads + h;
  ${sumsOf(v, "result")}
  for (var tile = 0u; tile < key_end; tile += ${walkedOf(v)}u) {
    ${tileProducts(v, "query", walkedKeys(v, "staged_a", "k"), walkedKeys(v, "staged_b", "v"))}
    ${numbers(v)}
    ${eachNumber(
      v,
      /* wgsl */ `let j = tile + column + c;
        p[n] = 0.0;
        kept[n] = 0.0;
        if (visible(b, row, j)) {
          p[n] = exp(score(product, h, row, j) - row_statistics[head * params.query_length + row].x);
          kept[n] = p[n]${v.dropout ? " * dropout_factor(head, row, j)" : ""};
        }`,
    )}
    workgroupBarrier();
    ${productsToPatch(v, "gradient", "staged_b")}
    workgroupBarrier();
    ${eachNumber(
      v,
      /* wgsl */ `let delta = row_statistics[head * params.query_length + min(row, params.query_length - 1u)].y;
        packable[n] = kept[n] * product - p[n] * delta;`,
    )}
    ${pack(v, "packable")}
    workgroupBarrier();
    ${addPacked(v, "result", "staged_a")}
  }
  ${storeRows(v, "result", "d_q", "params.query_length", "query_at(b, h, r)", "params.scale")}
}
`,
  );
}

/** As the key and value kernel of attention_backward.ts. */
export function matrixKeyValueGradientKernel(v: AttentionVariant): Kernel<keyof typeof PARAMS, string> {
  const walkedQueries = (into: string, from: string) =>
    stage(v, into, from, walkedOf(v), "tile", "params.query_length", "query_at(b, query_h, r)");
  return kernelOf(
    "attention_key_value_gradient",
    v,
    { ...gradientInputs(v), d_k: write("vec4f"), d_v: write("vec4f") },
    /* wgsl */ `
${entryOf(v, "kv_heads", "key_length")}
  ${stage(v, "staged_a", "k", MATRIX_OWNED, "block", "params.key_length", "key_at(b, h, r)")}
  ${stage(v, "staged_b", "v", MATRIX_OWNED, "block", "params.key_length", "key_at(b, h, r)")}
  workgroupBarrier();
  ${ownFragments(v, "key", "staged_a")}
  ${ownFragments(v, "value", "staged_b")}
  ${sumsOf(v, "key_sums")} ${sumsOf(v, "value_sums")}
  let query_begin = select(0u, block, params.causal != 0u);
  let group = params.heads / params.kv_heads;
  for (var query_h = h * group; query_h < (h + 1u) * group; query_h++) {
    let head = b * params.heads + query_h;
    for (var tile = query_begin; tile < params.query_length; tile += ${walkedOf(v)}u) {
      ${tileProducts(v, "key", walkedQueries("staged_a", "q"), walkedQueries("staged_b", "d_out"))}
      ${numbers(v)}
      var delta: array<f32, ${unitsOf(v) * 8}>;
      ${eachNumber(
        v,
        /* wgsl */ `let i = tile + column + c;
        p[n] = 0.0;
        kept[n] = 0.0;
        delta[n] = 0.0;
        if (visible(b, i, row)) {
          let statistics = row_statistics[head * params.query_length + i];
          delta[n] = statistics.y;
          p[n] = exp(score(product, query_h, i, row) - statistics.x);
          kept[n] = p[n]${v.dropout ? " * dropout_factor(head, i, row)" : ""};
        }`,
      )}
      ${pack(v, "kept")}
      workgroupBarrier();
      ${addPacked(v, "value_sums", "staged_b")}
      ${productsToPatch(v, "value", "staged_b")}
      workgroupBarrier();
      ${eachNumber(v, "packable[n] = kept[n] * product - p[n] * delta[n];")}
      ${pack(v, "packable")}
      workgroupBarrier();
      ${addPacked(v, "key_sums", "staged_a")}
    }
  }
  ${storeRows(v, "key_sums", "d_k", "params.key_length", "key_at(b, h, r)", "params.scale")}
  ${storeRows(v, "value_sums", "d_v", "params.key_length", "key_at(b, h, r)", "1.0")}
}
`,
  );
}
