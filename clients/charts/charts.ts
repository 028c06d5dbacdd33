// The charts of reports, written as SVG by hand: a few shapes do not justify a charting library. Each is drawn for a given
// width in CSS pixels, so that text keeps its size on a phone; the page holds a wide and a narrow one and shows what fits.
// Colours come from CSS variables, which follow light and dark.

import { type Html, html } from "./html.ts";

export const FONT = 12;

export interface Series {
  readonly label: string;
  /** Number of its colour, from 0. */
  readonly colour: number;
  readonly points: readonly { readonly x: number; readonly y: number }[];
}

/** Round numbers that cover [low, high], about `wanted` of them. */
export function ticks(low: number, high: number, wanted: number): number[] {
  if (!(high > low)) return [low];
  const raw = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw)!;
  const first = Math.floor(low / step);
  const last = Math.ceil(high / step);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

/** A linear map of one range onto another. */
export const scale = (from: readonly [number, number], to: readonly [number, number]) => (value: number) =>
  to[0] + ((value - from[0]) / (from[1] - from[0] || 1)) * (to[1] - to[0]);

/** A coordinate as SVG text. */
export const at = (value: number): string => value.toFixed(1);

/** Moves labels apart to `gap` at least, within [low, high], changing as little as a simple sweep can. */
export function spread(wanted: readonly number[], gap: number, low: number, high: number): number[] {
  const order = wanted.map((_, i) => i).sort((a, b) => wanted[a] - wanted[b]);
  const placed = [...wanted];
  order.forEach((index, i) => {
    placed[index] = Math.max(wanted[index], i === 0 ? low : placed[order[i - 1]] + gap);
  });
  for (let i = order.length - 1, limit = high; i >= 0; i--, limit = placed[order[i + 1]] - gap)
    placed[order[i]] = Math.min(placed[order[i]], limit);
  return placed;
}

export interface AxisNames {
  readonly x: string;
  readonly y: string;
  readonly description: string;
}

/** Lines with their names at their ends. */
export function lineChart(series: readonly Series[], names: AxisNames, width: number): Html {
  const height = Math.round(Math.min(340, width * 0.72));
  const labelWidth = Math.max(...series.map((s) => s.label.length)) * 7 + 16;
  const area = { left: 38, right: width - labelWidth, top: 26, bottom: height - 34 };
  const points = series.flatMap((s) => s.points);
  const yTicks = ticks(Math.min(...points.map((p) => p.y)), Math.max(...points.map((p) => p.y)), 5);
  const lastX = Math.max(...points.map((p) => p.x));
  const x = scale([Math.min(...points.map((p) => p.x)), lastX], [area.left, area.right]);
  const y = scale([yTicks[0], yTicks[yTicks.length - 1]], [area.bottom, area.top]);
  const xTicks = ticks(0, lastX, width < 500 ? 4 : 8).filter((t) => t > 0 && t <= lastX);
  const ends = series.map((s) => y(s.points[s.points.length - 1].y));
  const labels = spread(ends, FONT + 4, area.top, area.bottom);
  return html`<svg viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img" aria-label="${names.description}">
<text class="axis-name" x="0" y="${FONT}">${names.y}</text>
${yTicks.map((t) => html`<line class="grid" x1="${area.left}" x2="${area.right}" y1="${at(y(t))}" y2="${at(y(t))}"/><text class="tick" x="${area.left - 6}" y="${at(y(t) + 4)}" text-anchor="end">${t}</text>`)}
${xTicks.map((t) => html`<text class="tick" x="${at(x(t))}" y="${area.bottom + 16}" text-anchor="middle">${t}</text>`)}
<text class="axis-name" x="${at((area.left + area.right) / 2)}" y="${height - 3}" text-anchor="middle">${names.x}</text>
${series.map((s, i) => {
  const path = s.points.map((p) => `${at(x(p.x))},${at(y(p.y))}`).join(" ");
  return html`<g class="s${s.colour}"><polyline class="line" points="${path}"><title>${s.label}</title></polyline>
<path class="leader" d="M${area.right + 2} ${at(ends[i])} L${area.right + 10} ${at(labels[i])}"/>
<text class="label" x="${area.right + 13}" y="${at(labels[i] + 4)}">${s.label}</text></g>`;
})}
</svg>`;
}

export interface ScoreRow {
  readonly label: string;
  /** Number of its colour; undefined for the model they started from. */
  readonly colour?: number;
  readonly scores: readonly {
    readonly mark: "dot" | "ring" | "tick";
    readonly value: number;
    readonly error?: number;
  }[];
}

