// Maps over flat f32 arrays: the residual add, sums in place, and the gradient of ReLU (whose forward is fused into the
// matmuls).
//
// Each is one WGSL expression over the inputs at one index. Where the count allows, a thread maps a vec4f, else an f32.
// An output is never also declared as an input: a buffer cannot be bound for reading and for writing in one dispatch.

import { type Command, call, defineKernel, type Kernel, LINEAR_INDEX, read, spread, write } from "./kernel.ts";

const THREADS = 64;

/**
 * Declares out[i] = `expression`, in which `at` is i, each input is indexed by it and `Value` is the type of an entry;
 * the result calls it.
 */
function elementwise<I extends string>(name: string, inputs: readonly I[], expression: string) {
  const kernelOf = (value: "f32" | "vec4f"): Kernel => {
    const reads = Object.fromEntries(inputs.map((input) => [input, read(value)]));
    return defineKernel({
      name: `${name}_${value}`,
      params: { entries: "u32" },
      buffers: { ...reads, out: write(value) },
      wgsl: /* wgsl */ `${LINEAR_INDEX}
alias Value = ${value};
@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lid: u32) {
  let at = linear_index(wid, num) * ${THREADS} + lid;
  if (at < params.entries) { out[at] = ${expression}; }
}`,
    });
  };
  const vectors = kernelOf("vec4f");
  const scalars = kernelOf("f32");
  return <T>(buffers: Record<I | "out", T>, count: number): Command<T>[] => {
    if (count === 0) return [];
    const [kernel, entries] = count % 4 === 0 ? [vectors, count / 4] : [scalars, count];
    return [call(kernel, { entries }, buffers, spread(Math.ceil(entries / THREADS)))];
  };
}

const addMap = elementwise("add", ["a", "b"], "a[at] + b[at]");
const reluGradientMap = elementwise("relu_gradient", ["y", "dOut"], "select(Value(), dOut[at], y[at] > Value())");

/** out = a + b; all [count] f32. */
export const add = <T>(buffers: Record<"a" | "b" | "out", T>, { count }: { count: number }): Command<T>[] =>
  addMap(buffers, count);

const addIntoMap = elementwise("add_into", ["x"], "out[at] + x[at]");

/** out += x; both [count] f32. */
export const addInto = <T>(buffers: Record<"x" | "out", T>, { count }: { count: number }): Command<T>[] =>
  addIntoMap(buffers, count);

/** dX = dOut where y > 0, else 0; y is the ReLU's output; all [count] f32. */
export const reluGradient = <T>(
  { y, dOut, dX }: Record<"y" | "dOut" | "dX", T>,
  { count }: { count: number },
): Command<T>[] => reluGradientMap({ y, dOut, out: dX }, count);
