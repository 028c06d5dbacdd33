// The optimizer as the tail of the training graph: squares of the gradients, one norm, the update. Each is a few dispatches
// for an arena, however many parameters lie in it.
//
// State exists for trainable entries only: for a stack of experts of which some train, gradient and state are compact
// over the trainable ones and the update walks their list. What state there is depends on the algorithm; whoever keeps
// it (run/optimizer_state.ts) knows only names and sizes.

import { adafactor, adafactorFactored } from "../../../kernels/adafactor.ts";
import { type AdafactorSlice, adafactorTable } from "../../../kernels/adafactor_slices.ts";
import { adamw } from "../../../kernels/adamw.ts";
import type { Command } from "../../../kernels/kernel.ts";
import { gradientNorm, partialsOfCount, sumOfSquares } from "../../../kernels/reduce.ts";
import { sgd } from "../../../kernels/sgd.ts";
import { type Slice, sliceTables } from "../../../kernels/slices.ts";
import { keyShape } from "../../model/parameters.ts";
import type { Adafactor, AdamW, OptimizerAlgorithm, Sgd } from "../../types.ts";
import { arenaOf, gapsOf } from "../arenas.ts";
import { elements, type Graph, type Tensor, type TensorRole, trainableSlots, whole } from "../graph.ts";
import { lastingCopy, roundWeights } from "./weights.ts";

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

/** The entries whose parameters lie in one arena, and what an update binds. */
interface ArenaUpdate {
  readonly entries: readonly OptimizerEntry[];
  readonly parameter: Tensor;
  readonly gradient: Tensor;
  /** The f16 copy of the parameters that must follow them, where there is one. */
  readonly copy?: Tensor;
  /** Arenas of the state, by the names of the state tensors. */
  readonly state: ReadonlyMap<string, Tensor>;
}

/** What an update reads besides its arenas. */
interface Shared {
  readonly scalars: Tensor;
  readonly clip: Tensor;
}

/**
 * Appends the update of every parameter in `gradients` (by name, see `differentiate`). Gradients and state are put into
 * arenas here, one of each kind for an arena of parameters.
 */
export function optimizerNodes(
  g: Graph,
  gradients: ReadonlyMap<string, Tensor>,
  step: Tensor,
  algorithm: OptimizerAlgorithm,
): OptimizerNodes {
  g.phase = "optimizer";
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
  const updates = arenaUpdates(g, entries);
  const clip = normNodes(
    g,
    updates.map((update) => update.gradient),
    step,
  );
  const scalars = g.input("optimizer_scalars", [rows, 4], "f32");
  for (const update of updates) {
    if (algorithm.kind === "adamw") adamwNodes(g, update, { scalars, clip }, algorithm);
    else {
      if (algorithm.kind === "adafactor") adafactorNodes(g, update, { scalars, clip }, algorithm);
      else sgdNodes(g, update, { scalars, clip }, algorithm);
      if (update.copy) roundWeights(g, update.parameter, update.copy);
    }
  }
  return { entries, scalars, norm: clip };
}

function arenaUpdates(g: Graph, entries: readonly OptimizerEntry[]): ArenaUpdate[] {
  const arenas = new Set(entries.map(({ parameter }) => whole(parameter)));
  return [...arenas].map((parameter, i) => {
    const own = entries.filter((entry) => whole(entry.parameter) === parameter);
    const gather = (name: string, role: TensorRole, members: readonly Tensor[]) =>
      arenaOf(g, `${name} ${i}`, role, members);
    const kinds = new Set(own.flatMap(({ state }) => state.map(({ name }) => name)));
    const tensorsOf = (kind: string) => own.flatMap(({ state }) => state.filter(({ name }) => name === kind));
    const state = [...kinds].map((kind): [string, Tensor] => {
      const tensors = tensorsOf(kind).map(({ tensor }) => tensor);
      return [kind, gather(kind, "optimizer", tensors)];
    });
    const gradients = own.map(({ gradient }) => gradient);
    const gradient = gather("gradients", gradients[0].role, gradients);
    clearGaps(g, gradient, gradients);
    return { entries: own, parameter, gradient, copy: lastingCopy(g, parameter), state: new Map(state) };
  });
}

/**
 * The norm sums whole arenas: what lies between gradients must be 0, whatever their memory held before. That of sums holds
 * nothing else, ever.
 */
