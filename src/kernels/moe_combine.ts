// From expert rows back to tokens: the gate-weighted sum of a token's kept experts, and its two gradients.
//
// Each token gathers its own rows through `rowOfAssignment` in order of choice, so no atomics and the same bits every
// time. A dropped or masked assignment (row 0xffffffff) contributes exactly 0; the residual carries the token.

import { type Command, call, defineKernel, LINEAR_INDEX, read, spread, write } from "./kernel.ts";
import { NO_ROW } from "./moe_dispatch.ts";

const WORKGROUP = 64;

const PROLOGUE = /* wgsl */ `${LINEAR_INDEX}
const WORKGROUP = ${WORKGROUP}u;
const NO_ROW = ${NO_ROW}u;
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lane: u32) {
  let index = linear_index(wid, num) * WORKGROUP + lane;
`;

const combineKernel = (gated: boolean) =>
  defineKernel<string, string>({
    name: gated ? "moe_combine_gated" : "moe_combine",
    params: { tokens: "u32", top_k: "u32", width: "u32" },
    buffers: {
      rows: read("f32"), //              [max_rows, width]
      ...(gated ? { gates: read("f32") } : {}), // [tokens, top_k]
      row_of_assignment: read("u32"), // [tokens, top_k]
      out: write("f32"), //              [tokens, width]
    },
    wgsl: /* wgsl */ `${PROLOGUE}
  if (index >= params.tokens * params.width) { return; }
  let t = index / params.width;
  let column = index % params.width;
  var sum = 0.0;
  for (var j = 0u; j < params.top_k; j++) {
    let a = t * params.top_k + j;
    let row = row_of_assignment[a];
    if (row != NO_ROW) { sum += ${gated ? "gates[a] * " : ""}rows[row * params.width + column]; }
  }
  out[index] = sum;
}
`,
  });

/**
 * out [tokens, width] = Σ_j gates[t,j] · rows[rowOfAssignment[t,j]] over kept choices in order of j; weight 1 without
 * gates. rows: [maxRows, width] f32.
 */
export function moeCombine<T>(
  buffers: { rows: T; gates?: T; rowOfAssignment: T; out: T },
  dims: { tokens: number; topK: number; width: number },
): Command<T>[] {
  const { rows, gates, rowOfAssignment, out } = buffers;
  const bound = { rows, row_of_assignment: rowOfAssignment, out };
  return [
    call(
      combineKernel(gates !== undefined),
      { tokens: dims.tokens, top_k: dims.topK, width: dims.width },
      gates === undefined ? bound : { ...bound, gates },
      spread(Math.ceil((dims.tokens * dims.width) / WORKGROUP)),
    ),
  ];
}

const rowsGradientKernel = defineKernel({
  name: "moe_combine_rows_gradient",
  params: { max_rows: "u32", top_k: "u32", width: "u32" },
  buffers: {
    d_out: read("f32"), //         [tokens, width]
    gates: read("f32"), //         [tokens, top_k]
    source_of_row: read("u32"), // [max_rows]
    d_rows: write("f32"), //       [max_rows, width]
  },
  wgsl: /* wgsl */ `${PROLOGUE}
  if (index >= params.max_rows * params.width) { return; }
  let a = source_of_row[index / params.width];
  var gradient = 0.0;
  if (a != NO_ROW) { gradient = gates[a] * d_out[(a / params.top_k) * params.width + index % params.width]; }
  d_rows[index] = gradient;
}
`,
});

/** dRows [maxRows, width] = gates[a] · dOut[a / topK], a = sourceOfRow[row]; padding rows exactly 0. */
export function moeCombineRowsGradient<T>(
  buffers: { dOut: T; gates: T; sourceOfRow: T; dRows: T },
  dims: { maxRows: number; topK: number; width: number },
): Command<T>[] {
  return [
    call(
      rowsGradientKernel,
      { max_rows: dims.maxRows, top_k: dims.topK, width: dims.width },
      { d_out: buffers.dOut, gates: buffers.gates, source_of_row: buffers.sourceOfRow, d_rows: buffers.dRows },
      spread(Math.ceil((dims.maxRows * dims.width) / WORKGROUP)),
    ),
  ];
}

// One thread per assignment: it walks two contiguous rows, and there are tokens · top_k of them.
const gatesGradientKernel = defineKernel({
  name: "moe_combine_gates_gradient",
  params: { tokens: "u32", top_k: "u32", width: "u32" },
  buffers: {
    d_out: read("f32"), //             [tokens, width]
    rows: read("f32"), //              [max_rows, width]
    row_of_assignment: read("u32"), // [tokens, top_k]
    d_gates: write("f32"), //          [tokens, top_k]
  },
  wgsl: /* wgsl */ `${PROLOGUE}
  if (index >= params.tokens * params.top_k) { return; }
  let row = row_of_assignment[index];
  let token = index / params.top_k;
  var sum = 0.0;
  if (row != NO_ROW) {
    for (var c = 0u; c < params.width; c++) { sum += d_out[token * params.width + c] * rows[row * params.width + c]; }
  }
  d_gates[index] = sum;
}
`,
});

/** dGates [tokens, topK] = dOut[t] · rows[rowOfAssignment[t,j]]; 0 where dropped or masked. */
export function moeCombineGatesGradient<T>(
  buffers: { dOut: T; rows: T; rowOfAssignment: T; dGates: T },
  dims: { tokens: number; topK: number; width: number },
): Command<T>[] {
  return [
    call(
      gatesGradientKernel,
      { tokens: dims.tokens, top_k: dims.topK, width: dims.width },
      {
        d_out: buffers.dOut,
        rows: buffers.rows,
        row_of_assignment: buffers.rowOfAssignment,
        d_gates: buffers.dGates,
      },
      spread(Math.ceil((dims.tokens * dims.topK) / WORKGROUP)),
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
