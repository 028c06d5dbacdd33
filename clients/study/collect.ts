// A run's log read into what a study keeps of it: the curve, the scores, the step times, the last evaluation's routing.

import { durationMs } from "@bufbuild/protobuf/wkt";
import type { EvaluationResult } from "../../proto/gen/thaw/v1/evaluation_pb.ts";
import type { RunEvent } from "../../proto/gen/thaw/v1/event_pb.ts";
import { type PlanCost, Stack } from "../../proto/gen/thaw/v1/group_pb.ts";
import type { RouterLayerMetrics } from "../../proto/gen/thaw/v1/routing_pb.ts";
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import { problemsOfStatus } from "../typescript/index.ts";
import type { Cell } from "./plan.ts";
import type { CellResult, CurvePoint, LayerDrift } from "./results.ts";
import type { StudyTask } from "./schema.ts";
import { median } from "./statistics.ts";

export interface Collected {
  state: RunState;
  error?: string;
  /** Optimizer steps completed. */
  step: number;
  /** Of the newest step. */
  loss?: number;
  /** What scores are by, under its own name. */
  metric: string;
  /** By the task's metric; the starting model's is not among the curve. */
  readonly curve: CurvePoint[];
  testScore?: number;
  /** Of the training split. */
  trainExamples: number;
  /** Of every step. */
  readonly stepSeconds: number[];
  /** The routers in the first and the newest evaluation of the validation split. */
  first: readonly RouterLayerMetrics[];
  last: readonly RouterLayerMetrics[];
}

export const nothing = (): Collected => ({
  state: RunState.UNSPECIFIED,
  step: 0,
  metric: "",
  curve: [],
  trainExamples: 0,
  stepSeconds: [],
  first: [],
  last: [],
});

/** Takes in the next event of the log. A log where the GPU process came back repeats steps: the newest counts. */
export function collect(collected: Collected, cell: Cell, { event }: RunEvent): void {
  if (event.case === "state") {
    collected.state = event.value.to;
    if (event.value.error) collected.error = problemsOfStatus(event.value.error).message;
  } else if (event.case === "data") collected.trainExamples = Number(event.value.examples);
  else if (event.case === "metrics") {
    const { step, loss, stepDuration } = event.value;
    collected.step = Number(step);
    collected.loss = loss;
    if (stepDuration) collected.stepSeconds.push(durationMs(stepDuration) / 1e3);
  } else if (event.case === "evaluation") collectEvaluation(collected, cell, event.value);
  else if (event.case === "overfitting") {
    const point = collected.curve.find((p) => p.step === Number(event.value.step));
    if (point && event.value.trainLoss !== undefined) point.trainLoss = event.value.trainLoss;
  }
}

function scoreOf(metric: StudyTask["metric"], result: EvaluationResult): number {
  if (metric === "primary") return result.metrics[result.primaryMetric];
  return metric === "accuracy" ? result.accuracy : result.exactMatch;
}

function collectEvaluation(collected: Collected, cell: Cell, result: EvaluationResult): void {
  const { metric } = cell.task;
  collected.metric = metric === "primary" ? result.primaryMetric : metric;
  const score = scoreOf(metric, result);
  if (result.split === "test") collected.testScore = score;
  if (result.split !== "validation") return;
  if (collected.first.length === 0) collected.first = result.layers;
  collected.last = result.layers;
  const step = Number(result.step);
  if (step === 0) return;
  const kept = collected.curve.filter((p) => p.step < step);
  // The overfitting report that follows says the training loss.
  kept.push({ step, trainLoss: Number.NaN, validationLoss: result.loss, validationScore: score });
  collected.curve.splice(0, collected.curve.length, ...kept);
}

/** The line of results.jsonl for a run that has succeeded. */
export function cellResult(cell: Cell, collected: Collected, cost: PlanCost | undefined, finishedAt: Date): CellResult {
  const { curve, testScore, stepSeconds } = collected;
  const best = curve.reduce((one, other) => (other.validationScore > one.validationScore ? other : one), curve[0]);
  return {
    cell: cell.id,
    settings: cell.settings,
    run: `runs/${cell.run}`,
    steps: collected.step,
    metric: collected.metric,
    score: best.validationScore,
    finalScore: curve[curve.length - 1].validationScore,
    ...(testScore === undefined ? {} : { testScore }),
    bestStep: best.step,
    curve,
    trainExamples: collected.trainExamples,
    trainableParameters: Number(cost?.trainableParameters ?? 0n),
    totalParameters: Number(cost?.totalParameters ?? 0n),
    optimizerBytes: Number(cost?.optimizerBytes ?? 0n),
    peakBytes: Number(cost?.peakBytes ?? 0n),
    stepSeconds: stepSeconds.length > 0 ? median(stepSeconds) : 0,
    routing: collected.last.map((layer, i) => layerDrift(collected.first[i], layer)),
    finishedAt: finishedAt.toISOString(),
  };
}

/** How far a router's load on the validation split went from where it began. */
function layerDrift(first: RouterLayerMetrics, last: RouterLayerMetrics): LayerDrift {
  const distance = last.load.reduce((sum, share, e) => sum + Math.abs(share - first.load[e]), 0) / 2;
  return {
    stack: last.stack === Stack.DECODER ? "decoder" : "encoder",
    layer: last.layer,
    drift: distance,
    loadImbalance: Math.max(...last.load) * last.load.length,
    droppedShare: last.assignments === 0n ? 0 : Number(last.dropped) / Number(last.assignments),
  };
}
