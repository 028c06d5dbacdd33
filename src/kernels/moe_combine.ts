// From expert rows back to tokens: the gate-weighted sum of a token's kept experts, and its two gradients.
//
// Each token gathers its own rows through `rowOfAssignment` in order of choice, so no atomics and the same bits every
// time. A dropped or masked assignment (row 0xffffffff) contributes exactly 0; the residual carries the token.

import { type Command, call, defineKernel, type Kernel, LINEAR_INDEX, read, spread, write } from "./kernel.ts";
import { NO_ROW } from "./moe_dispatch.ts";
import { floats, type Halves, kernelFor, type Value, valuesOf } from "./storage.ts";

const WORKGROUP = 64;

// Widths count values, vec4f where the width allows.
const PROLOGUE = /* wgsl */ `${LINEAR_INDEX}
const WORKGROUP = ${WORKGROUP}u;
const NO_ROW = ${NO_ROW}u;
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lane: u32) {
  let index = linear_index(wid, num) * WORKGROUP + lane;
`;

const combineKernel = (gated: boolean, value: Value, halves: Halves): Kernel =>
  kernelFor(`moe_combine_${gated ? "gated_" : ""}${value}`, halves, (name) => {
    // rows [max_rows, width], out [tokens, width]
    const { buffers, functions } = floats(value, { rows: "read", out: "write" }, halves);
    return defineKernel<string, string>({
      name,
      params: { tokens: "u32", top_k: "u32", width: "u32" },
      buffers: {
        ...buffers,
        ...(gated ? { gates: read("f32") } : {}), // [tokens, top_k]
        row_of_assignment: read("u32"), // [tokens, top_k]
      },
      wgsl: /* wgsl */ `${functions}${PROLOGUE}
  if (index >= params.tokens * params.width) { return; }
  let t = index / params.width;
  let column = index % params.width;
  var sum = ${value}();
  for (var j = 0u; j < params.top_k; j++) {
    let a = t * params.top_k + j;
    let row = row_of_assignment[a];
    if (row != NO_ROW) { sum += ${gated ? "gates[a] * " : ""}load_rows(row * params.width + column); }
  }
  store_out(index, sum);
}
`,
    });
  });

/** Sizes of a combination; `halves` needs a width that is a multiple of 4. */
export interface CombineDims {
  readonly tokens: number;
  readonly topK: number;
  readonly width: number;
  readonly halves?: Halves;
}

/**
 * out [tokens, width] = Σ_j gates[t,j] · rows[rowOfAssignment[t,j]] over kept choices in order of j; weight 1 without
 * gates. rows: [maxRows, width].
 */
export function moeCombine<T>(
  buffers: { rows: T; gates?: T; rowOfAssignment: T; out: T },
  { tokens, topK, width, halves = [] }: CombineDims,
): Command<T>[] {
  const { rows, gates, rowOfAssignment, out } = buffers;
  const bound = { rows, row_of_assignment: rowOfAssignment, out };
  const [value, values] = valuesOf(width);
  return [
    call(
      combineKernel(gates !== undefined, value, halves),
      { tokens, top_k: topK, width: values },
      gates === undefined ? bound : { ...bound, gates },
      spread(Math.ceil((tokens * values) / WORKGROUP)),
    ),
  ];
}

const rowsGradientKernel = (value: Value, halves: Halves): Kernel =>
  kernelFor(`moe_combine_rows_gradient_${value}`, halves, (name) => {
    // dOut [tokens, width], dRows [max_rows, width]
    const { buffers, functions } = floats(value, { dOut: "read", dRows: "write" }, halves);
    return defineKernel<string, string>({
      name,
      params: { max_rows: "u32", top_k: "u32", width: "u32" },
      buffers: {
        ...buffers,
        gates: read("f32"), //         [tokens, top_k]
        source_of_row: read("u32"), // [max_rows]
      },
      wgsl: /* wgsl */ `${functions}${PROLOGUE}
  if (index >= params.max_rows * params.width) { return; }
  let a = source_of_row[index / params.width];
  var gradient = ${value}();
  if (a != NO_ROW) { gradient = gates[a] * load_dOut((a / params.top_k) * params.width + index % params.width); }
  store_dRows(index, gradient);
}
`,
    });
  });

