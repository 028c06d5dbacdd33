// What a plan trains and what it costs, for the server.

import { create } from "@bufbuild/protobuf";
import * as proto from "../../../../proto/gen/thaw/v1/group_pb.ts";
import type { MatchedTensor, PlanCost, TrainableReport } from "../../../trainer/types.ts";
import * as enums from "./enums.ts";
import { count, durationOf } from "./scalars.ts";

/** A tensor that trains, in whole or in the experts it lists. */
export function tensorToProto(tensor: MatchedTensor): proto.ParameterTensor {
  return create(proto.ParameterTensorSchema, {
    name: tensor.name,
    kind: enums.parameterKind.toProto(tensor.kind),
    stack: tensor.stack && enums.stack.toProto(tensor.stack),
    layer: tensor.layer,
    shape: tensor.shape.map(count),
    experts: tensor.experts && [...tensor.experts],
    parameters: count(tensor.parameters),
    trainable: true,
  });
}

export function costToProto(cost: PlanCost): proto.PlanCost {
  const seconds = cost.predictedStepSeconds;
  return create(proto.PlanCostSchema, {
    trainableParameters: count(cost.trainableParameters),
    totalParameters: count(cost.totalParameters),
    parameterBytes: count(cost.parameterBytes),
    gradientBytes: count(cost.gradientBytes),
    optimizerBytes: count(cost.optimizerBytes),
    activationBytes: count(cost.activationBytes),
    peakBytes: count(cost.peakBytes),
    forwardFlops: count(cost.forwardFlops),
    backwardFlops: count(cost.backwardFlops),
    dispatches: count(cost.dispatches),
    weightGradientDispatches: count(cost.weightGradientDispatches),
    predictedStepDuration: seconds === undefined ? undefined : durationOf(seconds),
  });
}

export function reportToProto(report: TrainableReport): proto.TrainableReport {
  const { restored, fresh, kept, dropped } = report.state;
  return create(proto.TrainableReportSchema, {
    matched: report.matched.map(tensorToProto),
    before: costToProto(report.before),
    after: costToProto(report.after),
    state: { restored: [...restored], fresh: [...fresh], kept: [...kept], dropped: [...dropped] },
    effectiveStep: count(report.effectiveStep),
  });
}
