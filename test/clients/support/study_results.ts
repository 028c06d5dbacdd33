// Results of cells that were never run, for tests of what is made of them.

import type { CellResult, CellSettings, PlannedCell } from "../../../clients/study/results.ts";
import { type Cells, cellsOf } from "../../../clients/study/statistics.ts";

export function cellResult(settings: Partial<CellSettings>, result: Partial<CellResult>): CellResult {
  const all: CellSettings = {
    task: "reading",
    strategy: "all",
    seed: 0,
    model: "mini-switch",
    learningRate: 1e-3,
    batchSize: 16,
    dropout: 0.1,
    ...settings,
  };
  const cell = JSON.stringify(all);
  return {
    cell,
    settings: all,
    run: `runs/${all.strategy}-${all.seed}`,
    steps: 100,
    metric: "accuracy",
    score: 0.5,
    finalScore: 0.48,
    bestStep: 50,
    curve: [
      { step: 50, trainLoss: 0.9, validationLoss: 1.2, validationScore: 0.5 },
      { step: 100, trainLoss: 0.6, validationLoss: 1.3, validationScore: 0.48 },
    ],
    trainExamples: 1000,
    trainableParameters: 1000,
    totalParameters: 4000,
    optimizerBytes: 8000,
    peakBytes: 64_000,
    stepSeconds: 0.2,
    routing: [{ stack: "encoder", layer: 1, drift: 0.125, loadImbalance: 1.5, droppedShare: 0.25 }],
    finishedAt: "2026-01-01T00:00:00.000Z",
    ...result,
  };
}

/** A plan of just these cells. */
export const planOf = (results: readonly CellResult[]): PlannedCell[] =>
  results.map(({ cell, settings }) => ({ cell, settings }));

/** Results of a study that planned nothing else. */
export const allOf = (results: readonly CellResult[]): Cells => cellsOf(planOf(results), results);
