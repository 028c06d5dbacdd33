// Inverted dropout whose mask is a function of (seed, step, use, element) (see random.ts), so it is never stored: the
// gradient is `dropout` applied to dOut with the same `use` in the same step.
//
//   out = x / (1 - rate) where uniform_element(seed, step, use, element) >= rate, else 0
//
// One thread makes four elements: a Philox call gives four words. A last group of less than four is cut.

import { type Command, call, defineKernel, LINEAR_INDEX, read, spread, write } from "./kernel.ts";
import { PHILOX, uniformElement } from "./random.ts";
import { STEP_SCALARS } from "./step_scalars.ts";

const THREADS = 64;
const PARAMS = { count: "u32", use_id: "u32", rate: "f32", scale: "f32" } as const;
const STEP = { access: "read", type: "StepScalars" } as const;

/** WGSL after the bindings; `value` is what is stored at `at` given `kept`, the dropped-out x. */
const main = (value: string): string => /* wgsl */ `${STEP_SCALARS}${PHILOX}${LINEAR_INDEX}
@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lid: u32) {
  let group = linear_index(wid, num) * ${THREADS} + lid;
  if (group * 4 >= params.count) { return; }
  let words = philox(vec4u(group, step.step, 0, 0), vec2u(step.seed, params.use_id));
  for (var i = 0u; i < 4; i++) {
    let at = group * 4 + i;
    if (at >= params.count) { break; }
    let kept = select(0.0, x[at] * params.scale, uniform_of_word(words[i]) >= params.rate);
    out[at] = ${value};
  }
}`;

const dropoutKernel = defineKernel({
  name: "dropout",
  params: PARAMS,
  buffers: { x: read("f32"), step: STEP, out: write("f32") },
  wgsl: main("kept"),
});

const residualKernel = defineKernel({
  name: "residual_dropout",
  params: PARAMS,
  buffers: { x: read("f32"), step: STEP, residual: read("f32"), out: write("f32") },
  wgsl: main("residual[at] + kept"),
});

export interface DropoutDims {
  /** Elements. */
  count: number;
  /** Share of elements dropped, in [0, 1). */
  rate: number;
  /** Which dropout of the model this is: no two share a number. */
  use: number;
}

const paramsOf = ({ count, rate, use }: DropoutDims) => ({ count, use_id: use, rate, scale: 1 / (1 - rate) });
const groupsOf = ({ count }: DropoutDims): [number, number] => spread(Math.ceil(count / (4 * THREADS)));

/** out = dropout(x), and dX = dropout(dOut) with the same `use`; x, out [count] f32, step = the StepScalars. */
export const dropout = <T>(buffers: Record<"x" | "step" | "out", T>, dims: DropoutDims): Command<T>[] =>
  dims.count === 0 ? [] : [call(dropoutKernel, paramsOf(dims), buffers, groupsOf(dims))];

/** out = residual + dropout(x); all [count] f32, step = the StepScalars. */
export const residualDropout = <T>(
  buffers: Record<"residual" | "x" | "step" | "out", T>,
  dims: DropoutDims,
): Command<T>[] => (dims.count === 0 ? [] : [call(residualKernel, paramsOf(dims), buffers, groupsOf(dims))]);

/** Dropout in float64 at a seed and a step. The rate is compared as the f32 that the device holds. */
export function dropoutReference(
  x: ArrayLike<number>,
  { rate, use }: { rate: number; use: number },
  { seed, step }: { seed: number; step: number },
): Float64Array {
  const keep = (i: number): boolean => uniformElement(seed, step, use, i) >= Math.fround(rate);
  return Float64Array.from(x, (value, i) => (keep(i) ? value / (1 - rate) : 0));
}
