// GEGLU, the gated feed-forward's activation (Shazeer 2020, arXiv 2002.05202), with the GELU that T5 v1.1 and ST-MoE
// were trained with: the tanh approximation, here in its sigmoid form, which loses no digits where tanh is near -1.
//
//   out = gelu(gate) · up,  gelu(x) = x · sigmoid(2u),  u = sqrt(2/π) · (x + 0.044715 x³)
//
// Gate and up are two linear maps of the same input; the linear maps are not part of this. The backward pass needs only
// the two inputs, so nothing else is saved. Each gradient is a map of its own: what the freeze plan does not need is not
// computed.

import { elementwise } from "./elementwise.ts";

const CUBIC = 0.044715;
/** 2 · sqrt(2/π): 2u = SLOPE · (x + CUBIC · x³). */
const SLOPE = 2 * Math.sqrt(2 / Math.PI);

// Beyond ±80 the sigmoid is 0 or 1 to f32's last digit; the clamp keeps exp finite, which WGSL does not promise else.
const GELU = /* wgsl */ `
const SLOPE = ${SLOPE};
const CUBIC = ${CUBIC};
fn gate_sigmoid(x: Value) -> Value {
  return 1.0 / (1.0 + exp(clamp(-SLOPE * x * (1.0 + CUBIC * x * x), Value(-80.0), Value(80.0))));
}
fn gelu(x: Value) -> Value { return x * gate_sigmoid(x); }
fn gelu_slope(x: Value) -> Value {
  let s = gate_sigmoid(x);
  return s + x * s * (1.0 - s) * SLOPE * (1.0 + 3.0 * CUBIC * x * x);
}
`;

/** out = gelu(gate) · up; all [count]. */
export const gatedGelu = elementwise("gated_gelu", ["gate", "up"], "gelu(load_gate(at)) * load_up(at)", GELU);

/** out = dOut · up · gelu'(gate), the gradient of the gate; all [count]. */
export const gatedGeluGateGradient = elementwise(
  "gated_gelu_gate_gradient",
  ["gate", "up", "dOut"],
  "load_dOut(at) * load_up(at) * gelu_slope(load_gate(at))",
  GELU,
);

/** out = dOut · gelu(gate), the gradient of up; all [count]. */
export const gatedGeluUpGradient = elementwise(
  "gated_gelu_up_gradient",
  ["gate", "dOut"],
  "load_dOut(at) * gelu(load_gate(at))",
  GELU,
);

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
