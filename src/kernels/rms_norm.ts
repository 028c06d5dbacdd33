// RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467) as T5 uses it: no mean, no bias.
//
//   inverse_rms = 1 / sqrt(mean_c x² + epsilon)                     one per row, kept for the backward pass
//   out         = weight · x · inverse_rms
//   dX          = inverse_rms · (g - x · inverse_rms² · mean_c(g · x))   with g = weight · dOut
//   dWeight     = Σ_rows dOut · x · inverse_rms
//
// Rows are reduced by one thread each on software and by one workgroup each on hardware (a fixed tree). The weight
// gradient sums chunks of rows into a scratch buffer, then the chunks: both in order.

import type { KernelTarget } from "./capabilities.ts";
import { type Command, call, defineKernel, type Kernel, LINEAR_INDEX, read, spread, write } from "./kernel.ts";

type Value = "vec4f" | "f32";

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

const forwardKernel = (target: KernelTarget, value: Value) =>
  defineKernel({
    name: `rms_norm_${target}_${value}`,
    params: { ...ROW_PARAMS, epsilon: "f32" },
    buffers: { x: read(value), weight: read(value), out: write(value), inverseRms: write("f32") },
    wgsl: /* wgsl */ `${ROW_MAIN[target]}${ROW_START}  var squares = ${value}();
  for (var c = lane; c < params.columns; c += LANES) { squares += x[start + c] * x[start + c]; }
  let scale = 1 / sqrt(row_sum(lane, ${horizontal(value, "squares")}) / params.width + params.epsilon);
  for (var c = lane; c < params.columns; c += LANES) { out[start + c] = weight[c] * (x[start + c] * scale); }
  if (lane == 0) { inverseRms[row] = scale; }
}`,
  });

const inputGradientKernel = (target: KernelTarget, value: Value) =>
  defineKernel({
    name: `rms_norm_input_gradient_${target}_${value}`,
    params: ROW_PARAMS,
    buffers: { x: read(value), weight: read(value), inverseRms: read("f32"), dOut: read(value), dX: write(value) },
    wgsl: /* wgsl */ `${ROW_MAIN[target]}${ROW_START}  var products = ${value}();
  for (var c = lane; c < params.columns; c += LANES) { products += weight[c] * dOut[start + c] * x[start + c]; }
  let scale = inverseRms[row];
  let along = row_sum(lane, ${horizontal(value, "products")}) / params.width * scale * scale;
  for (var c = lane; c < params.columns; c += LANES) {
    dX[start + c] = scale * (weight[c] * dOut[start + c] - along * x[start + c]);
  }
}`,
  });

/** Rows that one thread of the weight gradient sums. */
const CHUNK_ROWS = 32;
const COLUMN_THREADS = 64;

const COLUMN_MAIN = /* wgsl */ `${LINEAR_INDEX}
@compute @workgroup_size(${COLUMN_THREADS})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lid: u32) {
  let at = linear_index(wid, num) * ${COLUMN_THREADS} + lid;
`;

const chunkKernel = (value: Value) =>
  defineKernel({
    name: `rms_norm_weight_gradient_chunks_${value}`,
    params: { rows: "u32", columns: "u32", chunks: "u32" },
    buffers: { x: read(value), inverseRms: read("f32"), dOut: read(value), scratch: write(value) },
    wgsl: /* wgsl */ `${COLUMN_MAIN}
  let chunk = at / params.columns;
  let column = at % params.columns;
  if (chunk >= params.chunks) { return; }
  let end = min((chunk + 1) * ${CHUNK_ROWS}, params.rows);
  var sum = ${value}();
  for (var row = chunk * ${CHUNK_ROWS}; row < end; row++) {
    sum += dOut[row * params.columns + column] * (x[row * params.columns + column] * inverseRms[row]);
  }
  scratch[at] = sum;
}`,
  });

const totalKernel = (value: Value) =>
  defineKernel({
    name: `rms_norm_weight_gradient_total_${value}`,
    params: { columns: "u32", chunks: "u32" },
    buffers: { scratch: read(value), dWeight: write(value) },
    wgsl: /* wgsl */ `${COLUMN_MAIN}
  if (at >= params.columns) { return; }
  var sum = ${value}();
  for (var chunk = 0u; chunk < params.chunks; chunk++) { sum += scratch[chunk * params.columns + at]; }
  dWeight[at] = sum;
}`,
  });

