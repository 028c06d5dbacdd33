// What the backward pass of attention needs of each query and head beside its inputs: the log-sum-exp of its scores, and
// delta, the mean of the gradients of its probabilities, which is also out · dOut.

import { type Command, call, defineKernel, LINEAR_INDEX, madeOnce, read, spread, write } from "./kernel.ts";
import { floats, type Value, valuesOf } from "./storage.ts";

const WORKGROUP = 64;
/** Partial sums of a row. */
const SLOTS = 16;

// Sixteen neighbouring threads read one row's vectors, then a thread sums up a row: neighbouring rows are neighbouring
// heads, so a workgroup reads one stretch of memory.
const rowStatisticsKernel = (type: Value, half: boolean) => {
  const { buffers, functions } = floats(type, { out: "read", d_out: "read" }, half ? ["out", "d_out"] : []);
  return defineKernel<string, string>({
    name: `attention_row_statistics_${type}${half ? "_f16" : ""}`,
    params: { batch: "u32", heads: "u32", query_length: "u32", vectors: "u32" },
    buffers: { ...buffers, log_sum_exp: read("f32"), row_statistics: write("vec2f") },
    wgsl: /* wgsl */ `${functions}${LINEAR_INDEX}
const SLOTS = ${SLOTS}u;
var<workgroup> partial: array<f32, ${WORKGROUP} * (SLOTS + 1)>; // a row's begin in different banks
@compute @workgroup_size(${WORKGROUP})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lane: u32) {
  let first = linear_index(wid, num) * ${WORKGROUP}u;
  let rows = params.batch * params.query_length * params.heads;
  for (var x = lane; x < ${WORKGROUP}u * SLOTS; x += ${WORKGROUP}u) {
    let r = x / SLOTS;
    let start = (first + r) * params.vectors;
    var sum = 0.0;
    if (first + r < rows) {
      for (var d = x % SLOTS; d < params.vectors; d += SLOTS) {
        sum += ${type === "vec4f" ? "dot(load_out(start + d), load_d_out(start + d))" : "load_out(start + d) * load_d_out(start + d)"};
      }
    }
    partial[r * (SLOTS + 1) + x % SLOTS] = sum;
  }
  workgroupBarrier();
  let index = first + lane;
  if (index >= rows) { return; }
  let h = index % params.heads;
  let i = index / params.heads % params.query_length;
  let b = index / params.heads / params.query_length;
  var sum = 0.0;
  for (var slot = 0u; slot < SLOTS; slot++) { sum += partial[lane * (SLOTS + 1) + slot]; }
  let row = (b * params.heads + h) * params.query_length + i;
  row_statistics[row] = vec2f(log_sum_exp[row], sum);
}
`,
  });
};

const statistics = madeOnce(rowStatisticsKernel);

/**
 * rowStatistics [batch, heads, queryLength, 2] f32: logSumExp, and delta = Σ_d out · dOut (both
 * [batch · queryLength, heads · headDim]). One buffer instead of two: adapters may allow only ten in a kernel.
 */
export function attentionRowStatistics<T>(
  buffers: { out: T; dOut: T; logSumExp: T; rowStatistics: T },
  dims: { batch: number; heads: number; queryLength: number; headDim: number; half?: boolean },
): Command<T>[] {
  const { batch, heads, queryLength, headDim, half = false } = dims;
  const [type, vectors] = valuesOf(headDim);
  return [
    call(
      statistics(type, half),
      { batch, heads, query_length: queryLength, vectors },
      {
        out: buffers.out,
        d_out: buffers.dOut,
        log_sum_exp: buffers.logSumExp,
        row_statistics: buffers.rowStatistics,
      },
      spread(Math.ceil((batch * heads * queryLength) / WORKGROUP)),
    ),
  ];
}
