// A run's specification with every default of the contract filled in. Defaults stand in the comments of run.proto,
// routing.proto and group.proto; this file is the only place where they are numbers.

import { clone, create, type MessageInitShape } from "@bufbuild/protobuf";
import {
  OptimizerStatePolicy,
  Preset,
  RouterLossPolicy,
  type TrainablePlan,
  TrainablePlanSchema,
} from "../../../../proto/gen/thaw/v1/group_pb.ts";
import {
  type CapacityRule,
  CapacityRuleSchema,
  RoutingChoice,
  RoutingGroup,
  type RoutingOptions,
  RoutingOptionsSchema,
  RoutingPriority,
  SecondExpertPolicy,
} from "../../../../proto/gen/thaw/v1/routing_pb.ts";
import {
  Batching,
  type CheckpointPolicy,
  CheckpointPolicySchema,
  EvaluationMetric,
  type EvaluationPolicy,
  EvaluationPolicySchema,
  FCounts,
  LayerReduction,
  type LossOptions,
  LossOptionsSchema,
  NonFinitePolicy,
  type OptimizerOptions,
  OptimizerOptionsSchema,
  Precision,
  type RunSpec,
  RunSpecSchema,
  ScheduleKind,
} from "../../../../proto/gen/thaw/v1/run_pb.ts";

/** Scored by default where the dataset has it. */
const VALIDATION = "validation";

/** Every sub-message and optional field is there. */
export interface FilledRunSpec extends RunSpec {
  trainable: TrainablePlan;
  optimizer: OptimizerOptions & { learningRate: number; maxGradientNorm: number };
  routing: RoutingOptions;
  losses: LossOptions &
    Required<Pick<LossOptions, "balanceCoefficient" | "zCoefficient" | "vocabularyZCoefficient" | "labelSmoothing">>;
  dropout: number;
  expertDropout: number;
  evaluation: EvaluationPolicy & { maxExamples: bigint };
  checkpoints: CheckpointPolicy & { everySteps: bigint; keepLast: bigint };
}

/**
 * A copy of `spec` with defaults filled in; values that are set are kept, sensible or not. Filling twice changes nothing.
 * @param splits names of the dataset's splits
 */
export function fillRunSpec(spec: RunSpec, splits: readonly string[]): FilledRunSpec {
  const filled = clone(RunSpecSchema, spec);
  const { evaluation, checkpoints, losses } = spec;
  filled.batchSize ||= 16n;
  filled.accumulationSteps ||= 1n;
  filled.maxInputTokens ||= 128n;
  filled.maxTargetTokens ||= 32n;
  filled.trainable = fillPlan(spec.trainable);
  filled.optimizer = fillOptimizer(spec.optimizer);
  filled.routing = fillRouting(spec.routing);
  filled.losses = create(LossOptionsSchema, {
    balanceCoefficient: losses?.balanceCoefficient ?? 1e-2,
    zCoefficient: losses?.zCoefficient ?? 1e-3,
    fCounts: losses?.fCounts || FCounts.TOP1,
    layerReduction: losses?.layerReduction || LayerReduction.SUM,
    vocabularyZCoefficient: losses?.vocabularyZCoefficient ?? 0,
    labelSmoothing: losses?.labelSmoothing ?? 0,
  });
  filled.dropout ??= 0.1;
  filled.expertDropout ??= filled.dropout;
  filled.nonFinite ||= NonFinitePolicy.STOP;
  filled.batching ||= Batching.PADDED;
  filled.precision ||= Precision.F32;
  filled.evaluation = create(EvaluationPolicySchema, {
    everySteps: evaluation?.everySteps,
    maxExamples: evaluation?.maxExamples ?? 256n,
    splits: evaluation?.splits.length ? evaluation.splits : splits.filter((split) => split === VALIDATION),
    atStart: evaluation?.atStart,
    overfitting: evaluation?.overfitting && {
      ...evaluation.overfitting,
      metric: evaluation.overfitting.metric || EvaluationMetric.LOSS,
    },
  });
  filled.checkpoints = create(CheckpointPolicySchema, {
    everySteps: checkpoints?.everySteps ?? 100n,
    keepLast: checkpoints?.keepLast ?? 2n,
  });
  return filled as FilledRunSpec;
}

/** A run's first plan: everything trains unless something is selected. */
function fillPlan(plan: TrainablePlan | undefined): TrainablePlan {
  return create(TrainablePlanSchema, {
    selection: plan?.selection ?? { preset: Preset.ALL },
    optimizerState: plan?.optimizerState || OptimizerStatePolicy.KEEP,
    routerLosses: plan?.routerLosses || RouterLossPolicy.KEEP,
  });
}

function fillOptimizer(options: OptimizerOptions | undefined): OptimizerOptions {
  return create(OptimizerOptionsSchema, {
    algorithm: fillAlgorithm(options?.algorithm),
    learningRate: options?.learningRate ?? 1e-3,
    maxGradientNorm: options?.maxGradientNorm ?? 1,
    schedule: {
      kind: options?.schedule?.kind || ScheduleKind.CONSTANT,
      warmupSteps: options?.schedule?.warmupSteps,
    },
  });
}

function fillAlgorithm(
  algorithm: OptimizerOptions["algorithm"] | undefined,
): MessageInitShape<typeof OptimizerOptionsSchema>["algorithm"] {
  switch (algorithm?.case) {
    case "adafactor": {
      const { value } = algorithm;
      return {
        case: "adafactor",
        value: {
          decayRate: value.decayRate ?? 0.8,
          clipThreshold: value.clipThreshold ?? 1,
          epsilon: value.epsilon ?? 1e-30,
          minParameterScale: value.minParameterScale ?? 1e-3,
          minDimensionToFactor: value.minDimensionToFactor ?? 128n,
          weightDecay: value.weightDecay ?? 0,
        },
      };
    }
    case "sgd": {
      const { momentum = 0, weightDecay = 0 } = algorithm.value;
      return { case: "sgd", value: { momentum, weightDecay } };
    }
    case "adamw":
    case undefined: {
      const { beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8, weightDecay = 0 } = algorithm?.value ?? {};
      return { case: "adamw", value: { beta1, beta2, epsilon, weightDecay } };
    }
  }
}

/** The number of choices and the gate normalisation stay unset: they are the model's. */
function fillRouting(options: RoutingOptions | undefined): RoutingOptions {
  const filled = options ? clone(RoutingOptionsSchema, options) : create(RoutingOptionsSchema);
  filled.trainCapacity = fillCapacity(options?.trainCapacity);
  filled.evalCapacity = fillCapacity(options?.evalCapacity);
  filled.group ||= RoutingGroup.BATCH;
  filled.secondExpertPolicy ||= SecondExpertPolicy.ALWAYS;
  filled.priority ||= RoutingPriority.POSITION;
  filled.encoderChoice ||= RoutingChoice.TOKENS;
  if (filled.selectionBias) filled.selectionBias.updateRate ??= 1e-3;
  return filled;
}

function fillCapacity(rule: CapacityRule | undefined): CapacityRule {
  return rule?.rule.case ? rule : create(CapacityRuleSchema, { rule: { case: "dropless", value: {} } });
}