function clearGaps(g: Graph, arena: Tensor, members: readonly Tensor[]): void {
  if (arena.role === "gradient_sum") return;
  const gaps = gapsOf(g, arena, members);
  if (gaps.length === 0) return;
  g.add({ name: "clear_gaps", reads: [], writes: gaps, lower: () => gaps.map((gap) => ({ clear: gap })) });
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

/** Where a member of an arena begins, in f32 elements. */
const start = (t: Tensor): number => (t.part?.offset ?? 0) / 4;

const sliceSize = ({ parameter }: OptimizerEntry): number => elements(keyShape(parameter.parameter!));

/** The trainable slices of an arena; m and v, where there are some, are laid out as the gradient. */
const slicesOf = ({ entries }: ArenaUpdate): Slice[] =>
  entries.flatMap((entry) => {
    const size = sliceSize(entry);
    return entry.slots.map((slot, i) => ({
      parameter: start(entry.parameter) + slot * size,
      gradient: start(entry.gradient) + i * size,
      size,
      scalar: entry.scalarOffset + i,
    }));
  });

function adamwNodes(g: Graph, update: ArenaUpdate, shared: Shared, settings: AdamW): void {
  const { parameter, gradient, state } = update;
  const [m, v] = [state.get("m")!, state.get("v")!];
  for (const table of sliceTables(slicesOf(update))) {
    const slices = g.constant(`slices ${table.value}`, table.words);
    // A weight that products read in f16 is whole vec4f; nobody reads the copy of what is not.
    const copy = table.value === "vec4f" ? update.copy : undefined;
    g.add({
      name: "adamw",
      reads: [parameter, gradient, m, v, slices, ...Object.values(shared)],
      writes: [parameter, m, v, copy],
      flops: 12 * table.elements,
      lower: () => adamw({ parameter, gradient, m, v, slices, ...shared, copy }, table, settings),
    });
  }
}

function sgdNodes(g: Graph, update: ArenaUpdate, shared: Shared, settings: Sgd): void {
  const { parameter, gradient, state } = update;
  const m = state.get("m");
  for (const table of sliceTables(slicesOf(update))) {
    const slices = g.constant(`slices ${table.value}`, table.words);
    g.add({
      name: "sgd",
      reads: [parameter, gradient, m, slices, ...Object.values(shared)],
      writes: [parameter, m],
      flops: (m ? 6 : 4) * table.elements,
      lower: () => sgd({ parameter, gradient, m, slices, ...shared }, table, settings),
    });
  }
}

/** The factored tensors of an arena in one go, the others in a second. */
function adafactorNodes(g: Graph, update: ArenaUpdate, shared: Shared, algorithm: Adafactor): void {
  const { parameter, gradient, entries, state } = update;
  for (const factored of [true, false]) {
    const members = entries.filter((e) => factors(algorithm, keyShape(e.parameter.parameter!)) === factored);
    if (members.length === 0) continue;
    const table = adafactorTable(members.map((entry) => adafactorSlices(entry, factored)));
    const slices = g.constant("adafactor slices", table.slices);
    const tensors = g.constant("adafactor tensors", table.tensors);
    const scratch = (name: keyof typeof table.scratch) => g.activation(`adafactor ${name}`, [table.scratch[name]]);
    const [partials, steps] = [scratch("partials"), scratch("steps")];
    const common = { parameter, gradient, slices, tensors, ...shared, partials, steps };
    const node = (moments: readonly Tensor[], more: readonly Tensor[], lower: () => Command<Tensor>[]) =>
      g.add({
        name: "adafactor",
        reads: [parameter, gradient, ...moments, slices, tensors, ...Object.values(shared)],
        writes: [parameter, ...moments],
        scratch: [partials, steps, ...more],
        flops: 20 * members.reduce((n, entry) => n + elements(entry.gradient.shape), 0),
        lower,
      });
    if (factored) {
      const [row, column] = [state.get("row")!, state.get("column")!];
      const [rowMean, columnSums] = [scratch("rowMean"), scratch("columnSums")];
      const buffers = { ...common, row, column, rowMean, columnSums };
      node([row, column], [rowMean, columnSums], () => adafactorFactored(buffers, table, algorithm));
    } else {
      const v = state.get("v")!;
      node([v], [], () => adafactor({ ...common, v }, table, algorithm));
    }
  }
}

function adafactorSlices(entry: OptimizerEntry, factored: boolean): AdafactorSlice[] {
  const { parameter, gradient, state, slots, scalarOffset } = entry;
  const size = sliceSize(entry);
  const [rows, columns] = factored ? keyShape(parameter.parameter!) : [1, size];
  const [row, column] = state.map(({ tensor }) => start(tensor));
  return slots.map((slot, i) => ({
    parameter: start(parameter) + slot * size,
    gradient: start(gradient) + i * size,
    rows,
    columns,
    row: row + i * (factored ? rows : size),
    column: factored ? column + i * columns : 0,
    scalar: scalarOffset + i,
  }));
}

/** The global norm of all gradients, which lie in `arenas`, and what to multiply them with. */
function normNodes(g: Graph, arenas: readonly Tensor[], step: Tensor): Tensor {
  const partialCount = arenas.reduce((n, arena) => n + partialsOfCount(elements(arena.shape)), 0);
  const partials = g.activation("gradient_square_partials", [partialCount]);
  let first = 0;
  for (const x of arenas) {
    const count = elements(x.shape);
    const dims = { count, partialOffset: first };
    g.add({
      name: "sum_of_squares",
      reads: [x],
      writes: [partials],
      flops: 2 * count,
      lower: () => sumOfSquares({ x, partials }, dims),
    });
    first += partialsOfCount(count);
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
