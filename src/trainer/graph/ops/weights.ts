// Weights as products read them. Products of mixed precision round their operands to f16 in any case; a weight that many
// rows are multiplied by is rounded before, in a copy, so that every tile of the product loads half the bytes. Copies are of
// whole arenas.
//
// In a run that trains, copies last: two bytes of each weight. `DeviceMemory.prepare` rounds them when programs are
// installed, and the optimizer writes them with the weights it updates (ops/optimizer.ts): nothing else writes a weight. All
// programs of the run read the same copies. Elsewhere a program makes its copies anew, while they last in its slots, and for
// many rows only.

import { rounded } from "../../../kernels/elementwise.ts";
import type { Command } from "../../../kernels/kernel.ts";
import { elements, type Graph, type Tensor, whole } from "../graph.ts";

/** A copy moves as much as some tens of rows do: one that does not last is made for at least so many. */
const FEWEST_ROWS = 256;

/**
 * What a product of `rows` rows reads for a weight [..., n, k]: the weight, or in mixed precision an f16 copy of it. The
 * gradient is the weight's in any case.
 */
export function weightOperand(g: Graph, weight: Tensor, rows: number): Tensor {
  const eights = weight.shape.slice(-2).every((width) => width % 8 === 0);
  // Lasting copies serve any number of rows: which there are, and are kept up, must not depend on a batch's shape.
  if (g.operands === "f32" || !eights || (!g.copiesLast && rows < FEWEST_ROWS)) return weight;
  const arena = roundedCopy(g, whole(weight));
  if (!weight.part) return arena;
  const made = g.roundedCopies.get(weight);
  if (made) return made;
  const copy = g.tensor({ name: `${weight.name}.rounded`, shape: weight.shape, role: arena.role, dtype: "f16" });
  copy.part = { of: arena, offset: weight.part.offset / 2 };
  g.roundedCopies.set(weight, copy);
  return copy;
}

/** The f16 copy of a weight or an arena that is part of nothing. */
function roundedCopy(g: Graph, x: Tensor): Tensor {
  const made = g.roundedCopies.get(x);
  if (made) return made;
  const role = g.copiesLast ? "copy" : "activation";
  const out = g.tensor({ name: `${x.name}.rounded`, shape: x.shape, role, dtype: "f16" });
  g.roundedCopies.set(x, out);
  if (role === "activation") roundWeights(g, x, out);
  return out;
}

/** Appends the rounding of a weight or an arena into its copy. */
export function roundWeights(g: Graph, x: Tensor, out: Tensor): void {
  g.add({ name: "rounded_weights", reads: [x], writes: [out], lower: () => roundingOf(x, out) });
}

const roundingOf = (x: Tensor, out: Tensor): Command<Tensor>[] =>
  rounded({ x, out }, { count: elements(x.shape), halves: ["out"] });

/** The lasting copy of an arena, where there is one. */
export function lastingCopy(g: Graph, arena: Tensor): Tensor | undefined {
  const copy = g.roundedCopies.get(arena);
  return copy?.role === "copy" ? copy : undefined;
}

/** What makes all lasting copies of these graphs, each once. */
export function roundingOfCopies(graphs: readonly Graph[]): Command<Tensor>[] {
  const commands = new Map<string, Command<Tensor>[]>();
  for (const g of graphs)
    for (const [x, copy] of g.roundedCopies)
      if (copy.role === "copy" && !copy.part) commands.set(copy.name, roundingOf(x, copy));
  return [...commands.values()].flat();
}
