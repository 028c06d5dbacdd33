// A row per thing compared: its values as dots, their mean as an upright mark, the interval of the mean as a bar. Beside a
// line at zero and the band of differences that count as none, if these are differences.

import { at, FONT, scale, ticks } from "./charts.ts";
import { type Html, html } from "./html.ts";

export interface IntervalRow {
  readonly label: string;
  /** Number of its colour, from 0. */
  readonly colour: number;
  /** Shares in [−1, 1]; shown times 100. */
  readonly values: readonly number[];
  readonly mean: number;
  readonly low: number;
  readonly high: number;
}

export interface IntervalAxis {
  /** `accuracy, %` */
  readonly name: string;
  readonly description: string;
  /** Half the width of the band around zero; there is no zero line without it. */
  readonly margin?: number;
}

const ROW = 30;

/** Rows of values and intervals on a common scale. */
export function intervalChart(rows: readonly IntervalRow[], axis: IntervalAxis, width: number): Html {
  const labelWidth = Math.min(width / 2, Math.max(...rows.map((r) => r.label.length)) * 7 + 16);
  const area = { left: labelWidth, right: width - 14, top: 8, bottom: 8 + rows.length * ROW };
  const height = area.bottom + 36;
  const { margin } = axis;
  const shown = [
    ...rows.flatMap((r) => [r.low, r.high, ...r.values]),
    ...(margin === undefined ? [] : [-margin, margin]),
  ].filter(Number.isFinite);
  const [least, most] = [Math.min(...shown) * 100, Math.max(...shown) * 100];
  // Equal values still need a scale.
  const xTicks = most > least ? ticks(least, most, width < 500 ? 4 : 8) : [least - 1, least, least + 1];
  const x = scale([xTicks[0] / 100, xTicks[xTicks.length - 1] / 100], [area.left, area.right]);
  return html`<svg viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img" aria-label="${axis.description}">
${
  margin !== undefined &&
  html`<rect class="band" x="${at(x(-margin))}" width="${at(x(margin) - x(-margin))}" y="${area.top}" height="${area.bottom - area.top}"/>`
}
${xTicks.map((t) => html`<line class="grid" x1="${at(x(t / 100))}" x2="${at(x(t / 100))}" y1="${area.top}" y2="${area.bottom}"/><text class="tick" x="${at(x(t / 100))}" y="${area.bottom + 16}" text-anchor="middle">${String(Number(t.toFixed(2))).replace("-", "−")}</text>`)}
${margin !== undefined && html`<line class="zero" x1="${at(x(0))}" x2="${at(x(0))}" y1="${area.top}" y2="${area.bottom}"/>`}
${rows.map((row, i) => intervalRow(row, area.top + (i + 0.5) * ROW, x))}
<text class="axis-name" x="${at((area.left + area.right) / 2)}" y="${height - 3}" text-anchor="middle" font-size="${FONT}">${axis.name}</text>
</svg>`;
}

function intervalRow(row: IntervalRow, middle: number, x: (value: number) => number): Html {
  const line = middle - 4;
  return html`<g class="s${row.colour}"><text class="label" x="0" y="${at(middle + 4)}">${row.label}</text>
${
  Number.isFinite(row.mean) &&
  html`<line class="interval" x1="${at(x(row.low))}" x2="${at(x(row.high))}" y1="${at(line)}" y2="${at(line)}"/>
<line class="mean" x1="${at(x(row.mean))}" x2="${at(x(row.mean))}" y1="${at(line - 6)}" y2="${at(line + 6)}"/>`
}
${row.values.filter(Number.isFinite).map((value) => html`<circle class="point" cx="${at(x(value))}" cy="${at(middle + 7)}" r="3.5"/>`)}</g>`;
}
