// The strategies side by side: scores with their sampling error, costs, loss curves.

import { lineChart, responsive, scoreChart } from "../../../clients/charts/charts.ts";
import { bytes, count, milliseconds, percent, points } from "../../../clients/charts/format.ts";
import { type Html, html } from "../../../clients/charts/html.ts";
import type { Results, SplitScores, StrategyResult } from "../results.ts";
import { standardError, stepSeconds, tokensPerSecond, trailingMean } from "./measures.ts";

const accuracyOf = (s: { readonly scores: Results["start"] }, split: string): number | undefined =>
  s.scores[split]?.accuracy;

/** Train minus validation, as shares. */
function gap(scores: Results["start"]): number | undefined {
  const { train, validation } = scores;
  return train && validation ? train.accuracy - validation.accuracy : undefined;
}

/** The strategy with the best validation accuracy, the first of equals. */
export function bestStrategy(strategies: readonly StrategyResult[]): StrategyResult | undefined {
  const score = (s: StrategyResult) => accuracyOf(s, "validation") ?? Number.NEGATIVE_INFINITY;
  return strategies.reduce<StrategyResult | undefined>(
    (best, s) => (accuracyOf(s, "validation") !== undefined && (!best || score(s) > score(best)) ? s : best),
    undefined,
  );
}

/** What the scores allow to say, in a sentence or two. */
function verdict(results: Results): Html {
  const best = bestStrategy(results.strategies);
  const scores = results.strategies.flatMap((s) => s.scores.validation ?? []);
  if (!best || scores.length < 2) return html`<p>Too few strategies were scored to compare them.</p>`;
  const values = scores.map((s) => s.accuracy);
  const range = Math.max(...values) - Math.min(...values);
  // Of the difference of two scores, as if they were independent.
  const error = Math.SQRT2 * Math.max(...scores.map(standardError));
  const start = results.start.validation?.accuracy;
  const leaders = results.strategies.filter((s) => accuracyOf(s, "validation") === best.scores.validation.accuracy);
  return html`<p>The best validation accuracy is <strong>${percent(best.scores.validation.accuracy)}</strong>, by
<strong>${leaders.map((s) => s.strategy).join(", ")}</strong>${start !== undefined && html`; the starting model has ${percent(start)}`}. The ${scores.length} strategies
lie within ${points(range).replace("+", "")} points of each other, and two scores on ${count(scores[0].examples)} examples differ by
${points(error).replace("+", "")} points (one standard error) from the choice of examples alone. ${
    range < 2 * error
      ? "So nothing here ranks them."
      : "So the widest difference is more than that; with one seed it still says little about the next run."
  }</p>`;
}

export function scoreSection(results: Results): Html {
  const { training, strategies, start, task } = results;
  const marks = { train: "tick", validation: "dot", test: "ring" } as const;
  const marksOf = (scores: Results["start"]) =>
    Object.entries(marks).flatMap(([split, mark]) => {
      const s: SplitScores | undefined = scores[split];
      return s ? [{ mark, value: s.accuracy, error: standardError(s) }] : [];
    });
  const rows = [
    { label: "start", scores: marksOf(start) },
    ...strategies.map((s, colour) => ({ label: s.strategy, colour, scores: marksOf(s.scores) })),
  ].filter((row) => row.scores.length > 0);
  const chance = task.distinctTargets > 1 ? 1 / task.distinctTargets : undefined;
  return html`<section><h2>Scores</h2>
${verdict(results)}
${
  rows.length > 0 &&
  html`<figure>${responsive((width) => scoreChart(rows, chance, "Accuracy of each strategy by split", width))}
<figcaption>Filled: validation. Open: test. Upright mark: training examples. Lines reach one standard error to either side.</figcaption></figure>`
}
<div class="scroll">${scoreTable(results)}</div>
<p class="note">Accuracy: every target token predicted right, given those before it. Exact match: the text generated from scratch equals the
target. At most ${count(training.evaluatedExamples)} examples of each split, its first ones. Gap: training minus validation accuracy, in
percentage points. Step time: median without the first step. Memory: planned before anything was allocated, device bytes.</p></section>`;
}

function scoreTable({ start, strategies }: Results): Html {
  const best = bestStrategy(strategies);
  const scoreCells = (scores: Results["start"], bold: boolean) => html`
<td${bold && html` class="best"`}>${percent(scores.validation?.accuracy)}</td><td>${percent(scores.test?.accuracy)}</td>
<td>${percent(scores.test?.exactMatch)}</td><td>${percent(scores.train?.accuracy)}</td><td>${points(gap(scores))}</td>`;
  return html`<table><thead><tr><th>strategy</th><th>validation accuracy</th><th>test accuracy</th><th>test exact match</th><th>training accuracy</th><th>gap</th>
<th>parameters trained</th><th>of the model</th><th>optimizer state</th><th>peak memory</th><th>step time</th><th>tokens/s</th></tr></thead><tbody>
<tr><th>start</th>${scoreCells(start, false)}${Array.from({ length: 6 }, () => html`<td></td>`)}<td></td></tr>
${strategies.map(
  (
    s,
    i,
  ) => html`<tr class="s${i}"><th>${s.strategy}${s.state !== "SUCCEEDED" && html` <span class="note">(${s.state.toLowerCase()})</span>`}</th>${scoreCells(s.scores, s === best)}
<td>${count(s.cost?.trainableParameters)}</td><td>${percent(s.cost && s.cost.trainableParameters / s.cost.totalParameters)}</td>
<td>${bytes(s.cost?.optimizerBytes)}</td><td>${bytes(s.cost?.peakBytes)}</td>
<td>${milliseconds(stepSeconds(s.steps))}</td><td>${count(tokensPerSecond(s.steps))}</td></tr>`,
)}</tbody></table>`;
}

export function lossSection({ strategies, training }: Results): Html {
  const window = Math.max(1, Math.round(training.steps / 8));
  const series = strategies.flatMap((s, colour) => {
    const means = trailingMean(
      s.steps.map((step) => step.loss),
      window,
    );
    const points = s.steps
      .map(({ step }, i) => ({ x: step, y: means[i] }))
      .filter(({ y }, i) => Number.isFinite(y) && i >= window - 1);
    return points.length > 0 ? [{ label: s.strategy, colour, points }] : [];
  });
  if (series.length === 0) return html`<section><h2>Loss</h2><p>No training step was recorded.</p></section>`;
  return html`<section><h2>Loss while training</h2>
<figure>${responsive((width) =>
    lineChart(
      series,
      { x: "optimizer step", y: "nats per target token", description: "Training loss of each strategy by step" },
      width,
    ),
  )}
<figcaption>Cross-entropy on the batch, mean of the last ${window} steps. All strategies see the same batches in the same order.</figcaption></figure></section>`;
}
