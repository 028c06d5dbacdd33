// RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467) as T5 uses it: no mean, no bias.
//
//   inverse_rms = 1 / sqrt(mean_c x² + epsilon)        one per row
//   normalized  = x · inverse_rms
//   out         = weight · normalized
//   dX          = inverse_rms · (g - normalized · mean_c(g · normalized)) (+ base)   with g = weight · dOut
//   dWeight     = Σ_rows dOut · normalized
//
// For the backward pass only `normalized` and inverse_rms are kept: x belongs to the residual stream, which need not live
// so long then, and what else reads `out` there has it made anew by `rmsNormOutput`, with the same bits.
//
// Rows are reduced by one thread each on software and by one workgroup each on hardware (a fixed tree). The weight
// gradient sums chunks of rows into a scratch buffer, then the chunks: both in order.

import type { KernelTarget } from "./capabilities.ts";
import { type Command, call, defineKernel, type Kernel, LINEAR_INDEX, read, spread, write } from "./kernel.ts";
import { floats, type Halves, kernelFor, type Value, valuesOf } from "./storage.ts";

/** Threads of a workgroup; on hardware they share one row. */
const ROW_THREADS: Record<KernelTarget, number> = { software: 8, hardware: 128 };

/** WGSL prologue of a kernel that reduces rows: the thread's `row`, its `lane` among the LANES threads of that row. */
const ROW_MAIN: Record<KernelTarget, string> = {
  software: /* wgsl */ `${LINEAR_INDEX}
const LANES = 1u;
fn row_sum(lane: u32, x: f32) -> f32 { return x; }
@compute @workgroup_size(${ROW_THREADS.software})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lid: u32) {
  let lane = 0u;
  let row = linear_index(wid, num) * ${ROW_THREADS.software} + lid;
`,
  hardware: /* wgsl */ `${LINEAR_INDEX}
const LANES = ${ROW_THREADS.hardware}u;
var<workgroup> partial: array<f32, ${ROW_THREADS.hardware}>;
// Sum of x over the workgroup, by a fixed tree.
fn row_sum(lane: u32, x: f32) -> f32 {
  partial[lane] = x;
  for (var half = LANES / 2; half > 0; half /= 2) {
    workgroupBarrier();
    if (lane < half) { partial[lane] += partial[lane + half]; }
  }
  workgroupBarrier();
  return partial[0];
}
@compute @workgroup_size(${ROW_THREADS.hardware})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lane: u32) {
  let row = linear_index(wid, num);
`,
};

/** WGSL: the end of {@link ROW_MAIN}. A thread owns the values lane, lane + LANES, … of its row. */
const ROW_START = /* wgsl */ `
  if (row >= params.rows) { return; }
  let start = row * params.columns;
`;

/** WGSL: the sum of a value's components. */
const horizontal = (value: Value, x: string): string => (value === "vec4f" ? `dot(${x}, vec4f(1))` : x);

/** `columns` counts values (vec4f or f32), `width` elements. */
const ROW_PARAMS = { rows: "u32", columns: "u32", width: "f32" } as const;

const forwardKernel = (target: KernelTarget, value: Value, keep: boolean, halves: Halves): Kernel =>
  kernelFor(`rms_norm_${target}_${value}${keep ? "_kept" : ""}`, halves, (name) => {
    const access = { x: "read", weight: "read", out: "write" } as const;
    const kept = { ...access, normalized: "write" } as const;
    const { buffers, functions } = floats<string>(value, keep ? kept : access, halves);
    // What is kept may be rounded: `out` is made of that, as it is made again.
    const normalize = keep
      ? "store_normalized(at, load_x(at) * scale);\n    let normalized = load_normalized(at);"
      : "let normalized = load_x(at) * scale;";
    return defineKernel<string, string>({
      name,
      params: { ...ROW_PARAMS, epsilon: "f32" },
      buffers: { ...buffers, inverseRms: write("f32") },
      wgsl: /* wgsl */ `${functions}${ROW_MAIN[target]}${ROW_START}  var squares = ${value}();
  for (var c = lane; c < params.columns; c += LANES) {
    let entry = load_x(start + c);
    squares += entry * entry;
  }
  let scale = 1 / sqrt(row_sum(lane, ${horizontal(value, "squares")}) / params.width + params.epsilon);
  for (var c = lane; c < params.columns; c += LANES) {
    let at = start + c;
    ${normalize}
    store_out(at, load_weight(c) * normalized);
  }
  if (lane == 0) { inverseRms[row] = scale; }
}`,
    });
  });

const OUTPUT_THREADS = 64;

const outputKernel = (value: Value, halves: Halves): Kernel =>
  kernelFor(`rms_norm_output_${value}`, halves, (name) => {
    const access = { normalized: "read", weight: "read", out: "write" } as const;
    const { buffers, functions } = floats(value, access, halves);
    return defineKernel<string, string>({
      name,
      params: { count: "u32", columns: "u32" }, // in values
      buffers,
      wgsl: /* wgsl */ `${functions}${LINEAR_INDEX}
@compute @workgroup_size(${OUTPUT_THREADS})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lid: u32) {
  let at = linear_index(wid, num) * ${OUTPUT_THREADS} + lid;
  if (at < params.count) { store_out(at, load_weight(at % params.columns) * load_normalized(at)); }
}`,
    });
  });

