// The findings this project began with, as claims that a study can test: what each compares, and the rule that decides it.
// They are about sparse models: a model without routers counts only where a claim sets it against a sparse one.

import type { CellResult, CellSettings } from "./results.ts";
import type { RULES } from "./rules.ts";
import {
  type Axis,
  axisValues,
  type Cells,
  minus,
  restrict,
  type SeedDifferences,
  seedDifferences,
} from "./statistics.ts";

/** What a claim looks at, or why there is nothing to look at. */
type Measured =
  | {
      readonly differences: SeedDifferences;
      /** What was compared, where the claim's words leave it open: `8 − 128`. */
      readonly compared?: string;
    }
  | { readonly missing: string };

export interface Claim {
  readonly says: string;
  /** What is subtracted from what. */
  readonly difference: string;
  /** Of the difference: points of the score, or nats per target token. Default: points. */
  readonly unit?: "points" | "nats";
  readonly rule: keyof typeof RULES;
  readonly measure: (cells: Cells) => Measured;
}

const modelsThat = ({ results }: Cells, have: (result: CellResult) => boolean): Set<string> =>
  new Set(results.filter(have).map((r) => r.settings.model));
const isDense = (result: CellResult): boolean => result.routing.length === 0;

/** The cells of models that are not known to be dense. */
function sparseOnly(cells: Cells): Cells {
  const dense = modelsThat(cells, isDense);
  return restrict(cells, ({ model }) => !dense.has(model));
}

/** A strategy against `all`. */
const strategy = (value: string) => ({
  difference: `${value} − all`,
  measure: (all: Cells): Measured => {
    const cells = sparseOnly(all);
    const known = axisValues(cells.planned, "strategy");
    const missing = [value, "all"].filter((v) => !known.includes(v));
    return missing.length > 0
      ? { missing: `no cell of strategy ${missing.join(" and ")}` }
      : { differences: seedDifferences(cells, "strategy", value, "all") };
  },
});

interface Extremes {
  readonly axis: Axis;
  readonly what: string;
  /** Which end is expected to be better. */
  readonly better: "lowest" | "highest";
  readonly size?: (value: string) => number;
}

/** The ends of an axis, the one expected to be better first. */
function endsOf(cells: Cells, { axis, what, better, size = Number }: Extremes): readonly [string, string] | string {
  const values = axisValues(cells.planned, axis)
    .filter((v) => Number.isFinite(size(v)))
    .sort((a, b) => size(a) - size(b));
  const [low, high] = [values[0], values[values.length - 1]];
  if (values.length < 2 || size(low) === size(high)) return `no cells of two different ${what}`;
  return better === "lowest" ? [low, high] : [high, low];
}

const extremes = (which: Extremes) => (all: Cells) => {
  const cells = sparseOnly(all);
  const ends = endsOf(cells, which);
  if (typeof ends === "string") return { missing: ends };
  return { differences: seedDifferences(cells, which.axis, ...ends), compared: ends.join(" − ") };
};

/** The one sparse and the one dense model. */
function twins(cells: Cells): readonly [string, string] | string {
  const dense = [...modelsThat(cells, isDense)];
  const sparse = [...modelsThat(cells, (r) => !isDense(r))];
  return sparse.length === 1 && dense.length === 1
    ? [sparse[0], dense[0]]
    : `it takes results of one sparse and one dense model; there are ${sparse.length} and ${dense.length}`;
}

/** How much more the sparse model gains from one end of an axis than the dense one. */
const moreThanDense = (which: Extremes) => (cells: Cells) => {
  const models = twins(cells);
  if (typeof models === "string") return { missing: models };
  const ends = endsOf(cells, which);
  if (typeof ends === "string") return { missing: ends };
  const [sparse, dense] = models.map((name) =>
    seedDifferences(
      restrict(cells, ({ model }) => model === name),
      which.axis,
      ...ends,
    ),
  );
  return { differences: minus(sparse, dense), compared: `${ends.join(" − ")}; ${models.join(" − ")}` };
};

/** Validation loss minus training loss after the last step; NaN where one of them was no number. */
function finalGap({ curve }: CellResult): number {
  const { validationLoss, trainLoss } = curve[curve.length - 1] ?? {};
  return Number.isFinite(validationLoss) && Number.isFinite(trainLoss) ? validationLoss - trainLoss : Number.NaN;
}

