// A study's results as a page: self-contained, no script, no network. A pure function of its arguments: what is to be
// decided and how comes first, then the verdicts, then what is missing, then everything they rest on.

import { count, percent } from "../charts/format.ts";
import { type Html, html, render, trusted } from "../charts/html.ts";
import { STYLE } from "../charts/style.ts";
import { AXIS_NAMES, cellLabels } from "./labels.ts";
import { restsOn } from "./report_comparison.ts";
import { rulesSection } from "./report_rules.ts";
import { differenceSection, scoreSection } from "./report_scores.ts";
import { costSection, gapSection, routingSection } from "./report_training.ts";
import type { CellFailure, CellResult, StudyDescription } from "./results.ts";
import { type Axis, axisValues, type Cells, cellsOf } from "./statistics.ts";

/**
 * The report of a study, also of one that is not finished. Throws a RangeError for an unknown claim.
 *
 * @param results lines of results.jsonl; of a cell's lines the last counts, and cells that the study does not plan do not
 * @param failures why cells without a result have none
 */
export function renderStudyReport(
  study: StudyDescription,
  results: readonly CellResult[],
  failures: readonly CellFailure[],
): string {
  const cells = cellsOf(study.cells, results);
  const title = `Study ${study.name}`;
  const finished = cells.results.map((c) => c.finishedAt).sort();
  const list = (axis: Axis) => axisValues(cells.planned, axis).join(", ");
  const page = html`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>${title}</title><style>${trusted(STYLE)}</style></head><body>
<h1>${title}</h1>
<p>${study.question}</p>
<dl><dt>compared</dt><dd>${AXIS_NAMES[study.axis]}, with ${study.baseline} as the baseline</dd>
<dt>margin</dt><dd>${percent(study.equivalenceMargin).replace("%", "")} points</dd>
<dt>cells with a result</dt><dd>${restsOn(cells.results.length, cells.planned.length)}${finished.length > 0 && `, ${day(finished[0])} to ${day(finished[finished.length - 1])}`}</dd>
<dt>seeds</dt><dd>${list("seed")}</dd><dt>tasks</dt><dd>${taskList(cells)}</dd><dt>models</dt><dd>${list("model")}</dd></dl>
${rulesSection(study, cells)}
${missingSection(study, cells, failures)}
${
  cells.results.length === 0
    ? html`<p>No cell has finished.</p>`
    : html`${scoreSection(study, cells)}${differenceSection(study, cells)}${gapSection(study, cells)}${costSection(study, cells)}${routingSection(study, cells)}`
}
<section><h2>Settings</h2><details><summary>The study file as read</summary><pre>${JSON.stringify(study.settings ?? {}, null, 2)}</pre></details>
<p class="note">All numbers on this page follow from <code>results.jsonl</code>.</p></section>
</body></html>
`;
  return render(page);
}

/** `2026-01-31 12:34 UTC` of an ISO 8601 time. */
const day = (time: string): string => `${time.slice(0, 16).replace("T", " ")} UTC`;

/** `reading (2,000 training examples), …` */
const taskList = ({ planned, results }: Cells): string =>
  axisValues(planned, "task")
    .map((task) => {
      const examples = results.find((r) => r.settings.task === task)?.trainExamples;
      return examples === undefined ? task : `${task} (${count(examples)} training examples)`;
    })
    .join(", ");

function missingSection(study: StudyDescription, { planned, results }: Cells, failures: readonly CellFailure[]): Html {
  const found = new Set(results.map((r) => r.cell));
  const missing = study.cells.filter(({ cell }) => !found.has(cell));
  if (missing.length === 0) return html``;
  const label = cellLabels(planned);
  const reasons = new Map(failures.map((f) => [f.cell, f.error]));
  return html`<section><h2>Cells without a result</h2>
<div class="scroll"><table class="prose"><thead><tr><th>cell</th><th>why</th></tr></thead><tbody>
${missing.map(({ cell, settings }) => html`<tr><td>${label(settings)} <code>${cell}</code></td><td>${reasons.get(cell) ?? "has not ended"}</td></tr>`)}</tbody></table></div>
<p class="note">The same command tries them again.</p></section>`;
}
