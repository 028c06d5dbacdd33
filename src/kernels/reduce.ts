// Ordered sums of squares of long f32 arrays, and the global gradient norm with its clip factor and whether it is finite.
//
// Two stages, no atomics: a workgroup sums a chunk into one partial, one workgroup sums the partials. A chunk is 4096
// elements, or as many times that as leave 4096 partials at most, for what a single workgroup sums takes its time.
// Inside a workgroup each thread sums every 64th element in order, then thread 0 adds the 64 sums in order, so the
// result is the same bit for bit every time. One barrier per chunk: both targets share the kernels.
//
// Partials of several arrays can lie in one buffer: `sumOfSquares` of every array writes its own stretch of it, and
// one `gradientNorm` reads it all.

import { type Command, call, defineKernel, LINEAR_INDEX, read, spread, write } from "./kernel.ts";
import { STEP_SCALARS } from "./step_scalars.ts";

/** Elements that a workgroup sums into one partial at least. */
export const CHUNK = 4096;
const THREADS = 64;

/** Partials of one array at most. */
const MOST_PARTIALS = 4096;

/** Elements of an array of `count` that go into one partial. */
const chunkOf = (count: number): number => CHUNK * Math.max(1, Math.ceil(count / (CHUNK * MOST_PARTIALS)));

/** f32 partial sums that an array of `count` elements leaves: the size of its stretch. */
export const partialsOfCount = (count: number): number => Math.max(1, Math.ceil(count / chunkOf(count)));

/**
 * WGSL: `sum_range(lane, begin, end)`, complete in lane 0, of `term` (an expression in `i`, of `type`) for i in
 * [begin, end), in the order described above; all 64 lanes of a workgroup call it, once.
 */
export const sumRange = (term: string, type: "f32" | "vec2f" = "f32"): string => /* wgsl */ `
var<workgroup> lane_sums: array<${type}, ${THREADS}>;
fn sum_range(lane: u32, begin: u32, end: u32) -> ${type} {
  var sum = ${type}();
  for (var i = begin + lane; i < end; i += ${THREADS}) { sum += ${term}; }
  lane_sums[lane] = sum;
  workgroupBarrier();
  if (lane > 0) { return ${type}(); }
  for (var other = 1u; other < ${THREADS}; other++) { sum += lane_sums[other]; }
  return sum;
}
`;

const squareChunks = defineKernel({
  name: "sum_of_squares",
  params: { count: "u32", chunk: "u32", partial_offset: "u32" }, // in vec4f
  buffers: { x: read("vec4f"), partials: write("f32") },
  wgsl: /* wgsl */ `${LINEAR_INDEX}${sumRange("dot(x[i], x[i])")}
@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lane: u32) {
  let at = linear_index(wid, num);
  let begin = at * params.chunk;
  if (at > 0 && begin >= params.count) { return; }
  let sum = sum_range(lane, begin, min(begin + params.chunk, params.count));
  if (lane == 0) { partials[params.partial_offset + at] = sum; }
}`,
});

const normKernel = defineKernel({
  name: "gradient_norm",
  params: { partial_count: "u32" },
  buffers: { partials: read("f32"), step: { access: "read", type: "StepScalars" }, out: write("f32") },
  wgsl: /* wgsl */ `${STEP_SCALARS}${sumRange("partials[i]")}
@compute @workgroup_size(${THREADS})
fn main(@builtin(local_invocation_index) lane: u32) {
  let sum = sum_range(lane, 0, params.partial_count);
  if (lane > 0) { return; }
  let norm = sqrt(sum) / step.loss_scale;
  let clip = select(1.0, min(1.0, step.max_gradient_norm / (norm + 1e-6)), step.max_gradient_norm > 0);
  // By its bits: WGSL compilers may assume that no float is NaN or infinite.
  let finite = (bitcast<u32>(norm) & 0x7f800000) != 0x7f800000;
  out[0] = norm;
  out[1] = select(0.0, clip / step.loss_scale, finite);
  out[2] = select(0.0, 1.0, finite);
}`,
});

/**
 * partials[partialOffset .. + partialsOfCount(count)) = sums of x² over chunks; x [count] f32.
 * @throws RangeError when count is no multiple of 4
 */
export function sumOfSquares<T>(
  buffers: Record<"x" | "partials", T>,
  { count, partialOffset }: { count: number; partialOffset: number },
): Command<T>[] {
  if (count % 4 !== 0) throw new RangeError(`${count} elements are not whole vec4f`);
  const params = { count: count / 4, chunk: chunkOf(count) / 4, partial_offset: partialOffset };
  return [call(squareChunks, params, buffers, spread(partialsOfCount(count)))];
}

/**
 * out[0] = the global norm, sqrt(Σ partials) / loss_scale; out[1] = what to multiply a gradient with: the clip factor
 * min(1, max_gradient_norm / (norm + 1e-6)), 1 when max_gradient_norm is 0, divided by loss_scale; out[2] = 1 where the
 * norm is finite, else 0 (and out[1] = 0 too): some gradient is NaN or infinite, or the squares overflow (norm > 1.8e19).
 * Every optimizer leaves parameters and state as they are then.
 * The clip factor is that of torch.nn.utils.clip_grad_norm_ (optax.clip_by_global_norm has no 1e-6).
 * partials [partialCount] f32, step = the StepScalars, out [3] f32.
 */
export const gradientNorm = <T>(
  buffers: Record<"partials" | "step" | "out", T>,
  { partialCount }: { partialCount: number },
): Command<T>[] => [call(normKernel, { partial_count: partialCount }, buffers, [1])];

/** {@link gradientNorm} in float64, from the gradients themselves. */
export function gradientNormReference(
  gradients: readonly ArrayLike<number>[],
  { lossScale, maxGradientNorm }: { lossScale: number; maxGradientNorm: number },
): [norm: number, factor: number, finite: number] {
  let squares = 0;
  for (const gradient of gradients) for (let i = 0; i < gradient.length; i++) squares += gradient[i] ** 2;
  const norm = Math.sqrt(squares) / lossScale;
  const clip = maxGradientNorm > 0 ? Math.min(1, maxGradientNorm / (norm + 1e-6)) : 1;
  return Number.isFinite(norm) ? [norm, clip / lossScale, 1] : [norm, 0, 0];
}
