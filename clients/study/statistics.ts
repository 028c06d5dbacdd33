// What a study's scores allow to say: means, bootstrap intervals, differences between cells that differ in one setting
// alone. Scores and their differences are shares in [0, 1], not percentage points. All of it is a pure function of the
// results: the same results.jsonl gives the same report.
//
// The unit is the seed. Cells of one seed share their data order, so a difference is first averaged over a seed's tasks
// and other settings, and the seeds are what is drawn again. A percentile interval of a handful of seeds is narrower
// than the 95 % it is named for; the report says so where it shows one.

import { randomIntegers } from "./random.ts";
import type { CellResult, CellSettings } from "./results.ts";

export const RESAMPLES = 10_000;
/** Fewer seeds decide nothing. */
export const FEWEST_SEEDS = 3;

export interface Estimate {
  /** NaN of nothing. */
  readonly mean: number;
  /** The middle 95 % of the means of resamples; the mean itself, twice, of a single value. */
  readonly low: number;
  readonly high: number;
  readonly values: readonly number[];
}

export const mean = (values: readonly number[]): number => values.reduce((n, v) => n + v, 0) / values.length;

/** The value below which a share of sorted values lies, interpolated (as numpy's `quantile`). */
export function quantile(sorted: ArrayLike<number>, share: number): number {
  const position = share * (sorted.length - 1);
  const below = Math.floor(position);
  const above = Math.min(below + 1, sorted.length - 1);
  return sorted[below] + (position - below) * (sorted[above] - sorted[below]);
}

/** NaN of nothing. */
export const median = (values: readonly number[]): number =>
  values.length > 0 ? quantile(Float64Array.from(values).sort(), 0.5) : Number.NaN;

/** Mean with its 95 % percentile bootstrap interval (Efron and Tibshirani 1993, section 13.3). */
export function estimate(values: readonly number[]): Estimate {
  const draw = randomIntegers(0);
  const means = Float64Array.from({ length: values.length > 0 ? RESAMPLES : 0 }, () => {
    let sum = 0;
    for (let i = 0; i < values.length; i++) sum += values[draw(values.length)];
    return sum / values.length;
  }).sort();
  const [low, high] = means.length > 0 ? [quantile(means, 0.025), quantile(means, 0.975)] : [NaN, NaN];
  return { mean: mean(values), low, high, values };
}

export type Axis = keyof CellSettings;

/** The last result of each cell: a results file only ever grows. */
export const latest = (results: readonly CellResult[]): CellResult[] => [
  ...new Map(results.map((r) => [r.cell, r])).values(),
];

/** A setting as text; what a cell leaves to its model is `default`. */
export const settingOf = (settings: CellSettings, axis: Axis): string => String(settings[axis] ?? "default");

/** The values of a setting: numbers by size, before words in the order they come. */
export function axisValues(results: readonly CellResult[], axis: Axis): string[] {
  const values = [...new Set(results.map((r) => settingOf(r.settings, axis)))];
  const size = (value: string) => (Number.isNaN(Number(value)) ? Number.POSITIVE_INFINITY : Number(value));
  return values.sort((a, b) => (size(a) === size(b) ? 0 : size(a) - size(b)));
}

const AXES: readonly Axis[] = [
  "task",
  "model",
  "strategy",
  "learningRate",
  "batchSize",
  "capacityFactor",
  "dropout",
  "expertDropout",
  "seed",
];

/** Everything but the named settings, as a key. */
export const settingsBut = (settings: CellSettings, axes: readonly Axis[]): string =>
  JSON.stringify(AXES.filter((a) => !axes.includes(a)).map((a) => [a, settingOf(settings, a)]));

/** The settings, other than seed and axis, that differ between results: a comparison is drawn for each combination. */
export const otherAxes = (results: readonly CellResult[], axis: Axis): Axis[] =>
  AXES.filter((a) => a !== "seed" && a !== axis && axisValues(results, a).length > 1);

/** Groups by a key, in the order the keys come. */
export function groupBy<T>(items: readonly T[], key: (item: T) => string): Map<string, T[]> {
  const groups = new Map<string, T[]>();
  for (const item of items) {
    const group = groups.get(key(item));
    if (group) group.push(item);
    else groups.set(key(item), [item]);
  }
  return groups;
}

export interface Paired extends Estimate {
  /** How many seeds have every pair that any seed has. */
  readonly seeds: number;
  /** Seeds left out because a pair of theirs is missing. */
  readonly incomplete: number;
}

/**
 * Score of `value` minus score of `reference`, of cells alike in all but `axis`: one difference per seed, the mean over its
 * pairs. A seed that lacks a pair is left out, so that every difference is over the same tasks.
 */
export function pairedDifference(
  results: readonly CellResult[],
  axis: Axis,
  value: string,
  reference: string,
  of: (result: CellResult) => number = (r) => r.score,
): Paired {
  const references = new Map(
    results
      .filter((r) => settingOf(r.settings, axis) === reference)
      .map((r) => [settingsBut(r.settings, [axis]), r] as const),
  );
  const pairs = results.flatMap((r) => {
    if (settingOf(r.settings, axis) !== value) return [];
    const other = references.get(settingsBut(r.settings, [axis]));
    if (!other) return [];
    const pair = { context: settingsBut(r.settings, [axis, "seed"]), difference: of(r) - of(other) };
    return [{ ...pair, seed: String(r.settings.seed) }];
  });
  const contexts = groupBy(pairs, (p) => p.context).size;
  const seeds = [...groupBy(pairs, (p) => p.seed).values()];
  const complete = seeds.filter((s) => s.length === contexts);
  const differences = complete.map((s) => mean(s.map((p) => p.difference)));
  return { ...estimate(differences), seeds: complete.length, incomplete: seeds.length - complete.length };
}
