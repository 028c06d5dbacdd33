// Scores of the values compared, and their differences from the baseline.

import { responsive } from "../charts/charts.ts";
import { percent } from "../charts/format.ts";
import { type Html, html } from "../charts/html.ts";
import { intervalChart } from "../charts/interval_chart.ts";
import { AXIS_NAMES } from "./labels.ts";
import { byModel, type Comparison, comparisons, restsOn } from "./report_comparison.ts";
import { interval } from "./report_rules.ts";
import type { StudyDescription } from "./results.ts";
import { type Cells, estimate, mean, type Paired, paired, seedDifferences } from "./statistics.ts";

export function scoreSection(study: StudyDescription, cells: Cells): Html {
  return html`<section><h2>Scores</h2>
${comparisons(study, cells).map((c) => scoresOf(study, c))}
<p class="note">Dots: seeds. Upright mark: their mean. Bar: 95 % bootstrap interval of the mean. Final score: after the last step. Test: of
the final weights, where the study asks for it.</p></section>`;
}

function scoresOf(study: StudyDescription, { title, of, values }: Comparison): Html {
  const rows = values.map((v) => ({ ...v, label: v.value, ...estimate(v.cells.map((c) => c.score)) }));
  const measured = rows.filter((r) => r.cells.length > 0);
  const metric = [...new Set(of.results.map((c) => c.metric))].join(", ").replaceAll("_", " ");
  const description = `Scores by ${AXIS_NAMES[study.axis]}${title && `: ${title}`}`;
  const chart = (width: number) => intervalChart(measured, { name: `${metric}, %`, description }, width);
  return html`${title && html`<h3>${title}</h3>`}
${measured.length > 0 && html`<figure>${responsive(chart)}</figure>`}
<div class="scroll"><table><thead><tr><th>${AXIS_NAMES[study.axis]}</th><th>mean score</th><th>95 % interval</th><th>final score</th><th>test score</th><th>seeds</th></tr></thead><tbody>
${rows.map((r) => {
  const tested = r.cells.flatMap((c) => c.testScore ?? []);
  return html`<tr class="s${r.colour}"><th>${r.label}</th><td>${percent(r.mean)}</td><td>${percent(r.low)} – ${percent(r.high)}</td>
<td>${percent(mean(r.cells.map((c) => c.finalScore)))}</td><td>${percent(mean(tested))}</td><td>${restsOn(r.cells.length, r.planned)}</td></tr>`;
})}</tbody></table></div>`;
}

interface Difference extends Paired {
  readonly label: string;
  readonly colour: number;
}

/** The values of a comparison less the baseline; none where the comparison has no baseline. */
const differencesIn = (study: StudyDescription, { of, values }: Comparison): Difference[] =>
  values
    .filter(({ value }) => value !== study.baseline)
    .map(({ value, colour }) => ({
      label: value,
      colour,
      ...paired(seedDifferences(of, study.axis, value, study.baseline)),
    }))
    .filter((d) => d.plannedSeeds > 0);

export function differenceSection(study: StudyDescription, cells: Cells): Html {
  const each = comparisons(study, cells);
  const models = byModel(study, cells);
  // Several combinations to a model: their average first.
  const averages = each.length > models.length ? models : [];
  const shown = [...averages.map((c) => ({ ...c, title: averageTitle(c) })), ...each]
    .map((c) => ({ title: c.title, differences: differencesIn(study, c) }))
    .filter((c) => c.differences.length > 0);
  const margin = percent(study.equivalenceMargin).replace("%", "");
  return html`<section><h2>Differences from ${study.baseline}</h2>
${shown.length === 0 && html`<p>No cell has its counterpart of ${AXIS_NAMES[study.axis]} ${study.baseline}.</p>`}
${shown.map((c) => differencesOf(study, c.title, c.differences))}
${
  shown.length > 0 &&
  html`<p class="note">Score minus the score of ${study.baseline} with the same seed and settings, in percentage points. Dots: seeds that have all
cells of the comparison. Shaded: within the margin of ± ${margin} points.</p>`
}</section>`;
}

const averageTitle = ({ title }: Comparison): string => `${title && `${title}, `}averaged over its settings`;

function differencesOf(study: StudyDescription, title: string, rows: readonly Difference[]): Html {
  const axis = {
    name: "points",
    description: `Differences from ${study.baseline}${title && `: ${title}`}`,
    margin: study.equivalenceMargin,
  };
  const measured = rows.filter((r) => r.seeds > 0);
  const chart = (width: number) => intervalChart(measured, axis, width);
  return html`${title && html`<h3>${title}</h3>`}
${measured.length > 0 && html`<figure>${responsive(chart)}</figure>`}
<div class="scroll"><table><thead><tr><th>${AXIS_NAMES[study.axis]}</th><th>difference, points [95 %]</th><th>pairs of seeds</th></tr></thead><tbody>
${rows.map((r) => html`<tr class="s${r.colour}"><th>${r.label}</th><td>${interval(r)}</td><td>${restsOn(r.seeds, r.plannedSeeds)}</td></tr>`)}</tbody></table></div>`;
}
