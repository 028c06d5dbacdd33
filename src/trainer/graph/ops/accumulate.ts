// Gradient accumulation: several batches send their gradients into one sum before the optimizer steps. The sums are the
// gradients the optimizer reads; a batch's own become activations, which share slots and die at once.

import { addInto } from "../../../kernels/elementwise.ts";
import { gradientTensor } from "../autodiff.ts";
import { elements, type Graph, type Tensor } from "../graph.ts";

/** Sums of `gradients`, by parameter name. Whoever runs the program clears them before a step's first batch. */
export function accumulateGradients(g: Graph, gradients: ReadonlyMap<string, Tensor>): Map<string, Tensor> {
  const sums = new Map<string, Tensor>();
  for (const [name, gradient] of gradients) {
    const sum = gradientTensor(g, g.parameters.get(name)!);
    sum.role = "gradient_sum";
    gradient.role = "activation";
    g.add({
      name: "accumulate_gradient",
      reads: [gradient, sum],
      writes: [sum],
      parameter: gradient.parameter,
      flops: elements(gradient.shape),
      lower: () => addInto({ x: gradient, out: sum }, { count: elements(gradient.shape) }),
    });
    sums.set(name, sum);
  }
  return sums;
}
