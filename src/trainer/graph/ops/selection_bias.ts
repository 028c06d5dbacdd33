// The selection bias of a router as graph nodes. Bias and load are inputs that a run's programs share and change; the host
// writes a bias only when a checkpoint has one.

import { countSelectionLoad, updateSelectionBias } from "../../../kernels/selection_bias.ts";
import type { Graph, Tensor } from "../graph.ts";

/** A bias that learns: both [experts], f32 and u32. */
export interface LearningBias {
  readonly bias: Tensor;
  /** Assignments to each expert since the last update. */
  readonly load: Tensor;
}

/** Adds a batch's assignments, demand [experts] u32, to the load that the next update looks at. */
export function countLoad(g: Graph, bias: Tensor, demand: Tensor): LearningBias {
  const [experts] = bias.shape;
  const load = g.input(`${bias.name}.load`, [experts], "u32");
  g.add({
    name: "selection_bias_count",
    reads: [demand, load],
    writes: [load],
    flops: experts,
    lower: () => countSelectionLoad({ demand, load }, { experts }),
  });
  return { bias, load };
}

/** Moves a bias by `rate` towards the mean load; norm as the optimizer's nodes make it. */
export function learnBias(g: Graph, { bias, load }: LearningBias, norm: Tensor, rate: number): void {
  const [experts] = bias.shape;
  g.add({
    name: "selection_bias_update",
    reads: [norm, bias, load],
    writes: [bias, load],
    flops: 3 * experts,
    lower: () => updateSelectionBias({ norm, load, bias }, { experts, rate }),
  });
}
