// The results as a table for a terminal.

import { bytes, count, milliseconds, percent, points } from "../../clients/charts/format.ts";
import { stepSeconds, tokensPerSecond } from "./report/measures.ts";
import type { Results, Scores } from "./results.ts";

const COLUMNS = [
  "strategy",
  "validation",
  "test",
  "exact",
  "gap",
  "trained",
  "of model",
  "optimizer",
  "peak",
  "step",
  "tokens/s",
];

export function summaryTable({ start, strategies }: Results): string {
  const scored = (scores: Scores) => [
    percent(scores.validation?.accuracy),
    percent(scores.test?.accuracy),
    percent(scores.test?.exactMatch),
    points(scores.train && scores.validation && scores.train.accuracy - scores.validation.accuracy),
  ];
  const rows = [
    COLUMNS,
    ["start", ...scored(start), "", "", "", "", "", ""],
    ...strategies.map(({ strategy, scores, cost, steps }) => [
      strategy,
      ...scored(scores),
      count(cost?.trainableParameters),
      percent(cost && cost.trainableParameters / cost.totalParameters),
      bytes(cost?.optimizerBytes),
      bytes(cost?.peakBytes),
      milliseconds(stepSeconds(steps)),
      count(tokensPerSecond(steps)),
    ]),
  ];
  const widths = COLUMNS.map((_, c) => Math.max(...rows.map((row) => row[c].length)));
  return rows
    .map((row) =>
      row
        .map((cell, c) => (c === 0 ? cell.padEnd(widths[c]) : cell.padStart(widths[c])))
        .join("  ")
        .trimEnd(),
    )
    .join("\n");
}
