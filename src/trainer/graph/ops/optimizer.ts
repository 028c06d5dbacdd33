// The optimizer as the tail of the training graph: squares of every gradient, one norm, one update per parameter.
//
// State exists for trainable entries only: for a stack of experts of which some train, gradient and state are compact
// over the trainable ones and the update walks their list. What state there is depends on the algorithm; whoever keeps
// it (run/optimizer_state.ts) knows only names and sizes.

import { adafactor, adafactorFactored, adafactorScratch } from "../../../kernels/adafactor.ts";
import { adamw } from "../../../kernels/adamw.ts";
import { gradientNorm, partialsOfCount, sumOfSquares } from "../../../kernels/reduce.ts";
import { sgd } from "../../../kernels/sgd.ts";
import { keyShape } from "../../model/parameters.ts";
import type { Adafactor, AdamW, OptimizerAlgorithm, Sgd } from "../../types.ts";
import { elements, type Graph, type Tensor, trainableSlots } from "../graph.ts";

/** One of the tensors an algorithm remembers of a parameter. */
export interface StateTensor {
  /** AdamW: `m`, `v`. Adafactor: `row`, `column`, or `v` where it is not factored. SGD: `m`, or none. */
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
  /** [rows, 4] f32, uploaded each step: {@link optimizerScalars} of every slot. */
  readonly scalars: Tensor;
  /** [3] f32: global norm of the gradient before clipping, clip factor, 1 where the norm is finite (else 0). */
  readonly norm: Tensor;
}

/** What an update reads besides the entry itself. */
interface Shared {
  readonly slots: Tensor;
  readonly scalars: Tensor;
  readonly clip: Tensor;
}

/** Appends the update of every parameter in `gradients` (by name, see `differentiate`). */
export function optimizerNodes(
  g: Graph,
  gradients: ReadonlyMap<string, Tensor>,
  step: Tensor,
  algorithm: OptimizerAlgorithm,
): OptimizerNodes {
  g.phase = "optimizer";
  const clip = normNodes(g, [...gradients.values()], step);
  const entries: OptimizerEntry[] = [];
  let rows = 0;
  for (const [name, gradient] of gradients) {
    const parameter = g.parameters.get(name)!;
    const spec = parameter.parameter!;
    const slots = trainableSlots(parameter);
    const declare = (kind: string, shape: readonly number[]) =>
      g.tensor({
        name: `${kind}.${name}`,
        shape: [slots.length, ...shape],
        role: "optimizer",
        parameter: spec,
        slots,
      });
    const state = stateShapes(algorithm, keyShape(spec)).map(([kind, shape]) => ({
      name: kind,
      tensor: declare(kind, shape),
    }));
    entries.push({ parameter, gradient, state, slots, scalarOffset: rows });
    rows += slots.length;
  }
  const scalars = g.input("optimizer_scalars", [rows, 4], "f32");
  for (const entry of entries) {
    const slots = g.constant(`slots.${entry.parameter.name}`, Uint32Array.from(entry.slots));
    const shared = { slots, scalars, clip };
    if (algorithm.kind === "adamw") adamwNode(g, entry, shared, algorithm);
    else if (algorithm.kind === "adafactor") adafactorNode(g, entry, shared, algorithm);
    else sgdNode(g, entry, shared, algorithm);
  }
  return { entries, scalars, norm: clip };
}

/** A row of `scalars` for the `t`-th update (from 1) of an entry, as the algorithm's kernels read it. */
export function optimizerScalars(algorithm: OptimizerAlgorithm, learningRate: number, t: number): number[] {
  switch (algorithm.kind) {
    case "adamw":
      return [learningRate, 1 / (1 - algorithm.beta1 ** t), 1 / (1 - algorithm.beta2 ** t), algorithm.weightDecay];
    case "adafactor": {
      const fresh = t ** -algorithm.decayRate;
      return [learningRate, 1 - fresh, fresh, algorithm.weightDecay];
    }
    case "sgd":
      return [learningRate, algorithm.weightDecay, 0, 0];
  }
}

/** Adafactor keeps second moments of rows and columns of a matrix whose dimensions are both large enough. */
const factors = ({ minDimensionToFactor }: Adafactor, shape: readonly number[]): boolean =>
  shape.length === 2 && Math.min(...shape) >= minDimensionToFactor;

