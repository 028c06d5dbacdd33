// Beside the scores: how far validation loss ran away from training loss, what training cost, what it did to the routing.

import { lineChart, responsive } from "../charts/charts.ts";
import { bytes, count, milliseconds, nats, percent } from "../charts/format.ts";
import { type Html, html } from "../charts/html.ts";
import { AXIS_NAMES, type Comparison, comparisons, type ValueCells, valuesOf } from "./report_comparison.ts";
import type { CellResult, CurvePoint, LayerDrift, StudyDescription } from "./results.ts";
import { groupBy, mean, quantile } from "./statistics.ts";

const gap = (p: CurvePoint): number => p.validationLoss - p.trainLoss;
/** JSON has no NaN: a loss that was not a number is null. */
const isMeasured = (p: CurvePoint): boolean => Number.isFinite(p.trainLoss) && Number.isFinite(p.validationLoss);

export function gapSection(study: StudyDescription, results: readonly CellResult[]): Html {
  return html`<section><h2>Overfitting: validation loss minus training loss</h2>
${comparisons(study, results).map((c) => gapsOf(study, c))}
<p class="note">Cross-entropy in nats per target token, mean over seeds. Best step: of the best validation score, median over seeds.</p></section>`;
}

/** The mean gap by step, at the steps that every seed has. */
function gapCurve({ value, colour, cells }: ValueCells) {
  const bySteps = groupBy(
    cells.flatMap((c) => c.curve.filter(isMeasured)),
    (p) => String(p.step),
  );
  const points = [...bySteps.values()]
    .filter((seen) => seen.length === cells.length)
    .map((seen) => ({ x: seen[0].step, y: mean(seen.map(gap)) }))
    .sort((a, b) => a.x - b.x);
  return { label: value, colour, points };
}

function gapsOf(study: StudyDescription, { title, values }: Comparison): Html {
  const series = values.map(gapCurve).filter((s) => s.points.length > 1);
  const names = {
    x: "optimizer step",
    y: "nats per target token",
    description: `Gap by step${title && `: ${title}`}`,
  };
  return html`${title && html`<h3>${title}</h3>`}
${series.length > 0 && html`<figure>${responsive((width) => lineChart(series, names, width))}</figure>`}
<div class="scroll"><table><thead><tr><th>${AXIS_NAMES[study.axis]}</th><th>training loss at the end</th><th>validation loss at the end</th><th>gap</th><th>best step</th><th>of</th></tr></thead><tbody>
${values.map(({ value, colour, cells }) => {
  const last = cells.flatMap((c) => c.curve.at(-1) ?? []).filter(isMeasured);
  const of = (figure: (p: CurvePoint) => number) => nats(last.length > 0 ? mean(last.map(figure)) : undefined);
  return html`<tr class="s${colour}"><th>${value}</th><td>${of((p) => p.trainLoss)}</td><td>${of((p) => p.validationLoss)}</td><td>${of(gap)}</td>
<td>${count(median(cells.map((c) => c.bestStep)))}</td><td>${count(median(cells.map((c) => c.steps)))}</td></tr>`;
})}</tbody></table></div>`;
}

const median = (values: readonly number[]): number =>
  quantile(
    [...values].sort((a, b) => a - b),
    0.5,
  );

export function costSection(study: StudyDescription, results: readonly CellResult[]): Html {
  return html`<section><h2>Cost</h2>
<div class="scroll"><table><thead><tr><th>${AXIS_NAMES[study.axis]}</th><th>parameters trained</th><th>of the model</th><th>optimizer state</th><th>peak memory</th><th>step time</th></tr></thead><tbody>
${valuesOf(study, results).map(({ value, colour, cells }) => {
  const of = (figure: (c: CellResult) => number) => median(cells.map(figure));
  return html`<tr class="s${colour}"><th>${value}</th><td>${count(of((c) => c.trainableParameters))}</td><td>${percent(of((c) => c.trainableParameters / c.totalParameters))}</td>
<td>${bytes(of((c) => c.optimizerBytes))}</td><td>${bytes(of((c) => c.peakBytes))}</td><td>${milliseconds(of((c) => c.stepSeconds))}</td></tr>`;
})}</tbody></table></div>
<p class="note">Medians over all cells of a row. Memory: planned before anything was allocated, device bytes.</p></section>`;
}

const layerName = ({ stack, layer }: LayerDrift): string => `${stack} ${layer}`;

export function routingSection(study: StudyDescription, results: readonly CellResult[]): Html {
  const layers = [
    ...groupBy(
      results.flatMap((r) => r.routing),
      layerName,
    ).keys(),
  ];
  if (layers.length === 0) return html``;
  const values = valuesOf(study, results);
  const tables: readonly (readonly [string, (l: LayerDrift) => number, (v: number) => string])[] = [
    ["Drift: share of tokens that went to another expert, at least", (l) => l.drift, (v) => percent(v)],
    ["Load of the busiest expert over the mean", (l) => l.loadImbalance, (v) => v.toFixed(2)],
    ["Token choices dropped by capacity", (l) => l.droppedShare, (v) => percent(v)],
  ];
  return html`<section><h2>Routing by layer</h2>
${tables.map(
  ([name, figure, show]) => html`<h3>${name}</h3>
<div class="scroll"><table><thead><tr><th>${AXIS_NAMES[study.axis]}</th>${layers.map((l) => html`<th>${l}</th>`)}</tr></thead><tbody>
${values.map(({ value, colour, cells }) => {
  const routing = groupBy(
    cells.flatMap((c) => c.routing),
    layerName,
  );
  return html`<tr class="s${colour}"><th>${value}</th>${layers.map((l) => {
    const seen = routing.get(l);
    return html`<td>${seen ? show(mean(seen.map(figure))) : "–"}</td>`;
  })}</tr>`;
})}</tbody></table></div>`,
)}
<p class="note">After training, means over all cells of a row. Drift: total variation distance between the experts' shares of tokens on the same
validation examples before and after. Layers count from 0 within their stack.</p></section>`;
}