/** dRows [maxRows, width] = gates[a] · dOut[a / topK], a = sourceOfRow[row]; padding rows exactly 0. */
export function moeCombineRowsGradient<T>(
  { dOut, gates, sourceOfRow, dRows }: { dOut: T; gates: T; sourceOfRow: T; dRows: T },
  { maxRows, topK, width, halves = [] }: Omit<CombineDims, "tokens"> & { maxRows: number },
): Command<T>[] {
  const [value, values] = valuesOf(width);
  return [
    call(
      rowsGradientKernel(value, halves),
      { max_rows: maxRows, top_k: topK, width: values },
      { dOut, gates, source_of_row: sourceOfRow, dRows },
      spread(Math.ceil((maxRows * values) / WORKGROUP)),
    ),
  ];
}

// One thread per assignment: it walks two contiguous rows, and there are tokens · top_k of them.
const gatesGradientKernel = (value: Value, halves: Halves): Kernel =>
  kernelFor(`moe_combine_gates_gradient_${value}`, halves, (name) => {
    // dOut [tokens, width], rows [max_rows, width]
    const { buffers, functions } = floats(value, { dOut: "read", rows: "read" }, halves);
    const product = "load_dOut(token * params.width + c) * load_rows(row * params.width + c)";
    return defineKernel<string, string>({
      name,
      params: { tokens: "u32", top_k: "u32", width: "u32" },
      buffers: {
        ...buffers,
        row_of_assignment: read("u32"), // [tokens, top_k]
        dGates: write("f32"), //           [tokens, top_k]
      },
      wgsl: /* wgsl */ `${functions}${PROLOGUE}
  if (index >= params.tokens * params.top_k) { return; }
  let row = row_of_assignment[index];
  let token = index / params.top_k;
  var sum = ${value}();
  if (row != NO_ROW) {
    for (var c = 0u; c < params.width; c++) { sum += ${product}; }
  }
  dGates[index] = ${value === "vec4f" ? "dot(sum, vec4f(1))" : "sum"};
}
`,
    });
  });

/** dGates [tokens, topK] f32 = dOut[t] · rows[rowOfAssignment[t,j]]; 0 where dropped or masked. */
export function moeCombineGatesGradient<T>(
  { dOut, rows, rowOfAssignment, dGates }: { dOut: T; rows: T; rowOfAssignment: T; dGates: T },
  { tokens, topK, width, halves = [] }: CombineDims,
): Command<T>[] {
  const [value, values] = valuesOf(width);
  return [
    call(
      gatesGradientKernel(value, halves),
      { tokens, top_k: topK, width: values },
      { dOut, rows, row_of_assignment: rowOfAssignment, dGates },
      spread(Math.ceil((tokens * topK) / WORKGROUP)),
    ),
  ];
}

/** Float64 definition of {@link moeCombine}. */
export function moeCombineReference(
  rows: ArrayLike<number>,
  gates: ArrayLike<number> | undefined,
  rowOfAssignment: ArrayLike<number>,
  { tokens, topK, width }: { tokens: number; topK: number; width: number },
): Float64Array {
  const out = new Float64Array(tokens * width);
  for (let a = 0; a < tokens * topK; a++) {
    const row = rowOfAssignment[a];
    if (row === NO_ROW) continue;
    const t = Math.floor(a / topK);
    for (let c = 0; c < width; c++) out[t * width + c] += (gates ? gates[a] : 1) * rows[row * width + c];
  }
  return out;
}

/** Float64 definition of both gradients of {@link moeCombine}. */
export function moeCombineGradientsReference(
  dOut: ArrayLike<number>,
  rows: ArrayLike<number>,
  gates: ArrayLike<number>,
  rowOfAssignment: ArrayLike<number>,
  { tokens, topK, width, maxRows }: { tokens: number; topK: number; width: number; maxRows: number },
): { dRows: Float64Array; dGates: Float64Array } {
  const dRows = new Float64Array(maxRows * width);
  const dGates = new Float64Array(tokens * topK);
  for (let a = 0; a < tokens * topK; a++) {
    const row = rowOfAssignment[a];
    if (row === NO_ROW) continue;
    const t = Math.floor(a / topK);
    for (let c = 0; c < width; c++) {
      dRows[row * width + c] = gates[a] * dOut[t * width + c];
      dGates[a] += dOut[t * width + c] * rows[row * width + c];
    }
  }
  return { dRows, dGates };
}
