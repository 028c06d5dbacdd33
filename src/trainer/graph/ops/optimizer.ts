// The optimizer as the tail of the training graph: squares of every gradient, one norm, one update per parameter.
//
// State exists for trainable entries only: for a stack of experts of which some train, gradient and state are compact
// over the trainable ones and the update walks their list. What state there is depends on the algorithm; whoever keeps
// it (run/optimizer_state.ts) knows only names and sizes.

import { adamw } from "../../../kernels/adamw.ts";
import { gradientNorm, partialsOfCount, sumOfSquares } from "../../../kernels/reduce.ts";
import type { OptimizerAlgorithm } from "../../types.ts";
import { elements, type Graph, type Tensor } from "../graph.ts";

/** One of the tensors an algorithm remembers of a parameter. */
export interface StateTensor {
  /** `m` and `v` of AdamW. */
  readonly name: string;
  /** [slots, ...]: compact over the trainable entries. */
  readonly tensor: Tensor;
}

export interface OptimizerEntry {
  readonly parameter: Tensor;
  readonly gradient: Tensor;
  readonly state: readonly StateTensor[];
  /** Trainable entries of the expert axis; [0] for a parameter that has none. */
  readonly slots: readonly number[];
  /** Index of the first of `slots.length` rows in `scalars`. */
  readonly scalarOffset: number;
}

export interface OptimizerNodes {
  readonly entries: readonly OptimizerEntry[];
  /** [rows, 4] f32, uploaded each step: learning rate, 1/(1-beta1^t), 1/(1-beta2^t), weight decay. */
  readonly scalars: Tensor;
  /** [2] f32: global norm of the gradient before clipping, clip factor. */
  readonly norm: Tensor;
}

/** Appends the update of every parameter in `gradients` (by name, see `differentiate`). */
export function optimizerNodes(
  g: Graph,
  gradients: ReadonlyMap<string, Tensor>,
  step: Tensor,
  algorithm: OptimizerAlgorithm,
): OptimizerNodes {
  if (algorithm.kind !== "adamw") throw new Error(`${algorithm.kind} has no kernels`);
  g.phase = "optimizer";
  const norm = normNodes(g, [...gradients.values()], step);
  const entries: OptimizerEntry[] = [];
  let rows = 0;
  for (const [name, gradient] of gradients) {
    const parameter = g.parameters.get(name)!;
    const spec = parameter.parameter!;
    const slots = parameter.slots ?? Array.from({ length: spec.experts ?? 1 }, (_, e) => e);
    const state = ["m", "v"].map((moment) => ({
      name: moment,
      tensor: g.tensor({
        name: `${moment}.${name}`,
        shape: gradient.shape,
        role: "optimizer",
        parameter: spec,
        slots,
      }),
    }));
    entries.push({ parameter, gradient, state, slots, scalarOffset: rows });
    rows += slots.length;
  }
  const scalars = g.input("optimizer_scalars", [rows, 4], "f32");
  for (const { parameter, gradient, state, slots, scalarOffset } of entries) {
    const slotList = g.constant(`slots.${parameter.name}`, Uint32Array.from(slots));
    const dims = {
      slotCount: slots.length,
      sliceSize: elements(gradient.shape) / slots.length,
      scalarOffset,
      beta1: algorithm.beta1,
      beta2: algorithm.beta2,
      epsilon: algorithm.epsilon,
    };
    const [m, v] = state.map((s) => s.tensor);
    g.add({
      name: "adamw",
      reads: [parameter, gradient, m, v, slotList, scalars, norm],
      writes: [parameter, m, v],
      parameter: parameter.parameter,
      flops: 12 * elements(gradient.shape),
      lower: (target) => adamw({ parameter, gradient, m, v, slots: slotList, scalars, clip: norm }, dims, target),
    });
  }
  return { entries, scalars, norm };
}

/** A row of `scalars` for the `t`-th update (from 1) of an entry. */
export function optimizerScalars(algorithm: OptimizerAlgorithm, learningRate: number, t: number): number[] {
  if (algorithm.kind !== "adamw") throw new Error(`${algorithm.kind} has no kernels`);
  const { beta1, beta2, weightDecay } = algorithm;
  return [learningRate, 1 / (1 - beta1 ** t), 1 / (1 - beta2 ** t), weightDecay];
}

/** The global norm of all gradients and what to multiply them with. */
function normNodes(g: Graph, gradients: readonly Tensor[], step: Tensor): Tensor {
  const partialCount = gradients.reduce((n, gradient) => n + partialsOfCount(elements(gradient.shape)), 0);
  const partials = g.activation("gradient_square_partials", [partialCount]);
  let partialOffset = 0;
  for (const gradient of gradients) {
    const count = elements(gradient.shape);
    const dims = { count, partialOffset, partialCount: partialsOfCount(count) };
    g.add({
      name: "sum_of_squares",
      reads: [gradient],
      writes: [partials],
      flops: 2 * count,
      lower: () => sumOfSquares({ x: gradient, partials }, dims),
    });
    partialOffset += dims.partialCount;
  }
  const norm = g.activation("gradient_norm", [2]);
  g.keep(norm);
  g.add({
    name: "gradient_norm",
    reads: [partials, step],
    writes: [norm],
    lower: () => gradientNorm({ partials, step, out: norm }, { partialCount }),
  });
  return norm;
}
