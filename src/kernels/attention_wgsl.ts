// The parts that the attention kernels share. Each kernel is generated for a head dimension, which fixes its register
// arrays, and for what the call has: segments, relative bias, dropout.
//
// A thread owns a few rows of one side (queries, or keys) and walks all rows of the other. `software` reads the walked
// rows from storage; each load serves all rows the thread owns. `hardware` stages tiles of them in workgroup memory,
// shared by the rows that a workgroup owns.

import type { KernelTarget, Products } from "./capabilities.ts";
import { type BufferDeclaration, LINEAR_INDEX, read } from "./kernel.ts";
import { PHILOX } from "./random.ts";
import { STEP_SCALARS } from "./step_scalars.ts";
import { floats } from "./storage.ts";

export interface AttentionDims {
  readonly batch: number;
  readonly heads: number;
  /** Divides heads: query head h reads key/value head h / (heads / kvHeads). */
  readonly kvHeads: number;
  readonly queryLength: number;
  readonly keyLength: number;
  /** 1..256; fastest when a multiple of 4. */
  readonly headDim: number;
  /** Factor on q·k, before the bias. */
  readonly scale: number;
  /** Query i sees keys 0..i only. */
  readonly causal: boolean;
  /** Rows of the relative bias table; 0 without one. */
  readonly buckets: number;
  /** Whose segments a row of the buffer `segments` holds; absent: every key is visible. */
  readonly segments?: SegmentLayout;
  /** Dropout of the probabilities; `use` names this site's random numbers. */
  readonly dropout?: { readonly rate: number; readonly use: number };
  /** `matrix` uses matrix units where the kernels can; everything else is f32. Default: f32. */
  readonly products?: Products;
  /** Whether q, k, v, out and their gradients hold f16, with a head dimension that is a multiple of 4; else f32. */
  readonly half?: boolean;
}

/**
 * Segments tell apart what shares a row: 0 is padding, n ≥ 1 the row's n-th example. A query sees the keys of its own
 * segment; padding is seen by nobody. A row of `segments` holds
 * - `keys`: [keyLength]; every query is of segment 1, so this is a key mask
 * - `shared`: [queryLength]; queries and keys are the same tokens
 * - `both`: [queryLength + keyLength], the queries' first: in one buffer, because adapters may allow only ten in a kernel
 */
export type SegmentLayout = "keys" | "shared" | "both";

/** What may stand beside q, k and v. */
export interface AttentionOptionalBuffers<T> {
  /** [batch, …] u32, see {@link SegmentLayout}; with dims.segments. */
  readonly segments?: T;
  /** [queryLength + keyLength - 1, heads] f32: the bias of each distance, from `distanceBias`; when dims.buckets > 0. */
  readonly distanceBias?: T;
  /** Step scalars; with dropout. */
  readonly step?: T;
}

/** What a kernel text depends on. */
export interface AttentionVariant {
  readonly target: KernelTarget;
  readonly headDim: number;
  readonly segments: SegmentLayout | undefined;
  readonly biased: boolean;
  readonly dropout: boolean;
  /** Whether heads and their gradients are stored as f16. */
  readonly half: boolean;
}

export function variantOf<T>(
  buffers: AttentionOptionalBuffers<T>,
  dims: AttentionDims,
  target: KernelTarget,
): AttentionVariant {
  const { headDim, heads, kvHeads, buckets, segments } = dims;
  if (!(headDim >= 1 && headDim <= 256)) throw new RangeError(`head dimension must be 1 to 256, got ${headDim}`);
  if (heads % kvHeads !== 0) throw new RangeError(`${kvHeads} key/value heads do not divide ${heads} heads`);
  const needed = [
    ...(segments ? (["segments"] as const) : []),
    ...(buckets > 0 ? (["distanceBias"] as const) : []),
    ...(dims.dropout ? (["step"] as const) : []),
  ];
  for (const name of needed) if (buffers[name] === undefined) throw new TypeError(`attention needs the buffer ${name}`);
  return {
    target,
    headDim,
    segments,
    biased: buckets > 0,
    dropout: dims.dropout !== undefined,
    half: dims.half === true,
  };
}