/** One row per model, a mark per split on a common scale of percentages, bars of one standard error either side. */
export function scoreChart(
  rows: readonly ScoreRow[],
  chance: number | undefined,
  description: string,
  width: number,
): Html {
  const rowHeight = 30;
  const area = { left: 96, right: width - 14, top: 22, bottom: 22 + rows.length * rowHeight };
  const height = area.bottom + 36;
  const values = rows.flatMap((r) => r.scores.flatMap((s) => [s.value - (s.error ?? 0), s.value + (s.error ?? 0)]));
  const xTicks = ticks(
    Math.max(0, Math.min(...values, chance ?? 1)) * 100,
    Math.min(1, Math.max(...values, chance ?? 0)) * 100,
    width < 500 ? 4 : 8,
  );
  const x = scale([xTicks[0] / 100, xTicks[xTicks.length - 1] / 100], [area.left, area.right]);
  return html`<svg viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img" aria-label="${description}">
${xTicks.map((t) => html`<line class="grid" x1="${at(x(t / 100))}" x2="${at(x(t / 100))}" y1="${area.top}" y2="${area.bottom}"/><text class="tick" x="${at(x(t / 100))}" y="${area.bottom + 16}" text-anchor="middle">${t}%</text>`)}
${chance !== undefined && html`<line class="chance" x1="${at(x(chance))}" x2="${at(x(chance))}" y1="${area.top - 4}" y2="${area.bottom}"/><text class="tick" x="${at(x(chance))}" y="${area.top - 8}" text-anchor="middle">chance</text>`}
${rows.map((row, i) => {
  const middle = area.top + (i + 0.5) * rowHeight;
  return html`<g class="${row.colour === undefined ? "s-start" : `s${row.colour}`}"><text class="label" x="0" y="${at(middle + 4)}">${row.label}</text>
${row.scores.map((score, j) => {
  const y = middle + (j - (row.scores.length - 1) / 2) * 7;
  const cx = at(x(score.value));
  const error = score.error ?? 0;
  return html`${error > 0 && html`<line class="error" x1="${at(x(score.value - error))}" x2="${at(x(score.value + error))}" y1="${at(y)}" y2="${at(y)}"/>`}${
    score.mark === "tick"
      ? html`<line class="score-tick" x1="${cx}" x2="${cx}" y1="${at(y - 4)}" y2="${at(y + 4)}"/>`
      : html`<circle class="${score.mark}" cx="${cx}" cy="${at(y)}" r="4"/>`
  }`;
})}</g>`;
})}
<text class="axis-name" x="${at((area.left + area.right) / 2)}" y="${height - 3}" text-anchor="middle">accuracy</text>
</svg>`;
}

export interface Bar {
  readonly x: number;
  readonly y: number;
  /** Which of the plans was in force. */
  readonly frozen: boolean;
}

/** A bar per step. Steps above `top` are cut and marked with their value. */
export function barChart(bars: readonly Bar[], top: number, names: AxisNames, width: number): Html {
  const height = 190;
  const area = { left: 38, right: width - 4, top: 32, bottom: height - 36 };
  const yTicks = ticks(0, top, 4);
  const y = scale([0, yTicks[yTicks.length - 1]], [area.bottom, area.top]);
  const slot = (area.right - area.left) / bars.length;
  const every = Math.max(1, Math.ceil(24 / slot));
  return html`<svg viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img" aria-label="${names.description}">
<text class="axis-name" x="0" y="${FONT}">${names.y}</text>
${yTicks.map((t) => html`<line class="grid" x1="${area.left}" x2="${area.right}" y1="${at(y(t))}" y2="${at(y(t))}"/><text class="tick" x="${area.left - 6}" y="${at(y(t) + 4)}" text-anchor="end">${t}</text>`)}
${bars.map((bar, i) => {
  const left = area.left + i * slot;
  const shown = Math.min(bar.y, yTicks[yTicks.length - 1]);
  return html`<rect class="${bar.frozen ? "bar-frozen" : "bar"}" x="${at(left + 1)}" width="${at(Math.max(1, slot - 2))}" y="${at(y(shown))}" height="${at(area.bottom - y(shown))}"><title>step ${bar.x}: ${bar.y.toFixed(0)} ms</title></rect>${
    bar.y > shown &&
    html`<text class="tick" x="${at(left + slot / 2)}" y="${area.top - 4}" text-anchor="middle">${bar.y.toFixed(0)}</text>`
  }${bar.x % every === 0 && html`<text class="tick" x="${at(left + slot / 2)}" y="${area.bottom + 16}" text-anchor="middle">${bar.x}</text>`}`;
})}
<text class="axis-name" x="${at((area.left + area.right) / 2)}" y="${height - 3}" text-anchor="middle">${names.x}</text>
</svg>`;
}

/** The same chart for wide and for narrow pages. */
export const responsive = (chart: (width: number) => Html): Html =>
  html`<div class="wide">${chart(860)}</div><div class="narrow">${chart(340)}</div>`;
