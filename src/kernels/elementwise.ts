// Maps over flat f32 arrays: residual add, product, scale, and the activations with their gradients.
//
// Each is one WGSL expression over the inputs at one index. Where the count allows, a thread maps a vec4f, else an f32.
// The output is never one of the inputs: a buffer cannot be bound for reading and for writing in one dispatch.

import { type Command, call, defineKernel, type Kernel, LINEAR_INDEX, read, spread, write } from "./kernel.ts";

const THREADS = 64;

/**
 * Declares out[i] = `expression`, in which `at` is i, each input is indexed by it, `params.factor` is a scalar and
 * `Value` the type of an entry; the result calls it.
 */
function elementwise<I extends string>(name: string, inputs: readonly I[], expression: string, functions = "") {
  const kernelOf = (value: "f32" | "vec4f"): Kernel => {
    const reads = Object.fromEntries(inputs.map((input) => [input, read(value)]));
    return defineKernel({
      name: `${name}_${value}`,
      params: { entries: "u32", factor: "f32" },
      buffers: { ...reads, out: write(value) },
      wgsl: /* wgsl */ `${LINEAR_INDEX}
alias Value = ${value};
${functions}
@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lid: u32) {
  let at = linear_index(wid, num) * ${THREADS} + lid;
  if (at < params.entries) { out[at] = ${expression}; }
}`,
    });
  };
  const vectors = kernelOf("vec4f");
  const scalars = kernelOf("f32");
  return <T>(buffers: Record<I | "out", T>, count: number, factor = 1): Command<T>[] => {
    if (count === 0) return [];
    const [kernel, entries] = count % 4 === 0 ? [vectors, count / 4] : [scalars, count];
    return [call(kernel, { entries, factor }, buffers, spread(Math.ceil(entries / THREADS)))];
  };
}

// gelu_new of T5 v1.1: 0.5 x (1 + tanh(u)) with u = sqrt(2/π)(x + 0.044715 x³), written as x · sigmoid(2u): WGSL
// promises exp to a few ulp but tanh only to 1e-5. The exponent is bounded so that exp stays finite; at the bound the
// sigmoid is below 1e-34.
const GELU = /* wgsl */ `
const SQRT_2_OVER_PI = ${Math.sqrt(2 / Math.PI)};
fn gelu_sigmoid(x: Value) -> Value {
  let u = SQRT_2_OVER_PI * (x + 0.044715 * x * x * x);
  return 1 / (1 + exp(min(-2 * u, Value(80))));
}
fn gelu_derivative(x: Value) -> Value {
  let s = gelu_sigmoid(x);
  let du = SQRT_2_OVER_PI * (1 + 3 * 0.044715 * x * x);
  return s + 2 * x * du * s * (1 - s);
}
`;

const addMap = elementwise("add", ["a", "b"], "a[at] + b[at]");
const multiplyMap = elementwise("multiply", ["a", "b"], "a[at] * b[at]");
const scaleMap = elementwise("scale", ["x"], "params.factor * x[at]");
const reluGradientMap = elementwise("relu_gradient", ["y", "dOut"], "select(Value(), dOut[at], y[at] > Value())");
const geluMap = elementwise("gelu", ["x"], "x[at] * gelu_sigmoid(x[at])", GELU);
const geluGradientMap = elementwise("gelu_gradient", ["x", "dOut"], "dOut[at] * gelu_derivative(x[at])", GELU);

/** out = a + b; all [count] f32. */
export const add = <T>(buffers: Record<"a" | "b" | "out", T>, { count }: { count: number }): Command<T>[] =>
  addMap(buffers, count);

/** out = a · b, element by element; all [count] f32. */
export const multiply = <T>(buffers: Record<"a" | "b" | "out", T>, { count }: { count: number }): Command<T>[] =>
  multiplyMap(buffers, count);

/** out = factor · x; both [count] f32. */
export const scale = <T>(
  buffers: Record<"x" | "out", T>,
  { count, factor }: { count: number; factor: number },
): Command<T>[] => scaleMap(buffers, count, factor);

/** dX = dOut where y > 0, else 0; y is the ReLU's output; all [count] f32. */
export const reluGradient = <T>(
  { y, dOut, dX }: Record<"y" | "dOut" | "dX", T>,
  { count }: { count: number },
): Command<T>[] => reluGradientMap({ y, dOut, out: dX }, count);

/** out = gelu_new(x) (tanh approximation, Hendrycks and Gimpel 2016, as in T5 v1.1); both [count] f32. */
export const gelu = <T>(buffers: Record<"x" | "out", T>, { count }: { count: number }): Command<T>[] =>
  geluMap(buffers, count);

/** dX = dOut · gelu_new'(x); all [count] f32. */
export const geluGradient = <T>(
  { x, dOut, dX }: Record<"x" | "dOut" | "dX", T>,
  { count }: { count: number },
): Command<T>[] => geluGradientMap({ x, dOut, out: dX }, count);

/** gelu_new of one value in float64. */
export function geluReference(x: number): number {
  return 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));
}

/** Its derivative in float64. */
export function geluDerivativeReference(x: number): number {
  const t = Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3));
  return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * Math.sqrt(2 / Math.PI) * (1 + 3 * 0.044715 * x * x);
}
