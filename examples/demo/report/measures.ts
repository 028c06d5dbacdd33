// The few figures that the report derives from the results.

import type { LayerLoad, SplitScores, StepRecord } from "../results.ts";

/** The middle value; undefined of nothing. */
export function median(values: readonly number[]): number | undefined {
  if (values.length === 0) return undefined;
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** Median step time, without the first step, which also compiles. Seconds. */
export const stepSeconds = (steps: readonly StepRecord[]): number | undefined =>
  median((steps.length > 1 ? steps.slice(1) : steps).map((s) => s.seconds));

/** Tokens over time of all steps but the first. */
export function tokensPerSecond(steps: readonly StepRecord[]): number | undefined {
  const counted = steps.length > 1 ? steps.slice(1) : steps;
  const seconds = counted.reduce((n, s) => n + s.seconds, 0);
  return seconds > 0 ? counted.reduce((n, s) => n + s.tokens, 0) / seconds : undefined;
}

/** Standard error of an accuracy: what drawing other examples would change, nothing more. */
export const standardError = ({ accuracy, examples }: Pick<SplitScores, "accuracy" | "examples">): number =>
  Math.sqrt((accuracy * (1 - accuracy)) / Math.max(1, examples));

/** Mean of each value and those before it, at most `window` of them. */
export const trailingMean = (values: readonly number[], window: number): number[] =>
  values.map((_, i) => {
    const seen = values.slice(Math.max(0, i + 1 - window), i + 1);
    return seen.reduce((n, v) => n + v, 0) / seen.length;
  });

/** Total variation distance of two loads, in [0, 1]: the share of tokens that went elsewhere, at least. */
export const drift = (a: readonly number[], b: readonly number[]): number =>
  a.reduce((n, share, e) => n + Math.abs(share - (b[e] ?? 0)), 0) / 2;

/** The same layer in another list. */
export const sameLayer = (
  layers: readonly LayerLoad[] | undefined,
  { stack, layer }: Pick<LayerLoad, "stack" | "layer">,
): LayerLoad | undefined => layers?.find((l) => l.stack === stack && l.layer === layer);
