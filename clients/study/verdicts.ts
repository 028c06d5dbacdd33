// The verdict on a claim: what it compares, by the rule that it names.

import { CLAIM_IDS, CLAIMS, type Claim, type ClaimId } from "./claims.ts";
import { RULES, type Verdict } from "./rules.ts";
import { type Cells, FEWEST_SEEDS, type Paired, paired } from "./statistics.ts";

export interface Judgement {
  readonly claim: string;
  readonly says: string;
  /** `non_moe − all`; where the claim leaves it open also what was compared. */
  readonly difference: string;
  readonly unit: NonNullable<Claim["unit"]>;
  readonly rule: keyof typeof RULES;
  readonly verdict: Verdict;
  /** Undefined where there is nothing to compare. */
  readonly estimate?: Paired;
  /** Why it is undecided, if it is for lack of results. */
  readonly reason?: string;
}

/** The verdict on a claim. Throws a RangeError for an id that is none. */
export function judge(id: string, cells: Cells, margin: number): Judgement {
  if (!Object.hasOwn(CLAIMS, id)) throw new RangeError(`no claim is called ${id}; there are ${CLAIM_IDS.join(", ")}`);
  const { says, difference, unit = "points", rule, measure }: Claim = CLAIMS[id as ClaimId];
  const measured = measure(cells);
  const claim = { claim: id, says, unit, rule };
  if ("missing" in measured) return { ...claim, difference, verdict: "undecided", reason: measured.missing };
  const estimate = paired(measured.differences);
  const named = measured.compared ? `${difference} (${measured.compared})` : difference;
  const judgement = { ...claim, difference: named, estimate };
  if (estimate.seeds < FEWEST_SEEDS) {
    const reason = `${estimate.seeds} of at least ${FEWEST_SEEDS} seeds have every cell it needs`;
    return { ...judgement, verdict: "undecided", reason };
  }
  return { ...judgement, verdict: RULES[rule].decide(estimate, margin) };
}
