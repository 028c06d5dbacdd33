// The overfitting watch: what the evaluations of one split say about when a run was best, and when to stop it.
//
// Sparse models overfit small tasks sooner than dense ones (ST-MoE, section 4): the training loss goes on falling while
// the validation score has long been at its best. The watch compares both at every evaluation.

import { create } from "@bufbuild/protobuf";
import { type OverfittingReport, OverfittingReportSchema } from "../../../proto/gen/thaw/v1/event_pb.ts";
import { EvaluationMetric, type OverfittingWatch } from "../../../proto/gen/thaw/v1/run_pb.ts";
import type { EvaluationResult } from "../../trainer/types.ts";
import { count } from "./convert/scalars.ts";

export interface OverfittingState {
  /** One training step's cross-entropy. */
  trained(loss: number): void;
  /** An evaluation of the watched split. */
  evaluated(result: EvaluationResult): { readonly report: OverfittingReport; readonly improved: boolean };
}

/** How an evaluation scores: higher is better. */
function scoreOf(metric: EvaluationMetric, result: EvaluationResult): number {
  switch (metric) {
    case EvaluationMetric.ACCURACY:
      return result.accuracy;
    case EvaluationMetric.EXACT_MATCH:
      return result.exactMatch;
    case EvaluationMetric.TOKEN_ACCURACY:
      return result.tokenAccuracy;
    case EvaluationMetric.PRIMARY:
      return result.metrics[result.primaryMetric ?? ""];
    default:
      return -result.loss;
  }
}

/**
 * @param known the newest report of a run that goes on, and `step` where it does. A best evaluation at or after that step
 * is forgotten, for it will be made again; evaluations without improvement are counted from there.
 */
export function watchOverfitting(
  watch: OverfittingWatch,
  known: OverfittingReport | undefined,
  step: number,
): OverfittingState {
  let best: { readonly score: number; readonly value: number; readonly step: number } | undefined;
  let since = 0;
  const lowerIsBetter = watch.metric === EvaluationMetric.LOSS;
  if (known && Number(known.bestStep) < step) {
    const value = known.bestValue;
    best = { score: lowerIsBetter ? -value : value, value, step: Number(known.bestStep) };
    since = Number(known.step) < step ? Number(known.evaluationsSinceBest) : 0;
  }
  let losses: number[] = [];
  return {
    trained(loss) {
      losses.push(loss);
    },
    evaluated(result) {
      const score = scoreOf(watch.metric, result);
      const improved = best === undefined || score > best.score + watch.minImprovement;
      if (improved) best = { score, value: lowerIsBetter ? -score : score, step: result.step };
      since = improved ? 0 : since + 1;
      const trainLoss = losses.length > 0 ? losses.reduce((a, b) => a + b, 0) / losses.length : undefined;
      losses = [];
      const report = create(OverfittingReportSchema, {
        step: count(result.step),
        split: result.split,
        trainLoss,
        validationLoss: result.loss,
        gap: trainLoss === undefined ? undefined : result.loss - trainLoss,
        bestValue: best!.value,
        bestStep: count(best!.step),
        evaluationsSinceBest: count(since),
        stops: Number(watch.patience) > 0 && since >= Number(watch.patience),
      });
      return { report, improved };
    },
  };
}
