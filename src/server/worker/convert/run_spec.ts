// A run's specification with every default of the contract filled in. Defaults stand in the comments of run.proto,
// routing.proto and group.proto; this file is the only place where they are numbers.

import { clone, create } from "@bufbuild/protobuf";
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
  RoutingGroup,
  type RoutingOptions,
  RoutingOptionsSchema,
} from "../../../../proto/gen/thaw/v1/routing_pb.ts";
import {
  type CheckpointPolicy,
  CheckpointPolicySchema,
  type EvaluationPolicy,
  EvaluationPolicySchema,
  type LossOptions,
  LossOptionsSchema,
  type OptimizerOptions,
  OptimizerOptionsSchema,
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
  losses: LossOptions & { balanceCoefficient: number; zCoefficient: number };
  dropout: number;
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
  filled.maxInputTokens ||= 128n;
  filled.maxTargetTokens ||= 32n;
  filled.trainable = fillPlan(spec.trainable);
  filled.optimizer = fillOptimizer(spec.optimizer);
  filled.routing = fillRouting(spec.routing);
  filled.losses = create(LossOptionsSchema, {
    balanceCoefficient: losses?.balanceCoefficient ?? 1e-2,
    zCoefficient: losses?.zCoefficient ?? 1e-3,
  });
  filled.dropout ??= 0.1;
  filled.evaluation = create(EvaluationPolicySchema, {
    everySteps: evaluation?.everySteps,
    maxExamples: evaluation?.maxExamples ?? 256n,
    splits: evaluation?.splits.length ? evaluation.splits : splits.filter((split) => split === VALIDATION),
    atStart: evaluation?.atStart,
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
  const adamw = options?.algorithm.case === "adamw" ? options.algorithm.value : undefined;
  return create(OptimizerOptionsSchema, {
    algorithm: {
      case: "adamw",
      value: {
        beta1: adamw?.beta1 ?? 0.9,
        beta2: adamw?.beta2 ?? 0.999,
        epsilon: adamw?.epsilon ?? 1e-8,
        weightDecay: adamw?.weightDecay ?? 0,
      },
    },
    learningRate: options?.learningRate ?? 1e-3,
    maxGradientNorm: options?.maxGradientNorm ?? 1,
    schedule: {
      kind: options?.schedule?.kind || ScheduleKind.CONSTANT,
      warmupSteps: options?.schedule?.warmupSteps,
    },
  });
}

function fillRouting(options: RoutingOptions | undefined): RoutingOptions {
  const filled = options ? clone(RoutingOptionsSchema, options) : create(RoutingOptionsSchema);
  filled.trainCapacity = fillCapacity(options?.trainCapacity);
  filled.evalCapacity = fillCapacity(options?.evalCapacity);
  filled.group ||= RoutingGroup.BATCH;
  return filled;
}

function fillCapacity(rule: CapacityRule | undefined): CapacityRule {
  return rule?.rule.case ? rule : create(CapacityRuleSchema, { rule: { case: "dropless", value: {} } });
}
