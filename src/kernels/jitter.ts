// Multiplicative router noise (Switch Transformers, section 2.4): out = x · u, u uniform in [1 - epsilon, 1 + epsilon],
// from counter-based random numbers, so the backward pass draws the same u again.

import { type Command, call, defineKernel, LINEAR_INDEX, read, spread, write } from "./kernel.ts";
import { PHILOX, uniformElement } from "./random.ts";
import { STEP_SCALARS } from "./step_scalars.ts";

const WORKGROUP = 64;

const kernel = defineKernel({
  name: "jitter",
  params: { count: "u32", epsilon: "f32", use_id: "u32" },
  buffers: {
    x: read("f32"), //   [count]
    step: { access: "read", type: "StepScalars" },
    out: write("f32"), // [count]
  },
  wgsl: /* wgsl */ `${LINEAR_INDEX}${STEP_SCALARS}${PHILOX}
@compute @workgroup_size(${WORKGROUP})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lane: u32) {
  let i = linear_index(wid, num) * ${WORKGROUP}u + lane;
  if (i >= params.count) { return; }
  let u = uniform_element(step.seed, step.step, params.use_id, i);
  out[i] = x[i] * (1.0 + params.epsilon * (2.0 * u - 1.0));
}
`,
});

/** x, out [count] f32; `use` tells this site's random numbers from others'. Its gradient is itself, applied to dOut. */
export function jitter<T>(
  buffers: { x: T; step: T; out: T },
  dims: { count: number; epsilon: number; use: number },
): Command<T>[] {
  const { count, epsilon, use } = dims;
  return [call(kernel, { count, epsilon, use_id: use }, buffers, spread(Math.ceil(count / WORKGROUP)))];
}

export function jitterReference(
  x: ArrayLike<number>,
  dims: { epsilon: number; use: number },
  random: { seed: number; step: number },
): Float64Array {
  return Float64Array.from(x, (value, i) => {
    const u = uniformElement(random.seed, random.step, dims.use, i);
    return value * (1 + dims.epsilon * (2 * u - 1));
  });
}