/** Names and shapes of what is remembered of one slice (an expert, or a whole parameter) of `shape`. */
function stateShapes(algorithm: OptimizerAlgorithm, shape: readonly number[]): [string, readonly number[]][] {
  switch (algorithm.kind) {
    case "adamw":
      return [
        ["m", shape],
        ["v", shape],
      ];
    case "adafactor":
      if (!factors(algorithm, shape)) return [["v", shape]];
      return [
        ["row", [shape[0]]],
        ["column", [shape[1]]],
      ];
    case "sgd":
      return algorithm.momentum > 0 ? [["m", shape]] : [];
  }
}

const dimensions = ({ gradient, slots, scalarOffset }: OptimizerEntry) => ({
  slotCount: slots.length,
  sliceSize: elements(gradient.shape) / slots.length,
  scalarOffset,
});

function adamwNode(g: Graph, entry: OptimizerEntry, shared: Shared, { beta1, beta2, epsilon }: AdamW): void {
  const { parameter, gradient, state } = entry;
  const [m, v] = state.map((s) => s.tensor);
  const dims = { ...dimensions(entry), beta1, beta2, epsilon };
  g.add({
    name: "adamw",
    reads: [parameter, gradient, m, v, ...Object.values(shared)],
    writes: [parameter, m, v],
    parameter: parameter.parameter,
    flops: 12 * elements(gradient.shape),
    lower: (target) => adamw({ parameter, gradient, m, v, ...shared }, dims, target),
  });
}

function sgdNode(g: Graph, entry: OptimizerEntry, shared: Shared, { momentum }: Sgd): void {
  const { parameter, gradient, state } = entry;
  const m = state.at(0)?.tensor;
  const dims = { ...dimensions(entry), momentum };
  g.add({
    name: "sgd",
    reads: [parameter, gradient, m, ...Object.values(shared)],
    writes: [parameter, m],
    parameter: parameter.parameter,
    flops: (m ? 6 : 4) * elements(gradient.shape),
    lower: (target) => sgd({ parameter, gradient, m, ...shared }, dims, target),
  });
}

function adafactorNode(g: Graph, entry: OptimizerEntry, shared: Shared, algorithm: Adafactor): void {
  const { parameter, gradient, state } = entry;
  const { slotCount, sliceSize, scalarOffset } = dimensions(entry);
  const shape = keyShape(parameter.parameter!);
  const factored = factors(algorithm, shape);
  const [rows, columns] = factored ? shape : [1, sliceSize];
  const { clipThreshold, epsilon, minParameterScale } = algorithm;
  const dims = { slotCount, rows, columns, scalarOffset, clipThreshold, epsilon, minParameterScale };
  const sizes = adafactorScratch(dims);
  const scratch = (use: string, size: number) => g.activation(`${use}.${parameter.name}`, [size]);
  const partials = scratch("adafactor_partials", sizes.partials);
  const steps = scratch("adafactor_steps", sizes.steps);
  const rowMean = factored ? scratch("adafactor_row_mean", sizes.rowMean) : undefined;
  const columnSums = factored ? scratch("adafactor_column_sums", sizes.columnSums) : undefined;
  const common = { parameter, gradient, ...shared, partials, steps };
  const [first, second] = state.map((s) => s.tensor);
  g.add({
    name: "adafactor",
    reads: [parameter, gradient, first, second, ...Object.values(shared)],
    writes: [parameter, first, second],
    scratch: [partials, steps, rowMean, columnSums].filter((t) => t !== undefined),
    parameter: parameter.parameter,
    flops: 20 * elements(gradient.shape),
    lower: () =>
      rowMean && columnSums
        ? adafactorFactored({ ...common, row: first, column: second, rowMean, columnSums }, dims)
        : adafactor({ ...common, v: first }, dims),
  });
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
  const norm = g.activation("gradient_norm", [3]);
  g.keep(norm);
  g.add({
    name: "gradient_norm",
    reads: [partials, step],
    writes: [norm],
    lower: () => gradientNorm({ partials, step, out: norm }, { partialCount }),
  });
  return norm;
}
