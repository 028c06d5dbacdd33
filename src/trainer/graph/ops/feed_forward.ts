// Activations of feed-forward layers that are operations of their own (ReLU is fused into the linear maps): GEGLU, and
// the experts' multiplicative bias.

import { expertScaleGradient, expertScale as expertScaleKernel } from "../../../kernels/expert_scale.ts";
import {
  gatedGeluGateGradient,
  gatedGelu as gatedGeluKernel,
  gatedGeluUpGradient,
} from "../../../kernels/gated_gelu.ts";
import { elements, type Graph, halvesOf, type Tensor, trainableSlots } from "../graph.ts";
import type { Routing } from "./routing.ts";

/** gelu(gate) · up, the GELU in its tanh approximation; all of one shape. */
export function gatedGelu(g: Graph, name: string, gate: Tensor, up: Tensor): Tensor {
  const out = g.operand(name, gate.shape, [gate, up]);
  const count = elements(gate.shape);
  g.add({
    name: "gated_gelu",
    reads: [gate, up],
    writes: [out],
    flops: 10 * count,
    lower: () => {
      const bound = { gate, up, out };
      return gatedGeluKernel(bound, { count, halves: halvesOf(bound) });
    },
    backward: (gradients) => {
      const dOut = gradients.of(out)!;
      gradients.add(gate, false, (dGate) =>
        g.add({
          name: "gated_gelu_gate_gradient",
          reads: [gate, up, dOut],
          writes: [dGate],
          flops: 18 * count,
          lower: () => {
            const bound = { gate, up, dOut, out: dGate };
            return gatedGeluGateGradient(bound, { count, halves: halvesOf(bound) });
          },
        }),
      );
      gradients.add(up, false, (dUp) =>
        g.add({
          name: "gated_gelu_up_gradient",
          reads: [gate, dOut],
          writes: [dUp],
          flops: 10 * count,
          lower: () => {
            const bound = { gate, dOut, out: dUp };
            return gatedGeluUpGradient(bound, { count, halves: halvesOf(bound) });
          },
        }),
      );
    },
  });
  return out;
}

/** Sorted rows x [maxRows, width], each multiplied by its expert's vector of `scale` [experts, width]. */
export function expertScale(g: Graph, name: string, x: Tensor, scale: Tensor, r: Routing): Tensor {
  const [maxRows, width] = x.shape;
  const { rowTile, experts, expertOfBlock, expertOffset, expertCount } = r;
  const out = g.operand(name, x.shape, [x, scale]);
  const flops = r.expertIds.shape[0] * r.topK * width;
  const scaled = (from: Tensor, to: Tensor) => {
    const bound = { x: from, scale, expertOfBlock, out: to };
    return expertScaleKernel(bound, { maxRows, rowTile, width, experts, halves: halvesOf(bound) });
  };
  g.add({
    name: "expert_scale",
    reads: [x, scale, expertOfBlock],
    writes: [out],
    flops,
    lower: () => scaled(x, out),
    backward: (gradients) => {
      const dOut = gradients.of(out)!;
      gradients.add(x, false, (dX) =>
        g.add({
          name: "expert_scale_input_gradient",
          reads: [dOut, scale, expertOfBlock],
          writes: [dX],
          flops,
          lower: () => scaled(dOut, dX),
        }),
      );
      gradients.add(scale, false, (dScale) => {
        const slots = trainableSlots(scale);
        const trainableExperts = g.constant("trainable_experts", Uint32Array.from(slots));
        g.add({
          name: "expert_scale_gradient",
          reads: [x, dOut, expertOffset, expertCount, trainableExperts],
          writes: [dScale],
          parameter: scale.parameter,
          flops: (2 * flops * slots.length) / experts,
          lower: () => {
            const bound = { x, dOut, expertOffset, expertCount, trainableExperts, out: dScale };
            return expertScaleGradient(bound, { slots: slots.length, width, halves: halvesOf(bound) });
          },
        });
      });
    },
  });
  return out;
}
