// The optimizer as the tail of the training graph: squares of every gradient, one norm, one AdamW update per parameter.
//
// State exists for trainable entries only: for a stack of experts of which some train, gradient, m and v are compact
// over the trainable ones and the update walks their list.

import { adamw } from "../../../kernels/adamw.ts";
import { gradientNorm, partialsOfCount, sumOfSquares } from "../../../kernels/reduce.ts";
import { elements, type Graph, type Tensor } from "../graph.ts";

export interface AdamWEntry {
  readonly parameter: Tensor;
  readonly gradient: Tensor;
  readonly m: Tensor;
  readonly v: Tensor;
  /** Trainable entries of the expert axis; [0] for a parameter that has none. */
  readonly slots: readonly number[];
  /** Index of the first of `slots.length` rows in `scalars`. */
  readonly scalarOffset: number;
}

export interface AdamWNodes {
  readonly entries: readonly AdamWEntry[];
  /** [rows, 4] f32, uploaded each step: learning rate, 1/(1-beta1^t), 1/(1-beta2^t), weight decay. */
  readonly scalars: Tensor;
  /** [2] f32: global norm of the gradient before clipping, clip factor. */
  readonly norm: Tensor;
}

/** Appends the update of every parameter in `gradients` (by name, see `differentiate`). */
export function adamwNodes(
  g: Graph,
  gradients: ReadonlyMap<string, Tensor>,
  step: Tensor,
  options: { beta1: number; beta2: number; epsilon: number },
): AdamWNodes {
  g.phase = "optimizer";
  const sizes = [...gradients.values()].map((gradient) => elements(gradient.shape));
  const partialCount = sizes.reduce((n, size) => n + partialsOfCount(size), 0);
  const partials = g.activation("gradient_square_partials", [partialCount]);
  let partialOffset = 0;
  for (const gradient of gradients.values()) {
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

  const entries: AdamWEntry[] = [];
  let rows = 0;
  for (const [name, gradient] of gradients) {
    const parameter = g.parameters.get(name)!;
    const spec = parameter.parameter!;
    const slots = parameter.slots ?? Array.from({ length: spec.experts ?? 1 }, (_, e) => e);
    const state = (moment: string) =>
      g.tensor({ name: `${moment}.${name}`, shape: gradient.shape, role: "optimizer", parameter: spec, slots });
    entries.push({ parameter, gradient, m: state("m"), v: state("v"), slots, scalarOffset: rows });
    rows += slots.length;
  }
  const scalars = g.input("optimizer_scalars", [rows, 4], "f32");
  for (const { parameter, gradient, m, v, slots, scalarOffset } of entries) {
    const slotList = g.constant(`slots.${parameter.name}`, Uint32Array.from(slots));
    const dims = {
      slotCount: slots.length,
      sliceSize: elements(gradient.shape) / slots.length,
      scalarOffset,
      beta1: options.beta1,
      beta2: options.beta2,
      epsilon: options.epsilon,
    };
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
