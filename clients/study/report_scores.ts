// Scores of the values compared, and their differences from the baseline.

import { responsive } from "../charts/charts.ts";
import { percent } from "../charts/format.ts";
import { type Html, html } from "../charts/html.ts";
import { intervalChart } from "../charts/interval_chart.ts";
import { AXIS_NAMES, type Comparison, comparisons, valuesOf } from "./report_comparison.ts";
import { interval } from "./report_rules.ts";
import type { CellResult, StudyDescription } from "./results.ts";
import { estimate, mean, type Paired, pairedDifference } from "./statistics.ts";

export function scoreSection(study: StudyDescription, results: readonly CellResult[]): Html {
  return html`<section><h2>Scores</h2>
${comparisons(study, results).map((c) => scoresOf(study, c))}
<p class="note">Dots: seeds. Upright mark: their mean. Bar: 95 % bootstrap interval of the mean. Final score: after the last step. Test: of
the final weights, where the study asks for it.</p></section>`;
}

function scoresOf(study: StudyDescription, { title, metric, values }: Comparison): Html {
  const rows = values.map(({ value, colour, cells }) => ({
    label: value,
    colour,
    cells,
    ...estimate(cells.map((c) => c.score)),
  }));
  const description = `Scores by ${AXIS_NAMES[study.axis]}${title && `: ${title}`}`;
  return html`${title && html`<h3>${title}</h3>`}
<figure>${responsive((width) => intervalChart(rows, { name: `${metric}, %`, description }, width))}</figure>
<div class="scroll"><table><thead><tr><th>${AXIS_NAMES[study.axis]}</th><th>mean score</th><th>95 % interval</th><th>final score</th><th>test score</th><th>seeds</th></tr></thead><tbody>
${rows.map((r) => {
  const tested = r.cells.flatMap((c) => c.testScore ?? []);
  return html`<tr class="s${r.colour}"><th>${r.label}</th><td>${percent(r.mean)}</td><td>${percent(r.low)} – ${percent(r.high)}</td>
<td>${percent(mean(r.cells.map((c) => c.finalScore)))}</td><td>${percent(tested.length > 0 ? mean(tested) : undefined)}</td><td>${r.cells.length}</td></tr>`;
})}</tbody></table></div>`;
}

interface Difference extends Paired {
  readonly label: string;
  readonly colour: number;
}

export function differenceSection(study: StudyDescription, results: readonly CellResult[]): Html {
  const differencesIn = (cells: readonly CellResult[]): Difference[] =>
    valuesOf(study, results)
      .filter(({ value }) => value !== study.baseline)
      .map(({ value, colour }) => ({
        label: value,
        colour,
        ...pairedDifference(cells, study.axis, value, study.baseline),
      }))
      .filter((d) => d.seeds > 0);
  const each = comparisons(study, results).map((c) => ({
    title: c.title,
    differences: differencesIn(c.values.flatMap((v) => v.cells)),
  }));
  const shown = [
    { title: each.length > 1 ? "averaged over all of these" : "", differences: differencesIn(results) },
    ...(each.length > 1 ? each : []),
  ].filter((c) => c.differences.length > 0);
  return html`<section><h2>Differences from ${study.baseline}</h2>
${shown.length === 0 && html`<p>No cell has its counterpart of ${AXIS_NAMES[study.axis]} ${study.baseline} yet.</p>`}
${shown.map((c) => differencesOf(study, c.title, c.differences))}
${
  shown.length > 0 &&
  html`<p class="note">Score minus the score of ${study.baseline} with the same seed and settings, in percentage points. Dots: seeds. Shaded:
within the margin of ± ${percent(study.equivalenceMargin).replace("%", "")} points.</p>`
}</section>`;
}

function differencesOf(study: StudyDescription, title: string, rows: readonly Difference[]): Html {
  const axis = {
    name: "points",
    description: `Differences from ${study.baseline}${title && `: ${title}`}`,
    margin: study.equivalenceMargin,
  };
  return html`${title && html`<h3>${title}</h3>`}
<figure>${responsive((width) => intervalChart(rows, axis, width))}</figure>
<div class="scroll"><table><thead><tr><th>${AXIS_NAMES[study.axis]}</th><th>difference, points [95 %]</th><th>pairs of seeds</th></tr></thead><tbody>
${rows.map((r) => html`<tr class="s${r.colour}"><th>${r.label}</th><td>${interval(r)}</td><td>${r.seeds}</td></tr>`)}</tbody></table></div>`;
}
