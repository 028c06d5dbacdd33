// Multiplicative noise on the router's copy of its input (Switch Transformers, section 2.4), training only.

import { jitter as jitterKernel } from "../../../kernels/jitter.ts";
import { elements, type Graph, halvesOf, type Tensor } from "../graph.ts";

/** x · U[1 - epsilon, 1 + epsilon], element by element; x itself when epsilon is 0. */
export function jitter(g: Graph, x: Tensor, epsilon: number, step: Tensor): Tensor {
  if (epsilon === 0) return x;
  const dims = { count: elements(x.shape), epsilon, use: g.nextUse() };
  const { requiresGradient, dtype } = x;
  const out = g.tensor({ name: `${x.name}_jittered`, shape: x.shape, role: "activation", dtype, requiresGradient });
  const jittered = (bound: { readonly x: Tensor; readonly step: Tensor; readonly out: Tensor }) =>
    jitterKernel(bound, { ...dims, halves: halvesOf(bound) });
  g.add({
    name: "jitter",
    reads: [x, step],
    writes: [out],
    lower: () => jittered({ x, step, out }),
    backward: (gradients) => {
      const dOut = gradients.of(out)!;
      gradients.add(x, false, (dX) =>
        g.add({
          name: "jitter_gradient",
          reads: [dOut, step],
          writes: [dX],
          lower: () => jittered({ x: dOut, step, out: dX }),
        }),
      );
    },
  });
  return out;
}
