// Messages of the contract as the plain records of results.json.

import type { DescEnum } from "@bufbuild/protobuf";
import { durationMs } from "@bufbuild/protobuf/wkt";
import { decodeAssignments } from "../../clients/typescript/index.ts";
import type { EvaluationResult } from "../../proto/gen/thaw/v1/evaluation_pb.ts";
import type { StepMetrics } from "../../proto/gen/thaw/v1/event_pb.ts";
import {
  type ParameterKind,
  ParameterKindSchema,
  type PlanCost,
  type Stack,
  StackSchema,
  type TrainableReport,
} from "../../proto/gen/thaw/v1/group_pb.ts";
import type { Generation } from "../../proto/gen/thaw/v1/model_pb.ts";
import type { Cost, ExampleLayer, ExamplePass, FreezeChange, SplitScores, StepRecord } from "./results.ts";

/** The value's name without its enum's, for instance `SUCCEEDED`. */
export const enumName = (schema: DescEnum, value: number): string => schema.value[value]?.localName ?? String(value);

export const stackName = (stack: Stack): string => enumName(StackSchema, stack).toLowerCase();

/** As ParameterKind's comments write it: `attention.self`. */
export const kindName = (kind: ParameterKind): string =>
  enumName(ParameterKindSchema, kind).toLowerCase().replace("_", ".");

export const stepRecord = ({ step, loss, tokens, stepDuration }: StepMetrics): StepRecord => ({
  step: Number(step),
  loss,
  tokens: Number(tokens),
  seconds: stepDuration ? durationMs(stepDuration) / 1e3 : 0,
});

export const splitScores = ({ examples, loss, accuracy, exactMatch, layers }: EvaluationResult): SplitScores => ({
  examples: Number(examples),
  loss,
  accuracy,
  exactMatch,
  layers: layers.map((l) => ({ stack: stackName(l.stack), layer: l.layer, load: l.load })),
});

export const costRecord = (cost: PlanCost): Cost => ({
  trainableParameters: Number(cost.trainableParameters),
  totalParameters: Number(cost.totalParameters),
  gradientBytes: Number(cost.gradientBytes),
  optimizerBytes: Number(cost.optimizerBytes),
  activationBytes: Number(cost.activationBytes),
  peakBytes: Number(cost.peakBytes),
  forwardFlops: Number(cost.forwardFlops),
  backwardFlops: Number(cost.backwardFlops),
  dispatches: Number(cost.dispatches),
  weightGradientDispatches: Number(cost.weightGradientDispatches),
});

export function freezeChange(
  action: "freeze" | "thaw",
  kinds: readonly ParameterKind[],
  report: TrainableReport,
): FreezeChange {
  const { restored, fresh, kept, dropped } = report.state ?? { restored: [], fresh: [], kept: [], dropped: [] };
  return {
    action,
    kinds: kinds.map(kindName),
    effectiveStep: Number(report.effectiveStep),
    before: costRecord(report.before!),
    after: costRecord(report.after!),
    matchedTensors: report.matched.length,
    state: { restored: restored.length, fresh: fresh.length, kept: kept.length, dropped: dropped.length },
  };
}

/** A generation and where its tokens went. `tokenText` names a vocabulary id. */
export const examplePass = (generation: Generation, tokenText: (id: number) => string): ExamplePass => ({
  text: generation.text,
  layers: generation.routes.map((slice): ExampleLayer => {
    const { topK, expertIds, gates, kept, tokenIds, positions } = decodeAssignments(slice);
    const order = [...positions.keys()].sort((a, b) => positions[a] - positions[b]);
    return {
      stack: stackName(slice.stack),
      layer: slice.layer,
      experts: slice.expertCount,
      // The first choice of each token; Switch models have no other.
      tokens: order.map((t) => ({
        text: tokenIds ? tokenText(tokenIds[t]) : "",
        expert: expertIds[t * topK],
        gate: gates?.[t * topK] ?? 0,
        kept: kept[t * topK] === 1,
      })),
    };
  }),
});
