// A study's results as a page: self-contained, no script, no network. A pure function of its arguments: what is to be
// decided and how comes first, then the verdicts, then everything they rest on.

import { count, percent } from "../charts/format.ts";
import { html, render, trusted } from "../charts/html.ts";
import { STYLE } from "../charts/style.ts";
import { AXIS_NAMES } from "./report_comparison.ts";
import { rulesSection } from "./report_rules.ts";
import { differenceSection, scoreSection } from "./report_scores.ts";
import { costSection, gapSection, routingSection } from "./report_training.ts";
import type { CellResult, StudyDescription } from "./results.ts";
import { axisValues, latest } from "./statistics.ts";

/**
 * The report of a study, also of one that is not finished. Throws a RangeError for an unknown claim.
 *
 * @param results lines of results.jsonl; of a cell's lines the last counts
 */
export function renderStudyReport(study: StudyDescription, results: readonly CellResult[]): string {
  const cells = latest(results);
  const title = `Study ${study.name}`;
  const finished = cells.map((c) => c.finishedAt).sort();
  const list = (axis: Parameters<typeof axisValues>[1]) => axisValues(cells, axis).join(", ");
  const page = html`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>${title}</title><style>${trusted(STYLE)}</style></head><body>
<h1>${title}</h1>
<p>${study.question}</p>
<dl><dt>compared</dt><dd>${AXIS_NAMES[study.axis]}, with ${study.baseline} as the baseline</dd>
<dt>margin</dt><dd>${percent(study.equivalenceMargin).replace("%", "")} points</dd>
<dt>finished cells</dt><dd>${count(cells.length)}${finished.length > 0 && `, ${day(finished[0])} to ${day(finished[finished.length - 1])}`}</dd>
<dt>seeds</dt><dd>${list("seed")}</dd><dt>tasks</dt><dd>${list("task")}</dd><dt>models</dt><dd>${list("model")}</dd></dl>
${rulesSection(study, cells)}
${
  cells.length === 0
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
