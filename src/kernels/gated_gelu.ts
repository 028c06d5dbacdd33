// GEGLU, the gated feed-forward's activation (Shazeer 2020, arXiv 2002.05202), with the GELU that T5 v1.1 and ST-MoE
// were trained with: the tanh approximation, here in its sigmoid form, which loses no digits where tanh is near -1.
//
//   out = gelu(gate) · up,  gelu(x) = x · sigmoid(2u),  u = sqrt(2/π) · (x + 0.044715 x³)
//
// Gate and up are two linear maps of the same input; the linear maps are not part of this. The backward pass needs only
// the two inputs, so nothing else is saved. One thread per element, each gradient a map of its own: what the freeze plan
// does not need is not computed.

import { type Command, call, defineKernel, LINEAR_INDEX, read, spread, write } from "./kernel.ts";

const THREADS = 64;
const CUBIC = 0.044715;
/** 2 · sqrt(2/π): 2u = SLOPE · (x + CUBIC · x³). */
const SLOPE = 2 * Math.sqrt(2 / Math.PI);

// Beyond ±80 the sigmoid is 0 or 1 to f32's last digit; the clamp keeps exp finite, which WGSL does not promise else.
const GELU = /* wgsl */ `
const SLOPE = ${SLOPE};
const CUBIC = ${CUBIC};
fn gate_sigmoid(x: f32) -> f32 {
  return 1.0 / (1.0 + exp(clamp(-SLOPE * x * (1.0 + CUBIC * x * x), -80.0, 80.0)));
}
fn gelu(x: f32) -> f32 { return x * gate_sigmoid(x); }
fn gelu_slope(x: f32) -> f32 {
  let s = gate_sigmoid(x);
  return s + x * s * (1.0 - s) * SLOPE * (1.0 + 3.0 * CUBIC * x * x);
}
`;

/** Declares out[i] = `expression` of the `inputs` at i; the result calls it. */
function map<I extends string>(name: string, inputs: readonly I[], expression: string) {
  const kernel = defineKernel<string, string>({
    name,
    params: { count: "u32" },
    buffers: { ...Object.fromEntries(inputs.map((input) => [input, read("f32")])), out: write("f32") },
    wgsl: /* wgsl */ `${LINEAR_INDEX}${GELU}
@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lid: u32) {
  let at = linear_index(wid, num) * ${THREADS} + lid;
  if (at < params.count) { out[at] = ${expression}; }
}`,
  });
  return <T>(buffers: Record<I | "out", T>, { count }: { count: number }): Command<T>[] =>
    count === 0 ? [] : [call(kernel, { count }, buffers, spread(Math.ceil(count / THREADS)))];
}

/** out = gelu(gate) · up; all [count] f32. */
export const gatedGelu = map("gated_gelu", ["gate", "up"], "gelu(gate[at]) * up[at]");

/** out = dOut · up · gelu'(gate), the gradient of the gate; all [count] f32. */
export const gatedGeluGateGradient = map(
  "gated_gelu_gate_gradient",
  ["gate", "up", "dOut"],
  "dOut[at] * up[at] * gelu_slope(gate[at])",
);

/** out = dOut · gelu(gate), the gradient of up; all [count] f32. */
export const gatedGeluUpGradient = map("gated_gelu_up_gradient", ["gate", "dOut"], "dOut[at] * gelu(gate[at])");

export interface GatedGelu {
  out: number;
  dGate: number;
  dUp: number;
}

/** Float64 definition at one element. */
export function gatedGeluReference(gate: number, up: number, dOut: number): GatedGelu {
  const s = 1 / (1 + Math.exp(-SLOPE * gate * (1 + CUBIC * gate * gate)));
  const slope = s + gate * s * (1 - s) * SLOPE * (1 + 3 * CUBIC * gate * gate);
  return { out: gate * s * up, dGate: dOut * up * slope, dUp: dOut * gate * s };
}
