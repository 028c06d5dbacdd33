// The rules that turn an interval into a verdict. They use nothing but the 95 % interval of a paired difference, zero, and
// the margin below which a difference counts as none; they are fixed here, before any result, and the report prints them.
// "Not supported" is a finding too: it needs an interval that excludes the claim. What neither supports nor excludes it is
// undecided.

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
  greater: {
    supported: "the interval lies wholly above 0",
    notSupported: "the interval lies nowhere above 0",
    decide: ({ low, high }) => verdict(low > 0, high <= 0),
  },
} as const satisfies Readonly<Record<string, Rule>>;
