// Weights as products read them. Products of mixed precision round their operands to f16 in any case; a weight that many
// rows are multiplied by is rounded once, in a copy, so that every tile of the product loads half the bytes. The copy is
// made anew by each program that needs it: two bytes of each weight while it lasts, and no state to keep right.

import { rounded } from "../../../kernels/elementwise.ts";
import { elements, type Graph, type Tensor } from "../graph.ts";

/** A copy moves as much as some tens of rows do: it is made for at least so many. */
const FEWEST_ROWS = 256;

/**
 * What a product of `rows` rows reads for a weight [..., n, k]: the weight, or in mixed precision an f16 copy of it. The
 * gradient is the weight's in any case.
 */
export function weightOperand(g: Graph, weight: Tensor, rows: number): Tensor {
  const eights = weight.shape.slice(-2).every((width) => width % 8 === 0);
  if (g.operands === "f32" || !eights || rows < FEWEST_ROWS) return weight;
  const made = g.roundedWeights.get(weight);
  if (made) return made;
  const out = g.tensor({ name: `${weight.name}.rounded`, shape: weight.shape, role: "activation", dtype: "f16" });
  g.roundedWeights.set(weight, out);
  const bound = { x: weight, out };
  g.add({
    name: "rounded_weight",
    reads: [weight],
    writes: [out],
    lower: () => rounded(bound, { count: elements(weight.shape), halves: ["out"] }),
  });
  return out;
}
