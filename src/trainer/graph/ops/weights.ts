// Weights as products read them. Products of mixed precision round their operands to f16 in any case; a weight that many
// rows are multiplied by is rounded once, in a copy, so that every tile of the product loads half the bytes. Copies are made
// an arena at a time, anew by each program that needs them: two bytes of each weight while they last, and no state to keep
// right.

import { rounded } from "../../../kernels/elementwise.ts";
import { elements, type Graph, type Tensor, whole } from "../graph.ts";

/** A copy moves as much as some tens of rows do: it is made for at least so many. */
const FEWEST_ROWS = 256;

/**
 * What a product of `rows` rows reads for a weight [..., n, k]: the weight, or in mixed precision an f16 copy of it. The
 * gradient is the weight's in any case.
 */
export function weightOperand(g: Graph, weight: Tensor, rows: number): Tensor {
  const eights = weight.shape.slice(-2).every((width) => width % 8 === 0);
  if (g.operands === "f32" || !eights || rows < FEWEST_ROWS) return weight;
  const arena = roundedCopy(g, whole(weight));
  if (!weight.part) return arena;
  const made = g.roundedCopies.get(weight);
  if (made) return made;
  const copy = g.tensor({ name: `${weight.name}.rounded`, shape: weight.shape, role: "activation", dtype: "f16" });
  copy.part = { of: arena, offset: weight.part.offset / 2 };
  g.roundedCopies.set(weight, copy);
  return copy;
}

/** The f16 copy of a weight or an arena that is part of nothing. */
function roundedCopy(g: Graph, x: Tensor): Tensor {
  const made = g.roundedCopies.get(x);
  if (made) return made;
  const out = g.tensor({ name: `${x.name}.rounded`, shape: x.shape, role: "activation", dtype: "f16" });
  g.roundedCopies.set(x, out);
  const bound = { x, out };
  g.add({
    name: "rounded_weights",
    reads: [x],
    writes: [out],
    lower: () => rounded(bound, { count: elements(x.shape), halves: ["out"] }),
  });
  return out;
}