const inputGradientKernel = (target: KernelTarget, value: Value, based: boolean, halves: Halves): Kernel =>
  kernelFor(`rms_norm_input_gradient_${target}_${value}${based ? "_based" : ""}`, halves, (name) => {
    const access = { normalized: "read", weight: "read", dOut: "read", dX: "write" } as const;
    const { buffers, functions } = floats<string>(value, based ? { ...access, base: "read" } : access, halves);
    return defineKernel<string, string>({
      name,
      params: ROW_PARAMS,
      buffers: { ...buffers, inverseRms: read("f32") },
      wgsl: /* wgsl */ `${functions}${ROW_MAIN[target]}${ROW_START}  var products = ${value}();
  for (var c = lane; c < params.columns; c += LANES) {
    products += load_weight(c) * load_dOut(start + c) * load_normalized(start + c);
  }
  let along = row_sum(lane, ${horizontal(value, "products")}) / params.width;
  let scale = inverseRms[row];
  for (var c = lane; c < params.columns; c += LANES) {
    let at = start + c;
    let dX_at = scale * (load_weight(c) * load_dOut(at) - along * load_normalized(at));
    store_dX(at, ${based ? "load_base(at) + " : ""}dX_at);
  }
}`,
    });
  });

/** Rows that one thread of the weight gradient sums. */
const CHUNK_ROWS = 32;
const COLUMN_THREADS = 64;

const chunkKernel = (value: Value, halves: Halves): Kernel =>
  kernelFor(`rms_norm_weight_gradient_chunks_${value}`, halves, (name) => {
    const { buffers, functions } = floats(value, { normalized: "read", dOut: "read", scratch: "write" }, halves);
    return defineKernel<string, string>({
      name,
      params: { rows: "u32", columns: "u32", chunks: "u32" },
      buffers,
      wgsl: /* wgsl */ `${functions}${LINEAR_INDEX}
@compute @workgroup_size(${COLUMN_THREADS})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lid: u32) {
  let at = linear_index(wid, num) * ${COLUMN_THREADS} + lid;
  let chunk = at / params.columns;
  let column = at % params.columns;
  if (chunk >= params.chunks) { return; }
  let end = min((chunk + 1) * ${CHUNK_ROWS}, params.rows);
  var sum = ${value}();
  for (var row = chunk * ${CHUNK_ROWS}; row < end; row++) {
    sum += load_dOut(row * params.columns + column) * load_normalized(row * params.columns + column);
  }
  store_scratch(at, sum);
}`,
    });
  });

/** Columns of a workgroup that adds chunks up, and threads of each: as many sums at a time, then one of them in order. */
const TOTAL_COLUMNS = 16;
const TOTAL_THREADS = 16;

const totalKernel = (value: Value) =>
  defineKernel({
    name: `rms_norm_weight_gradient_total_${value}`,
    params: { columns: "u32", chunks: "u32" },
    buffers: { scratch: read(value), dWeight: write(value) },
    wgsl: /* wgsl */ `${LINEAR_INDEX}
var<workgroup> sums: array<${value}, ${TOTAL_COLUMNS * TOTAL_THREADS}>;
@compute @workgroup_size(${TOTAL_COLUMNS * TOTAL_THREADS})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lid: u32) {
  let column = linear_index(wid, num) * ${TOTAL_COLUMNS} + lid % ${TOTAL_COLUMNS};
  let lane = lid / ${TOTAL_COLUMNS};
  var sum = ${value}();
  if (column < params.columns) {
    for (var chunk = lane; chunk < params.chunks; chunk += ${TOTAL_THREADS}) {
      sum += scratch[chunk * params.columns + column];
    }
  }
  sums[lid] = sum;
  workgroupBarrier();
  if (lane > 0 || column >= params.columns) { return; }
  for (var other = 1u; other < ${TOTAL_THREADS}; other++) { sum += sums[other * ${TOTAL_COLUMNS} + lid]; }
  dWeight[column] = sum;
}`,
  });

const chunkTotals = { vec4f: totalKernel("vec4f"), f32: totalKernel("f32") };

export interface RmsNormDims {
  rows: number;
  /** A multiple of 4 where a buffer is among `halves`. */
  columns: number;
  halves?: Halves;
}

const rowGroups = (rows: number, target: KernelTarget): [number, number] =>
  spread(target === "hardware" ? rows : Math.ceil(rows / ROW_THREADS.software));

/**
 * out = weight · x / rms(x); x, out [rows, columns], weight [columns], inverseRms [rows] (written) f32; and where it is
 * given, normalized [rows, columns] = x / rms(x), which out is then made of as it is stored.
 */
