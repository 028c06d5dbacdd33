// Counting which experts a router chooses together, for the metrics.

import { coActivation, expertPairs } from "../../../kernels/co_activation.ts";
import type { Graph, Tensor } from "../graph.ts";
import type { Routing } from "./routing.ts";

/** The log keeps the counts of every step for ever; beyond so many experts, what is read back would outweigh the rest. */
const MOST_EXPERTS = 64;

/**
 * Counts [pairs] u32 of a batch, chosen whether used or not; undefined where no token has two experts, or pairs are too
 * many.
 */
export function countCoActivation(g: Graph, { chosenIds, topK, experts }: Routing): Tensor | undefined {
  if (topK === 1 || experts > MOST_EXPERTS) return undefined;
  const [tokens] = chosenIds.shape;
  const counts = g.indices(`${chosenIds.name}_pairs`, [expertPairs(experts)]);
  g.keep(counts);
  g.add({
    name: "co_activation",
    reads: [chosenIds],
    writes: [counts],
    flops: (tokens * topK * (topK + 1)) / 2,
    lower: () => coActivation({ expertIds: chosenIds, counts }, { tokens, topK, experts }),
  });
  return counts;
}