/** The task with the fewest training examples, or a task whose number of examples no result tells. */
function smallestTask({ planned, results }: Cells): { readonly smallest: string } | { readonly unknown: string } {
  const sizes = new Map(results.map((r) => [r.settings.task, r.trainExamples]));
  const tasks = axisValues(planned, "task");
  const unknown = tasks.find((task) => !sizes.has(task));
  return unknown === undefined
    ? { smallest: tasks.reduce((one, other) => (sizes.get(other)! < sizes.get(one)! ? other : one)) }
    : { unknown };
}

function overfitting(cells: Cells): Measured {
  const models = twins(cells);
  if (typeof models === "string") return { missing: models };
  const found = smallestTask(cells);
  if ("unknown" in found) return { missing: `it takes results of every task; there are none of ${found.unknown}` };
  const { smallest } = found;
  const everything = ({ strategy, task }: CellSettings) => strategy === "all" && task === smallest;
  const differences = seedDifferences(restrict(cells, everything), "model", ...models, finalGap);
  return differences.size === 0
    ? { missing: "no cells of strategy all for both" }
    : { differences, compared: `${models.join(" − ")} on ${smallest}` };
}

/** `experts-8` has 8 experts: the last whole number in a model's name. */
export const expertCount = (model: string): number => Number(model.match(/\d+(?!.*\d)/)?.[0] ?? NaN);

const EXPERTS: Extremes = { axis: "model", what: "expert counts", better: "lowest", size: expertCount };
const BATCHES: Extremes = { axis: "batchSize", what: "batch sizes", better: "lowest" };
const RATES: Extremes = { axis: "learningRate", what: "learning rates", better: "highest" };

export const CLAIMS = {
  all_equals_non_moe: {
    says: "Training everything but experts and routers (non_moe) is as good as training everything (all).",
    rule: "equal",
    ...strategy("non_moe"),
  },
  attention_slightly_worse: {
    says: "Training attention alone is slightly worse than training everything.",
    rule: "slightlyWorse",
    ...strategy("attention"),
  },
  moe_clearly_worse: {
    says: "Training experts and routers alone (moe) is clearly worse than training everything.",
    rule: "clearlyWorse",
    ...strategy("moe"),
  },
  ffn_better: {
    says: "Training the dense feed-forward layers alone (ffn) is better than training everything.",
    rule: "better",
    ...strategy("ffn"),
  },
  fewer_experts_better: {
    says: "A model of fewer experts fine-tunes better (the count is the last number in the model's name).",
    difference: "fewest − most experts",
    rule: "better",
    measure: extremes(EXPERTS),
  },
  smaller_batch_better: {
    says: "Sparse models fine-tune better with smaller batches.",
    difference: "smallest − largest batch size",
    rule: "better",
    measure: extremes(BATCHES),
  },
  higher_lr_better: {
    says: "Sparse models fine-tune better with higher learning rates.",
    difference: "highest − lowest learning rate",
    rule: "better",
    measure: extremes(RATES),
  },
  sparse_overfits_more: {
    says: "A sparse model overfits a small task more than a dense one (the task with the fewest training examples, everything trained).",
    difference: "sparse − dense, validation loss minus training loss after the last step",
    unit: "nats",
    rule: "greater",
    measure: overfitting,
  },
  smaller_batch_for_sparse: {
    says: "Smaller batches suit a sparse model better than they suit a dense one.",
    difference: "gain of the smallest over the largest batch size, sparse − dense",
    rule: "better",
    measure: moreThanDense(BATCHES),
  },
  higher_lr_for_sparse: {
    says: "Higher learning rates suit a sparse model better than they suit a dense one.",
    difference: "gain of the highest over the lowest learning rate, sparse − dense",
    rule: "better",
    measure: moreThanDense(RATES),
  },
} as const satisfies Readonly<Record<string, Claim>>;

export type ClaimId = keyof typeof CLAIMS;
/** What a study file may name under `claims`. */
export const CLAIM_IDS = Object.keys(CLAIMS) as readonly ClaimId[];
