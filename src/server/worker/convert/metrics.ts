// What a step and an evaluation measured, for the server.

import { create } from "@bufbuild/protobuf";
import * as evaluation from "../../../../proto/gen/thaw/v1/evaluation_pb.ts";
import * as event from "../../../../proto/gen/thaw/v1/event_pb.ts";
import * as routing from "../../../../proto/gen/thaw/v1/routing_pb.ts";
import type { EvaluationResult, RouterLayerMetrics, StepMetrics } from "../../../trainer/types.ts";
import * as enums from "./enums.ts";
import { count, durationOf } from "./scalars.ts";

export function metricsToProto(m: StepMetrics): event.StepMetrics {
  return create(event.StepMetricsSchema, {
    step: count(m.step),
    loss: m.loss,
    totalLoss: m.totalLoss,
    vocabularyZLoss: m.vocabularyZLoss,
    smoothedLoss: m.smoothedLoss,
    gradientNorm: m.gradientNorm,
    lossScale: m.lossScale?.scale,
    overflowed: m.lossScale?.overflowed ?? false,
    learningRate: m.learningRate,
    tokens: count(m.tokens),
    tokensPerSecond: m.stepSeconds > 0 ? m.tokens / m.stepSeconds : 0,
    stepDuration: durationOf(m.stepSeconds),
    layers: m.layers.map(layerToProto),
  });
}

export function layerToProto(l: RouterLayerMetrics): routing.RouterLayerMetrics {
  return create(routing.RouterLayerMetricsSchema, {
    stack: enums.stack.toProto(l.stack),
    layer: l.layer,
    balanceLoss: l.balanceLoss,
    zLoss: l.zLoss,
    load: [...l.load],
    dropped: count(l.dropped),
    assignments: count(l.assignments),
    selectionBias: [...(l.selectionBias ?? [])],
    coActivation: [...(l.coActivation ?? [])],
  });
}

/** @param dataset its name, "" where the server adds it */
export function evaluationToProto(e: EvaluationResult, dataset: string): evaluation.EvaluationResult {
  return create(evaluation.EvaluationResultSchema, {
    step: count(e.step),
    split: e.split,
    examples: count(e.examples),
    loss: e.loss,
    tokenAccuracy: e.tokenAccuracy,
    exactMatch: e.exactMatch,
    accuracy: e.accuracy,
    metrics: { ...e.metrics },
    primaryMetric: e.primaryMetric,
    dataset,
    layers: e.layers.map(layerToProto),
    duration: durationOf(e.seconds),
  });
}