export function rmsNorm<T>(
  { normalized, ...buffers }: Record<"x" | "weight" | "out" | "inverseRms", T> & { normalized?: T },
  { rows, columns, epsilon, halves = [] }: RmsNormDims & { epsilon: number },
  target: KernelTarget,
): Command<T>[] {
  if (rows === 0) return [];
  const [value, values] = valuesOf(columns);
  const params = { rows, columns: values, width: columns, epsilon };
  const kernel = forwardKernel(target, value, normalized !== undefined, halves);
  const bound: Record<string, T> = normalized === undefined ? buffers : { ...buffers, normalized };
  return [call(kernel, params, bound, rowGroups(rows, target))];
}

/** out = weight · normalized; normalized, out [rows, columns], weight [columns]: what {@link rmsNorm} gave, bit for bit. */
export function rmsNormOutput<T>(
  buffers: Record<"normalized" | "weight" | "out", T>,
  { rows, columns, halves = [] }: RmsNormDims,
): Command<T>[] {
  if (rows === 0) return [];
  const [value, values] = valuesOf(columns);
  const params = { count: rows * values, columns: values };
  return [call(outputKernel(value, halves), params, buffers, spread(Math.ceil((rows * values) / OUTPUT_THREADS)))];
}

/**
 * dX from normalized, dOut [rows, columns], weight [columns] and the forward pass's inverseRms [rows] f32, added to base
 * where there is one, shaped like dX.
 */
export function rmsNormInputGradient<T>(
  { base, ...buffers }: Record<"normalized" | "weight" | "inverseRms" | "dOut" | "dX", T> & { base?: T },
  { rows, columns, halves = [] }: RmsNormDims,
  target: KernelTarget,
): Command<T>[] {
  if (rows === 0) return [];
  const [value, values] = valuesOf(columns);
  const params = { rows, columns: values, width: columns };
  const kernel = inputGradientKernel(target, value, base !== undefined, halves);
  const bound: Record<string, T> = base === undefined ? buffers : { ...buffers, base };
  return [call(kernel, params, bound, rowGroups(rows, target))];
}

/** Elements (f32) of the scratch buffer of {@link rmsNormWeightGradient}. */
export const rmsNormWeightGradientScratch = (rows: number, columns: number): number =>
  Math.ceil(rows / CHUNK_ROWS) * columns;

/**
 * dWeight [columns] f32 = Σ over rows of dOut · normalized; both [rows, columns].
 * On software a thread takes four columns, on hardware one: there it is threads that are short.
 */
export function rmsNormWeightGradient<T>(
  { normalized, dOut, scratch, dWeight }: Record<"normalized" | "dOut" | "scratch" | "dWeight", T>,
  { rows, columns: width, halves = [] }: RmsNormDims,
  target: KernelTarget,
): Command<T>[] {
  const [value, columns] = target === "software" ? valuesOf(width) : (["f32", width] as const);
  const chunks = Math.ceil(rows / CHUNK_ROWS);
  const sums = chunkKernel(value, halves);
  const [each, all] = [Math.ceil((chunks * columns) / COLUMN_THREADS), Math.ceil(columns / TOTAL_COLUMNS)];
  return [
    call(sums, { rows, columns, chunks }, { normalized, dOut, scratch }, spread(each)),
    call(chunkTotals[value], { columns, chunks }, { scratch, dWeight }, spread(all)),
  ];
}

/** The forward pass in float64. */
export function rmsNormReference(
  x: ArrayLike<number>,
  weight: ArrayLike<number>,
  { rows, columns, epsilon }: RmsNormDims & { epsilon: number },
): { out: Float64Array; normalized: Float64Array; inverseRms: Float64Array } {
  const out = new Float64Array(rows * columns);
  const normalized = new Float64Array(rows * columns);
  const inverseRms = new Float64Array(rows);
  for (let r = 0; r < rows; r++) {
    let squares = 0;
    for (let c = 0; c < columns; c++) squares += x[r * columns + c] ** 2;
    inverseRms[r] = 1 / Math.sqrt(squares / columns + epsilon);
    for (let c = 0; c < columns; c++) {
      normalized[r * columns + c] = x[r * columns + c] * inverseRms[r];
      out[r * columns + c] = weight[c] * normalized[r * columns + c];
    }
  }
  return { out, normalized, inverseRms };
}

/** Both gradients in float64, from what the forward pass keeps. */
export function rmsNormGradientReference(
  normalized: ArrayLike<number>,
  weight: ArrayLike<number>,
  inverseRms: ArrayLike<number>,
  dOut: ArrayLike<number>,
  { rows, columns }: RmsNormDims,
): { dX: Float64Array; dWeight: Float64Array } {
  const dX = new Float64Array(rows * columns);
  const dWeight = new Float64Array(columns);
  for (let r = 0; r < rows; r++) {
    const at = r * columns;
    let along = 0;
    for (let c = 0; c < columns; c++) along += weight[c] * dOut[at + c] * normalized[at + c];
    along /= columns;
    for (let c = 0; c < columns; c++) {
      dX[at + c] = inverseRms[r] * (weight[c] * dOut[at + c] - along * normalized[at + c]);
      dWeight[c] += dOut[at + c] * normalized[at + c];
    }
  }
  return { dX, dWeight };
}