/** e.g. `d64_shared_segments_biased_software`: the second half of a kernel's name. */
export const variantName = (v: AttentionVariant): string =>
  [
    ...[`d${v.headDim}`, v.half && "f16", v.segments && `${v.segments}_segments`],
    ...[v.biased && "biased", v.dropout && "dropout", v.target],
  ]
    .filter(Boolean)
    .join("_");

// Limits on the length of a kernel's text. SwiftShader compiles it at a cost that grows faster than its length: heads of
// 16 take 0.3 s a kernel with two rows a thread and 1 s with four, which run 10 % faster. A loop over registers, on the
// other hand, runs three times slower there than the same statements written out.
const OWNED_REGISTERS = 8;
const UNROLLED = { software: 16, hardware: 32 } as const;

/** WGSL type of one register of a head, and how many there are. */
const vectorType = (v: AttentionVariant): "vec4f" | "f32" => (v.headDim % 4 === 0 ? "vec4f" : "f32");
const vectorCount = (v: AttentionVariant): number => (v.headDim % 4 === 0 ? v.headDim / 4 : v.headDim);

/** Rows that one thread owns, and threads of a workgroup. */
export const ownedRows = (v: AttentionVariant): number =>
  v.target === "software" ? Math.max(1, Math.min(4, Math.floor(OWNED_REGISTERS / vectorCount(v)))) : 1;
export const threads = (v: AttentionVariant): number => (v.target === "software" ? 16 : 64);

export const PARAMS = {
  batch: "u32",
  heads: "u32",
  kv_heads: "u32",
  query_length: "u32",
  key_length: "u32",
  scale: "f32",
  causal: "u32",
  dropout_rate: "f32",
  dropout_use: "u32",
} as const;

export const paramsOf = (dims: AttentionDims): Record<keyof typeof PARAMS, number> => ({
  batch: dims.batch,
  heads: dims.heads,
  kv_heads: dims.kvHeads,
  query_length: dims.queryLength,
  key_length: dims.keyLength,
  scale: dims.scale,
  causal: Number(dims.causal),
  dropout_rate: dims.dropout?.rate ?? 0,
  dropout_use: dims.dropout?.use ?? 0,
});

/** Heads as a kernel accesses them, a register at a time: storage.ts's `floats` of a variant. */
export const headFloats = <B extends string>(v: AttentionVariant, access: Readonly<Record<B, "read" | "write">>) =>
  floats(vectorType(v), access, v.half ? Object.keys(access) : []);

/** Declarations of the optional buffers that a variant binds; those it reads for each tile as `loaded` says. */
export const optionalDeclarations = (v: AttentionVariant, loaded = read): Record<string, BufferDeclaration> => ({
  ...(v.segments ? { segments: loaded("u32") } : {}),
  ...(v.biased ? { distance_bias: loaded("f32") } : {}),
  ...(v.dropout ? { step: { access: "read", type: "StepScalars" } } : {}),
});

/** The same for a call: the buffers themselves. */
export function optionalBuffers<T>(v: AttentionVariant, buffers: AttentionOptionalBuffers<T>): Record<string, T> {
  const bound: Record<string, T> = {};
  if (v.segments) bound.segments = buffers.segments!;
  if (v.biased) bound.distance_bias = buffers.distanceBias!;
  if (v.dropout) bound.step = buffers.step!;
  return bound;
}

/** `text(0)` … `text(count - 1)`, joined. */
export const repeat = (count: number, text: (i: number) => string, separator = "\n"): string =>
  Array.from({ length: count }, (_, i) => text(i)).join(separator);

