// Beside the scores: how far validation loss ran away from training loss, what training cost, what it did to the routing.

import { lineChart, responsive } from "../charts/charts.ts";
import { bytes, count, milliseconds, nats, percent } from "../charts/format.ts";
import { type Html, html } from "../charts/html.ts";
import { AXIS_NAMES } from "./labels.ts";
import { byModel, type Comparison, comparisons, restsOn, type ValueCells } from "./report_comparison.ts";
import type { CellResult, CurvePoint, LayerDrift, StudyDescription } from "./results.ts";
import { type Cells, groupBy, mean, median } from "./statistics.ts";

const gap = (p: CurvePoint): number => p.validationLoss - p.trainLoss;
/** JSON has no NaN: a loss that was not a number is null. */
const isMeasured = (p: CurvePoint): boolean => Number.isFinite(p.trainLoss) && Number.isFinite(p.validationLoss);

export function gapSection(study: StudyDescription, cells: Cells): Html {
  return html`<section><h2>Overfitting: validation loss minus training loss</h2>
${comparisons(study, cells).map((c) => gapsOf(study, c))}
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
<div class="scroll"><table><thead><tr><th>${AXIS_NAMES[study.axis]}</th><th>training loss at the end</th><th>validation loss at the end</th><th>gap</th><th>best step</th><th>of</th><th>seeds</th></tr></thead><tbody>
${values.map(({ value, colour, cells, planned }) => {
  const last = cells.flatMap((c) => c.curve.at(-1) ?? []).filter(isMeasured);
  const of = (figure: (p: CurvePoint) => number) => nats(last.length > 0 ? mean(last.map(figure)) : undefined);
  return html`<tr class="s${colour}"><th>${value}</th><td>${of((p) => p.trainLoss)}</td><td>${of((p) => p.validationLoss)}</td><td>${of(gap)}</td>
<td>${count(median(cells.map((c) => c.bestStep)))}</td><td>${count(median(cells.map((c) => c.steps)))}</td><td>${restsOn(last.length, planned)}</td></tr>`;
})}</tbody></table></div>`;
}

export function costSection(study: StudyDescription, cells: Cells): Html {
  return html`<section><h2>Cost</h2>
${byModel(study, cells).map(
  ({ title, values }) => html`${title && html`<h3>${title}</h3>`}
<div class="scroll"><table><thead><tr><th>${AXIS_NAMES[study.axis]}</th><th>parameters trained</th><th>of the model</th><th>optimizer state</th><th>peak memory</th><th>step time</th><th>cells</th></tr></thead><tbody>
${values.map(costRow)}</tbody></table></div>`,
)}
<p class="note">Medians over all cells of a row. Memory: planned before anything was allocated, device bytes.</p></section>`;
}

function costRow({ value, colour, cells, planned }: ValueCells): Html {
  const of = (figure: (c: CellResult) => number) => median(cells.map(figure));
  return html`<tr class="s${colour}"><th>${value}</th><td>${count(of((c) => c.trainableParameters))}</td><td>${percent(of((c) => c.trainableParameters / c.totalParameters))}</td>
<td>${bytes(of((c) => c.optimizerBytes))}</td><td>${bytes(of((c) => c.peakBytes))}</td><td>${milliseconds(of((c) => c.stepSeconds))}</td><td>${restsOn(cells.length, planned)}</td></tr>`;
}

const layerName = ({ stack, layer }: LayerDrift): string => `${stack} ${layer}`;

interface RoutingFigure {
  readonly name: string;
  readonly of: (layer: LayerDrift) => number;
  readonly show: (value: number) => string;
}

const ROUTING_FIGURES: readonly RoutingFigure[] = [
  { name: "drift: share of tokens that went to another expert, at least", of: (l) => l.drift, show: percent },
  { name: "load of the busiest expert over the mean", of: (l) => l.loadImbalance, show: (v) => v.toFixed(2) },
  { name: "token choices dropped by capacity", of: (l) => l.droppedShare, show: percent },
];

export function routingSection(study: StudyDescription, cells: Cells): Html {
  if (cells.results.every((r) => r.routing.length === 0)) return html``;
  return html`<section><h2>Routing by layer</h2>
${byModel(study, cells).map(({ title, values }) =>
  ROUTING_FIGURES.map((figure) => routingTable(title, figure, AXIS_NAMES[study.axis], values)),
)}
<p class="note">After training, means over all cells of a row. Drift: total variation distance between the experts' shares of tokens on the same
validation examples before and after. Layers count from 0 within their stack.</p></section>`;
}

function routingTable(title: string, figure: RoutingFigure, axis: string, values: readonly ValueCells[]): Html {
  const layersOf = ({ cells }: ValueCells) =>
    groupBy(
      cells.flatMap((c) => c.routing),
      layerName,
    );
  const layers = [...new Set(values.flatMap((v) => [...layersOf(v).keys()]))];
  if (layers.length === 0) return html``;
  return html`<h3>${title && `${title}, `}${figure.name}</h3>
<div class="scroll"><table><thead><tr><th>${axis}</th>${layers.map((l) => html`<th>${l}</th>`)}<th>cells</th></tr></thead><tbody>
${values.map((v) => {
  const routing = layersOf(v);
  return html`<tr class="s${v.colour}"><th>${v.value}</th>${layers.map((l) => {
    const seen = routing.get(l);
    return html`<td>${seen ? figure.show(mean(seen.map(figure.of))) : "–"}</td>`;
  })}<td>${restsOn(v.cells.length, v.planned)}</td></tr>`;
})}</tbody></table></div>`;
}
