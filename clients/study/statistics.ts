// What a study's scores allow to say: means, bootstrap intervals, differences between cells that differ in one setting
// alone. Scores and their differences are shares in [0, 1], not percentage points. All of it is a pure function of the
// results: the same results.jsonl gives the same report.
//
// The unit is the seed. Cells of one seed share their data order, so a difference is first averaged over a seed's tasks
// and other settings, and the seeds are what is drawn again. A percentile interval of a handful of seeds is narrower
// than the 95 % it is named for; the report says so where it shows one.

import { randomIntegers } from "./random.ts";
import type { CellResult, CellSettings, PlannedCell } from "./results.ts";

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

/** What a comparison is over: the cells that were planned, and the results of those that have one. */
export interface Cells {
  readonly planned: readonly CellSettings[];
  readonly results: readonly CellResult[];
}

/** The planned cells with their results. A results file only ever grows: of a cell's lines the last counts. */
export function cellsOf(planned: readonly PlannedCell[], lines: readonly CellResult[]): Cells {
  const newest = new Map(lines.map((result) => [result.cell, result]));
  return {
    planned: planned.map(({ settings }) => settings),
    results: planned.flatMap(({ cell }) => newest.get(cell) ?? []),
  };
}

export const restrict = ({ planned, results }: Cells, keep: (settings: CellSettings) => boolean): Cells => ({
  planned: planned.filter(keep),
  results: results.filter(({ settings }) => keep(settings)),
});

/** A setting as text; what a cell leaves to its model is `default`. */
export const settingOf = (settings: CellSettings, axis: Axis): string => String(settings[axis] ?? "default");

/** The values of a setting: numbers by size, before words in the order they come. */
export function axisValues(cells: readonly CellSettings[], axis: Axis): string[] {
  const values = [...new Set(cells.map((settings) => settingOf(settings, axis)))];
  const size = (value: string) => (Number.isNaN(Number(value)) ? Number.POSITIVE_INFINITY : Number(value));
  return values.sort((a, b) => (size(a) === size(b) ? 0 : size(a) - size(b)));
}

export const AXES: readonly Axis[] = [
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

/** The settings, other than seed and axis, that differ between cells: a comparison is drawn for each combination. */
export const otherAxes = (cells: readonly CellSettings[], axis: Axis): Axis[] =>
  AXES.filter((a) => a !== "seed" && a !== axis && axisValues(cells, a).length > 1);

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

/** A difference for each seed; undefined where a cell that it needs has no result, or none that is a number. */
export type SeedDifferences = ReadonlyMap<number, number | undefined>;

/**
 * Score of `value` minus score of `reference`, of cells alike in all but `axis`: one difference per seed, the mean over its
 * planned pairs. Were a seed's other pairs enough, seeds would be compared over different tasks.
 */
export function seedDifferences(
  { planned, results }: Cells,
  axis: Axis,
  value: string,
  reference: string,
  of: (result: CellResult) => number = (r) => r.score,
): SeedDifferences {
  const key = (settings: CellSettings) => settingsBut(settings, [axis]);
  const at = <T>(items: readonly T[], where: string, settings: (item: T) => CellSettings) =>
    new Map(items.filter((i) => settingOf(settings(i), axis) === where).map((i) => [key(settings(i)), i]));
  const [values, references] = [value, reference].map((where) => at(results, where, (r) => r.settings));
  const counterparts = at(planned, reference, (s) => s);
  const pairs = [...at(planned, value, (s) => s)].filter(([pair]) => counterparts.has(pair));
  const differences = new Map<number, number[]>();
  for (const [pair, { seed }] of pairs) {
    const [one, other] = [values.get(pair), references.get(pair)];
    const difference = one && other ? of(one) - of(other) : Number.NaN;
    differences.set(seed, [...(differences.get(seed) ?? []), difference]);
  }
  return new Map([...differences].map(([seed, d]) => [seed, d.every(Number.isFinite) ? mean(d) : undefined]));
}

export interface Paired extends Estimate {
  /** Seeds the estimate rests on: those with every cell they need. */
  readonly seeds: number;
  readonly plannedSeeds: number;
}

export function paired(differences: SeedDifferences): Paired {
  const values = [...differences.values()].filter((d) => d !== undefined);
  return { ...estimate(values), seeds: values.length, plannedSeeds: differences.size };
}

/** Seed by seed, one minus the other; undefined where either is. */
export const minus = (one: SeedDifferences, other: SeedDifferences): SeedDifferences =>
  new Map(
    [...one].map(([seed, a]) => {
      const b = other.get(seed);
      return [seed, a === undefined || b === undefined ? undefined : a - b];
    }),
  );