/** One kernel per target and value type. */
const perTarget = <K extends Kernel>(make: (target: KernelTarget, value: Value) => K) => ({
  software: { vec4f: make("software", "vec4f"), f32: make("software", "f32") },
  hardware: { vec4f: make("hardware", "vec4f"), f32: make("hardware", "f32") },
});
const forward = perTarget(forwardKernel);
const inputGradient = perTarget(inputGradientKernel);
const chunkSums = { vec4f: chunkKernel("vec4f"), f32: chunkKernel("f32") };
const chunkTotals = { vec4f: totalKernel("vec4f"), f32: totalKernel("f32") };

export interface RmsNormDims {
  rows: number;
  columns: number;
}

/** What a thread handles, and the columns counted in it. */
const valuesOf = (columns: number): [Value, number] => (columns % 4 === 0 ? ["vec4f", columns / 4] : ["f32", columns]);

const rowGroups = (rows: number, target: KernelTarget): [number, number] =>
  spread(target === "hardware" ? rows : Math.ceil(rows / ROW_THREADS.software));

/** out = weight · x / rms(x); x, out [rows, columns], weight [columns], inverseRms [rows] (written); all f32. */
export function rmsNorm<T>(
  buffers: Record<"x" | "weight" | "out" | "inverseRms", T>,
  { rows, columns, epsilon }: RmsNormDims & { epsilon: number },
  target: KernelTarget,
): Command<T>[] {
  if (rows === 0) return [];
  const [value, values] = valuesOf(columns);
  const params = { rows, columns: values, width: columns, epsilon };
  return [call(forward[target][value], params, buffers, rowGroups(rows, target))];
}

/** dX from x, dOut [rows, columns], weight [columns] and the forward pass's inverseRms [rows]; all f32. */
export function rmsNormInputGradient<T>(
  buffers: Record<"x" | "weight" | "inverseRms" | "dOut" | "dX", T>,
  { rows, columns }: RmsNormDims,
  target: KernelTarget,
): Command<T>[] {
  if (rows === 0) return [];
  const [value, values] = valuesOf(columns);
  const params = { rows, columns: values, width: columns };
  return [call(inputGradient[target][value], params, buffers, rowGroups(rows, target))];
}

/** Elements (f32) of the scratch buffer of {@link rmsNormWeightGradient}. */
export const rmsNormWeightGradientScratch = (rows: number, columns: number): number =>
  Math.ceil(rows / CHUNK_ROWS) * columns;

/**
 * dWeight [columns] = Σ over rows of dOut · x · inverseRms; x, dOut [rows, columns], inverseRms [rows]; all f32.
 * On software a thread takes four columns, on hardware one: there it is threads that are short.
 */
export function rmsNormWeightGradient<T>(
  { x, inverseRms, dOut, scratch, dWeight }: Record<"x" | "inverseRms" | "dOut" | "scratch" | "dWeight", T>,
  { rows, columns: width }: RmsNormDims,
  target: KernelTarget,
): Command<T>[] {
  const [value, columns] = target === "software" ? valuesOf(width) : (["f32", width] as const);
  const chunks = Math.ceil(rows / CHUNK_ROWS);
  const groups = (threads: number): [number, number] => spread(Math.ceil(threads / COLUMN_THREADS));
  return [
    call(chunkSums[value], { rows, columns, chunks }, { x, inverseRms, dOut, scratch }, groups(chunks * columns)),
    call(chunkTotals[value], { columns, chunks }, { scratch, dWeight }, groups(columns)),
  ];
}

/** The forward pass in float64. */
export function rmsNormReference(
  x: ArrayLike<number>,
  weight: ArrayLike<number>,
  { rows, columns, epsilon }: RmsNormDims & { epsilon: number },
): { out: Float64Array; inverseRms: Float64Array } {
  const out = new Float64Array(rows * columns);
  const inverseRms = new Float64Array(rows);
  for (let r = 0; r < rows; r++) {
    let squares = 0;
    for (let c = 0; c < columns; c++) squares += x[r * columns + c] ** 2;
    inverseRms[r] = 1 / Math.sqrt(squares / columns + epsilon);
    for (let c = 0; c < columns; c++) out[r * columns + c] = weight[c] * x[r * columns + c] * inverseRms[r];
  }
  return { out, inverseRms };
}

/** Both gradients in float64, from the row factors of the forward pass. */
export function rmsNormGradientReference(
  x: ArrayLike<number>,
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
    for (let c = 0; c < columns; c++) along += weight[c] * dOut[at + c] * x[at + c];
    along *= inverseRms[r] ** 2 / columns;
    for (let c = 0; c < columns; c++) {
      dX[at + c] = inverseRms[r] * (weight[c] * dOut[at + c] - along * x[at + c]);
      dWeight[c] += dOut[at + c] * x[at + c] * inverseRms[r];
    }
  }
  return { dX, dWeight };
}