/**
 * `text(d)` for every register of a head: written out where that compiles quickly, a loop for large heads (SwiftShader
 * takes minutes over a thousand unrolled statements).
 */
export function each(v: AttentionVariant, text: (d: string) => string): string {
  const count = vectorCount(v);
  if (count <= UNROLLED[v.target]) return repeat(count, (d) => text(`${d}`), " ");
  return `for (var d = 0u; d < VECTORS; d++) { ${text("d")} }`;
}

/** Statements that leave the dot product of register arrays `a` and `b` in a new variable `name`. */
export function dotProduct(v: AttentionVariant, name: string, a: string, b: string): string {
  const product = (d: string) =>
    vectorType(v) === "vec4f" ? `dot(${a}[${d}], ${b}[${d}])` : `${a}[${d}] * ${b}[${d}]`;
  return `var ${name} = 0.0; ${each(v, (d) => `${name} += ${product(d)};`)}`;
}

/**
 * WGSL of the segment of each query and key. What a thread owns has its padding marked as NOBODY's, so that owned and
 * walked padding differ: two rows see each other where their segments are equal.
 */
function segmentFunctions({ segments }: AttentionVariant): string {
  const row = segments === "both" ? "b * (params.query_length + params.key_length)" : "b * params.key_length";
  const query = segments === undefined || segments === "keys" ? "1u" : `segments[${row} + i]`;
  const key = `segments[${row} + ${segments === "both" ? "params.query_length + " : ""}j]`;
  return /* wgsl */ `
const NOBODY = 0xffffffffu;
fn query_segment(b: u32, i: u32) -> u32 { return ${query}; }
fn key_segment(b: u32, j: u32) -> u32 { return ${segments === undefined ? "1u" : key}; }
fn owned(segment: u32) -> u32 { return select(segment, NOBODY, segment == 0u); }`;
}

/** Constants, indices and the element-wise functions of the scores. */
export const common = (v: AttentionVariant): string => /* wgsl */ `${LINEAR_INDEX}
${v.dropout ? STEP_SCALARS + PHILOX : ""}
const THREADS = ${threads(v)}u;
const OWNED = ${ownedRows(v)}u;          // rows of a thread
const BLOCK = THREADS * OWNED; // rows of a workgroup
const VECTORS = ${vectorCount(v)}u;        // registers of one head
alias Registers = array<${vectorType(v)}, VECTORS>;

// First vector of a head's row in q, out [batch * query_length, heads, VECTORS] and in k, v.
fn query_at(b: u32, h: u32, i: u32) -> u32 { return ((b * params.query_length + i) * params.heads + h) * VECTORS; }
fn key_at(b: u32, h: u32, j: u32) -> u32 { return ((b * params.key_length + j) * params.kv_heads + h) * VECTORS; }

${segmentFunctions(v)}
fn sees(i: u32, j: u32) -> bool { return i < params.query_length && (params.causal == 0u || j <= i); }
fn score(dot: f32, h: u32, i: u32, j: u32) -> f32 {
  return dot * params.scale${v.biased ? " + distance_bias[(j + params.query_length - 1u - i) * params.heads + h]" : ""};
}
${
  v.dropout
    ? /* wgsl */ `
// Dropout: the factor on the probability of (head, i, j), head counted over the batch; 0 or 1 / (1 - rate). Philox
// yields four elements at a time, and consecutive keys are consecutive elements.
var<private> words: vec4u;
var<private> words_block: u32 = 0xffffffffu;
fn dropout_factor(head: u32, i: u32, j: u32) -> f32 {
  let element = (head * params.query_length + i) * params.key_length + j;
  if (element / 4u != words_block) {
    words_block = element / 4u;
    words = philox(vec4u(words_block, step.step, 0u, 0u), vec2u(step.seed, params.dropout_use));
  }
  let uniform_value = f32(words[element % 4u] >> 8u) * ${2 ** -24};
  return select(0.0, 1.0 / (1.0 - params.dropout_rate), uniform_value >= params.dropout_rate);
}`
    : ""
}
`;

