// The part of a study's report that is written before any result: what is drawn, what the intervals are, which rule
// decides which claim. And, after it, what the rules decided.

import { nats, percent, points } from "../charts/format.ts";
import { type Html, html } from "../charts/html.ts";
import { restsOn } from "./report_comparison.ts";
import type { StudyDescription } from "./results.ts";
import { RULES } from "./rules.ts";
import { axisValues, type Cells, FEWEST_SEEDS, RESAMPLES, restrict } from "./statistics.ts";
import { type Judgement, judge } from "./verdicts.ts";

/** `+1.0 [−0.5, +2.1]` in percentage points. */
export const interval = (e: { readonly mean: number; readonly low: number; readonly high: number }): string =>
  Number.isFinite(e.mean) ? `${points(e.mean)} [${points(e.low)}, ${points(e.high)}]` : "–";

/** As {@link interval}, with the unit. */
function difference({ estimate, unit }: Judgement): string {
  if (!estimate || !Number.isFinite(estimate.mean)) return "–";
  if (unit === "points") return `${interval(estimate)} points`;
  const signed = (v: number) => `${v < 0 ? "−" : "+"}${nats(Math.abs(v))}`;
  return `${signed(estimate.mean)} [${signed(estimate.low)}, ${signed(estimate.high)}] nats`;
}

export function rulesSection(study: StudyDescription, cells: Cells): Html {
  const judgements = study.claims.map((id) => judge(id, cells, study.equivalenceMargin));
  const margin = percent(study.equivalenceMargin).replace("%", "");
  return html`<section><h2>Rules, fixed before the results</h2>
<p><strong>Score.</strong> The best validation score of a cell by its task's metric, in percent. It is picked on the data it is
measured on, so it is a little too high for every cell alike; the final score stands beside it.</p>
<p><strong>Interval.</strong> The middle 95 % of the means of ${RESAMPLES.toLocaleString("en-US")} bootstrap resamples of the seeds (percentile, fixed random
numbers). With few seeds it is narrower than its name: of three seeds it hardly reaches beyond the seeds themselves. No
correction is made for the number of comparisons.</p>
<p><strong>Difference.</strong> Between cells alike in task, seed and every other setting, averaged over a seed's tasks and other settings: one number
per seed. A seed that lacks one of these cells, because it failed or has not run, is left out.</p>
<p><strong>Margin.</strong> A difference of less than ${margin} points either way counts as none.</p>
<p><strong>Verdict.</strong> By the interval of the difference alone, as below. What no rule decides, or what has fewer than ${FEWEST_SEEDS} seeds with every
cell, is undecided. It rests on sparse models; a dense one counts where a claim names it. A verdict holds for these models, tasks
and settings.</p>
${
  judgements.length > 0 &&
  html`<div class="scroll"><table class="prose"><thead><tr><th>claim</th><th>difference</th><th>supported if</th><th>not supported if</th></tr></thead><tbody>
${judgements.map((j) => html`<tr><td>${j.says}</td><td data-label="difference">${j.difference}</td><td data-label="supported if">${RULES[j.rule].supported}</td><td data-label="not supported if">${RULES[j.rule].notSupported}</td></tr>`)}</tbody></table></div>`
}</section>
${judgements.length > 0 && verdictSection(study, cells, judgements)}`;
}

function verdictSection(study: StudyDescription, cells: Cells, judgements: readonly Judgement[]): Html {
  const tasks = axisValues(cells.planned, "task");
  const alone = (id: string, name: string): Judgement =>
    judge(
      id,
      restrict(cells, ({ task }) => task === name),
      study.equivalenceMargin,
    );
  const several = tasks.length > 1 && study.axis !== "task";
  return html`<section><h2>Verdicts</h2>
<div class="scroll"><table class="prose verdicts"><thead><tr><th>claim</th><th>verdict</th><th>difference [95 %]</th><th>seeds</th></tr></thead><tbody>
${judgements.map(
  (
    j,
  ) => html`<tr><td>${j.says} <code>${j.claim}</code></td><td><strong>${j.verdict}</strong>${why(j)}</td>${figures(j)}</tr>
${several && j.estimate && tasks.map((task) => aloneRow(task, alone(j.claim, task)))}`,
)}</tbody></table></div>
${several && html`<p class="note">The verdict on a claim is that of its first line; below it the same rule is applied to each task by itself.</p>`}</section>`;
}

const aloneRow = (task: string, j: Judgement): Html =>
  html`<tr class="note"><td>task ${task} alone</td><td>${j.verdict}${why(j)}</td>${figures(j)}</tr>`;

const why = ({ reason }: Judgement): Html => html`${reason && html` <span class="note">(${reason})</span>`}`;

const figures = (j: Judgement): Html =>
  html`<td>${difference(j)}</td><td data-label="seeds">${j.estimate ? restsOn(j.estimate.seeds, j.estimate.plannedSeeds) : "0"}</td>`;
