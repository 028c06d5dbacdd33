// The part of a study's report that is written before any result: what is drawn, what the intervals are, which rule
// decides which claim. And, after it, what the rules decided.

import { percent, points } from "../charts/format.ts";
import { type Html, html } from "../charts/html.ts";
import type { CellResult, StudyDescription } from "./results.ts";
import { FEWEST_SEEDS, RESAMPLES } from "./statistics.ts";
import { type Judgement, judge, RULES } from "./verdicts.ts";

/** `+1.0 [−0.5, +2.1]` in percentage points. */
export const interval = (e: { readonly mean: number; readonly low: number; readonly high: number }): string =>
  Number.isFinite(e.mean) ? `${points(e.mean)} [${points(e.low)}, ${points(e.high)}]` : "–";

export function rulesSection(study: StudyDescription, results: readonly CellResult[]): Html {
  const judgements = study.claims.map((id) => judge(id, results, study.equivalenceMargin));
  const margin = percent(study.equivalenceMargin).replace("%", "");
  return html`<section><h2>Rules, fixed before the results</h2>
<p><strong>Score.</strong> The best validation score of a cell by its task's metric, in percent. It is picked on the data it is
measured on, so it is a little too high for every cell alike; the final score stands beside it.</p>
<p><strong>Interval.</strong> The middle 95 % of the means of ${RESAMPLES.toLocaleString("en-US")} bootstrap resamples of the seeds (percentile, fixed random
numbers). With few seeds it is narrower than its name: of three seeds it hardly reaches beyond the seeds themselves. No
correction is made for the number of comparisons.</p>
<p><strong>Difference.</strong> Between cells alike in task, seed and every other setting, averaged over a seed's tasks and other settings: one number
per seed. A seed that lacks a cell is left out.</p>
<p><strong>Margin.</strong> A difference of less than ${margin} points either way counts as none.</p>
<p><strong>Verdict.</strong> By the interval of the difference alone, as below. What no rule decides, or what has fewer than ${FEWEST_SEEDS} seeds, is
undecided. A verdict holds for these models, tasks and settings.</p>
${
  judgements.length > 0 &&
  html`<div class="scroll"><table class="prose"><thead><tr><th>claim</th><th>difference</th><th>supported if</th><th>not supported if</th></tr></thead><tbody>
${judgements.map((j) => html`<tr><td>${j.says}</td><td>${j.difference}</td><td>${RULES[j.rule].supported}</td><td>${RULES[j.rule].notSupported}</td></tr>`)}</tbody></table></div>`
}</section>
${judgements.length > 0 && verdictSection(judgements)}`;
}

function verdictSection(judgements: readonly Judgement[]): Html {
  return html`<section><h2>Verdicts</h2>
<div class="scroll"><table class="prose"><thead><tr><th>claim</th><th>verdict</th><th>difference, points [95 %]</th><th>seeds</th></tr></thead><tbody>
${judgements.map(
  (
    j,
  ) => html`<tr><td>${j.says} <code>${j.claim}</code></td><td><strong>${j.verdict}</strong>${j.reason && html` <span class="note">(${j.reason})</span>`}</td>
<td>${j.estimate ? interval(j.estimate) : "–"}</td><td>${j.estimate?.seeds ?? 0}${j.estimate && j.estimate.incomplete > 0 && ` (${j.estimate.incomplete} incomplete)`}</td></tr>`,
)}</tbody></table></div></section>`;
}