/** Workgroup memory of a walk that stages two tiles, `first` and `second`. */
export function stagedTiles(v: AttentionVariant): string {
  if (v.target === "software") return "";
  // Two tiles of f32 in the 16 KiB that every adapter has.
  const tile = Math.max(1, Math.min(32, Math.floor(16384 / (2 * 4 * v.headDim))));
  return /* wgsl */ `
const TILE = ${tile}u; // walked rows held at a time
var<workgroup> first_tile: array<${vectorType(v)}, TILE * VECTORS>;
var<workgroup> second_tile: array<${vectorType(v)}, TILE * VECTORS>;
`;
}

/**
 * The loop over the other side's rows `begin <= index < end`. In `body` the row's registers are `<first>_row` and
 * `<second>_row`, after their buffers ({@link headFloats}), and its segment is `segment`. `at` and `segment` are the WGSL
 * expressions of the row's first vector and of its segment; begin and end are the same for the whole workgroup. A row of
 * none of the segments of the rows that the thread owns, `segment0` …, is passed over.
 */
export function walk(
  v: AttentionVariant,
  loop: {
    index: string;
    begin: string;
    end: string;
    at: string;
    first: string;
    second: string;
    segment: string;
    body: string;
  },
): string {
  const { index, begin, end, at, first, second, segment, body } = loop;
  const passOver = /* wgsl */ `
    let segment = ${segment};
    if (${repeat(ownedRows(v), (r) => `segment != segment${r}`, " && ")}) { continue; }`;
  const load = (from: (at: string) => string, buffer: string) =>
    `var ${buffer}_row: Registers; ${each(v, (d) => `${buffer}_row[${d}] = ${from(`at + ${d}`)};`)}`;
  if (v.target === "software")
    return /* wgsl */ `
  for (var ${index} = ${begin}; ${index} < ${end}; ${index}++) {${passOver}
    let at = ${at};
    ${load((at) => `load_${first}(${at})`, first)}
    ${load((at) => `load_${second}(${at})`, second)}
    ${body}
  }`;
  return /* wgsl */ `
  for (var tile_begin = ${begin}; tile_begin < ${end}; tile_begin += TILE) {
    let tile_end = min(tile_begin + TILE, ${end});
    workgroupBarrier();
    for (var x = lane; x < (tile_end - tile_begin) * VECTORS; x += THREADS) {
      let ${index} = tile_begin + x / VECTORS;
      let at = ${at} + x % VECTORS;
      first_tile[x] = load_${first}(at);
      second_tile[x] = load_${second}(at);
    }
    workgroupBarrier();
    for (var ${index} = tile_begin; ${index} < tile_end; ${index}++) {${passOver}
      let at = (${index} - tile_begin) * VECTORS;
      ${load((at) => `first_tile[${at}]`, first)}
      ${load((at) => `second_tile[${at}]`, second)}
      ${body}
    }
  }`;
}

/**
 * Entry of a kernel whose threads own OWNED consecutive rows of `length` (a parameter) for each of `heads` heads of
 * each batch: declares b, h (of `heads`), block (first row of the workgroup) and row (first row of the thread). A whole
 * workgroup without work returns.
 */
export const entry = (heads: string, length: string): string => /* wgsl */ `
@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lane: u32) {
  let index = linear_index(wid, num);
  let blocks = (params.${length} + BLOCK - 1u) / BLOCK;
  if (index >= params.batch * params.${heads} * blocks) { return; }
  let block = index % blocks * BLOCK;
  let row = block + lane * OWNED;
  let b = index / blocks / params.${heads};
  let h = index / blocks % params.${heads};
`;

/** Workgroups of {@link entry}. */
export const workgroupCount = (v: AttentionVariant, batchHeads: number, length: number): number =>
  batchHeads * Math.ceil(length / (threads(v) * ownedRows(v)));
