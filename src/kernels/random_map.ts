// Maps over flat arrays of floats and one uniform random number for each element, counter-based (random.ts): a function of
// (seed, step, use, element), so that the backward pass draws the same numbers again.
//
// One thread makes four elements: a Philox call gives four words. Where the count allows they are one vec4f, else a last
// group of less than four is cut.

import { type Command, call, defineKernel, type Kernel, LINEAR_INDEX, type ParamType, spread } from "./kernel.ts";
import { PHILOX } from "./random.ts";
import { STEP_SCALARS } from "./step_scalars.ts";
import { floats, type Halves, kernelFor, type Value } from "./storage.ts";

const THREADS = 64;

export interface RandomMapDims {
  /** Elements; a multiple of 4 where a buffer is among `halves`. */
  readonly count: number;
  /** Which use of random numbers of the model this is: no two share a number. */
  readonly use: number;
  readonly halves?: Halves;
}

/** WGSL of main by value; both name the index `at` and the random number `draw`. */
const MAIN: Readonly<Record<Value, (expression: string) => string>> = {
  vec4f: (expression) => /* wgsl */ `
  let at = group;
  let draw = vec4f(
    uniform_of_word(words.x), uniform_of_word(words.y), uniform_of_word(words.z), uniform_of_word(words.w));
  store_out(at, ${expression});`,
  f32: (expression) => /* wgsl */ `
  for (var i = 0u; i < 4; i++) {
    let at = group * 4 + i;
    if (at >= params.count) { break; }
    let draw = uniform_of_word(words[i]);
    store_out(at, ${expression});
  }`,
};

/**
 * Declares out[i] = `expression` for each value i = `at` of the inputs, which are `load_INPUT(at)`, and of `draw`, in
 * [0, 1); `Value` is their type, `more` are parameters of its own. The result calls it; step = the StepScalars.
 */
export function randomMap<I extends string, P extends string>(
  name: string,
  inputs: readonly I[],
  more: Readonly<Record<P, ParamType>>,
  expression: string,
): <T>(buffers: Record<I | "step" | "out", T>, dims: RandomMapDims, params: Record<P, number>) => Command<T>[] {
  const kernelOf = (value: Value, halves: Halves): Kernel =>
    kernelFor(`${name}_${value}`, halves, (full) => {
      const reads = Object.fromEntries(inputs.map((input) => [input, "read" as const]));
      const stored = floats<string>(value, { ...reads, out: "write" }, halves);
      return defineKernel<string, string>({
        name: full,
        params: { count: "u32", use_id: "u32", ...more },
        buffers: { ...stored.buffers, step: { access: "read", type: "StepScalars" } },
        wgsl: /* wgsl */ `${STEP_SCALARS}${PHILOX}${LINEAR_INDEX}
alias Value = ${value};
${stored.functions}
@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lid: u32) {
  let group = linear_index(wid, num) * ${THREADS} + lid;
  if (group * 4 >= params.count) { return; }
  let words = philox(vec4u(group, step.step, 0, 0), vec2u(step.seed, params.use_id));${MAIN[value](expression)}
}`,
      });
    });
  return (buffers, { count, use, halves = [] }, params) => {
    if (count === 0) return [];
    const kernel = kernelOf(count % 4 === 0 ? "vec4f" : "f32", halves);
    return [call(kernel, { count, use_id: use, ...params }, buffers, spread(Math.ceil(count / (4 * THREADS))))];
  };
}
