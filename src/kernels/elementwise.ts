// Maps over flat arrays of floats: the residual add, sums in place, and the gradient of ReLU where it is no matmul's to mask
// (the forward pass is always fused into one).
//
// Each is one WGSL expression over the inputs at one index. Where the count allows, a thread maps a vec4f, else an f32.
// An output is never also declared as an input: a buffer cannot be bound for reading and for writing in one dispatch.

import { type Command, call, defineKernel, LINEAR_INDEX, spread } from "./kernel.ts";
import { floats, type Halves, kernelFor, type Value, valuesOf } from "./storage.ts";

const THREADS = 64;

export interface MapDims {
  /** Elements; a multiple of 4 where a buffer is among `halves`. */
  readonly count: number;
  readonly halves?: Halves;
}

/**
 * Declares out[i] = `expression` for each value i = `at` of the inputs, which are `load_INPUT(at)`; `Value` is the type of
 * a value and `functions` are WGSL that the expression calls. The result calls it.
 */
export function elementwise<I extends string>(
  name: string,
  inputs: readonly I[],
  expression: string,
  functions = "",
): <T>(buffers: Record<I | "out", T>, dims: MapDims) => Command<T>[] {
  const kernelOf = (value: Value, halves: Halves) =>
    kernelFor(`${name}_${value}`, halves, (full) => {
      const reads = Object.fromEntries(inputs.map((input) => [input, "read" as const]));
      const stored = floats<string>(value, { ...reads, out: "write" }, halves);
      return defineKernel<string, string>({
        name: full,
        params: { entries: "u32" },
        buffers: stored.buffers,
        wgsl: /* wgsl */ `${LINEAR_INDEX}
alias Value = ${value};
${stored.functions}${functions}
@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lid: u32) {
  let at = linear_index(wid, num) * ${THREADS} + lid;
  if (at < params.entries) { store_out(at, ${expression}); }
}`,
      });
    });
  return (buffers, { count, halves = [] }) => {
    if (count === 0) return [];
    const [value, entries] = valuesOf(count);
    return [call(kernelOf(value, halves), { entries }, buffers, spread(Math.ceil(entries / THREADS)))];
  };
}

/** out = a + b; all [count]. */
export const add = elementwise("add", ["a", "b"], "load_a(at) + load_b(at)");

/** out = x; both [count]: where only out is among `halves`, x rounded to f16. */
export const rounded = elementwise("rounded", ["x"], "load_x(at)");

/** out += x; both [count]. */
export const addInto = elementwise("add_into", ["x"], "load_out(at) + load_x(at)");

/** out = dOut where y > 0, else 0: the gradient of ReLU, whose output is y; all [count]. */
export const reluGradient = elementwise(
  "relu_gradient",
  ["y", "dOut"],
  "select(Value(), load_dOut(at), load_y(at) > Value())",
);
