// The findings this project began with, as claims that a study can test, each with the rule that decides it. The rules
// use nothing but the 95 % interval of a paired difference, zero, and the margin below which a difference counts as none;
// they are fixed here, before any result, and the report prints them. "Not supported" is a finding too: it needs an
// interval that excludes the claim. What neither supports nor excludes it is undecided.

import type { CellResult } from "./results.ts";
import { type Axis, axisValues, FEWEST_SEEDS, latest, type Paired, pairedDifference } from "./statistics.ts";

export type Verdict = "supported" | "not supported" | "undecided";

/** A rule for the interval [low, high] of a difference, given the equivalence margin. */
export interface Rule {
  readonly supported: string;
  readonly notSupported: string;
  readonly decide: (interval: { readonly low: number; readonly high: number }, margin: number) => Verdict;
}

const verdict = (supported: boolean, notSupported: boolean): Verdict =>
  supported ? "supported" : notSupported ? "not supported" : "undecided";

export const RULES = {
  equal: {
    supported: "the interval lies within ± margin",
    notSupported: "the interval lies wholly beyond + margin or − margin",
    decide: ({ low, high }, m) => verdict(low > -m && high < m, high <= -m || low >= m),
  },
  slightlyWorse: {
    supported: "the interval lies between − margin and 0",
    notSupported: "the interval lies wholly below − margin (clearly worse), or nowhere below 0",
    decide: ({ low, high }, m) => verdict(low > -m && high < 0, high <= -m || low >= 0),
  },
  clearlyWorse: {
    supported: "the interval lies wholly below − margin",
    notSupported: "the interval lies wholly above − margin",
    decide: ({ low, high }, m) => verdict(high < -m, low > -m),
  },
  better: {
    supported: "the interval lies wholly above 0",
    notSupported: "the interval reaches 0 or below and stays below + margin, so that a gain of the margin is excluded",
    decide: ({ low, high }, m) => verdict(low > 0, low <= 0 && high < m),
  },
} as const satisfies Readonly<Record<string, Rule>>;

/** Two values of an axis whose scores are compared, or why there are none. */
type Compared = { readonly value: string; readonly reference: string } | { readonly missing: string };

interface Claim {
  readonly says: string;
  /** What is subtracted from what. */
  readonly difference: string;
  readonly rule: keyof typeof RULES;
  readonly axis: Axis;
  readonly compared: (values: readonly string[]) => Compared;
}

const strategy = (value: string) => ({
  difference: `${value} − all`,
  axis: "strategy" as const,
  compared: (values: readonly string[]): Compared => {
    const missing = [value, "all"].filter((v) => !values.includes(v));
    return missing.length > 0
      ? { missing: `no result of strategy ${missing.join(" and ")}` }
      : { value, reference: "all" };
  },
});

/** The extremes of an axis: the lowest against the highest, or the other way round. */
const extremes =
  (what: string, compare: "lowest" | "highest", size: (value: string) => number = Number) =>
  (values: readonly string[]): Compared => {
    const sized = values.filter((v) => Number.isFinite(size(v))).sort((a, b) => size(a) - size(b));
    const [low, high] = [sized[0], sized[sized.length - 1]];
    if (sized.length < 2 || size(low) === size(high)) return { missing: `no results of two different ${what}` };
    return compare === "lowest" ? { value: low, reference: high } : { value: high, reference: low };
  };

/** `experts-8` has 8 experts: the last whole number in a model's name. */
export const expertCount = (model: string): number => Number(model.match(/\d+(?!.*\d)/)?.[0] ?? NaN);

const CLAIMS = {
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
    axis: "model",
    compared: extremes("expert counts", "lowest", expertCount),
  },
  smaller_batch_better: {
    says: "Sparse models fine-tune better with smaller batches.",
    difference: "smallest − largest batch size",
    rule: "better",
    axis: "batchSize",
    compared: extremes("batch sizes", "lowest"),
  },
  higher_lr_better: {
    says: "Sparse models fine-tune better with higher learning rates.",
    difference: "highest − lowest learning rate",
    rule: "better",
    axis: "learningRate",
    compared: extremes("learning rates", "highest"),
  },
} as const satisfies Readonly<Record<string, Claim>>;

export type ClaimId = keyof typeof CLAIMS;
/** What a study file may name under `claims`. */
export const CLAIM_IDS = Object.keys(CLAIMS) as readonly ClaimId[];

export interface Judgement {
  readonly claim: string;
  readonly says: string;
  /** `non_moe − all`; of a claim on extremes also their values. */
  readonly difference: string;
  readonly rule: keyof typeof RULES;
  readonly verdict: Verdict;
  /** Undefined where there is nothing to compare. */
  readonly estimate?: Paired;
  /** Why it is undecided, if it is for lack of results. */
  readonly reason?: string;
}

/** The verdict on a claim. Throws a RangeError for an id that is none. */
export function judge(id: string, results: readonly CellResult[], margin: number): Judgement {
  if (!Object.hasOwn(CLAIMS, id)) throw new RangeError(`no claim is called ${id}; there are ${CLAIM_IDS.join(", ")}`);
  const { says, difference, rule, axis, compared }: Claim = CLAIMS[id as ClaimId];
  const cells = latest(results);
  const pair = compared(axisValues(cells, axis));
  const claim = { claim: id, says, rule };
  if ("missing" in pair) return { ...claim, difference, verdict: "undecided", reason: pair.missing };
  const estimate = pairedDifference(cells, axis, pair.value, pair.reference);
  const named = axis === "strategy" ? difference : `${difference} (${pair.value} − ${pair.reference})`;
  const judgement = { ...claim, difference: named, estimate };
  if (estimate.seeds < FEWEST_SEEDS)
    return { ...judgement, verdict: "undecided", reason: `${estimate.seeds} of at least ${FEWEST_SEEDS} seeds` };
  return { ...judgement, verdict: RULES[rule].decide(estimate, margin) };
}
