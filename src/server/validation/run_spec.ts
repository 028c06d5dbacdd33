// What a run may be told. Field paths are the caller's; references are looked up by the caller of this module.

import {
  BatchingSchema,
  EvaluationMetricSchema,
  FCountsSchema,
  LayerReductionSchema,
  type LossOptions,
  type Mixture,
  NonFinitePolicySchema,
  type OptimizerOptions,
  PrecisionSchema,
  type RunSpec,
  ScheduleKindSchema,
} from "../../../proto/gen/thaw/v1/run_pb.ts";
import { checkpointIn } from "../ids.ts";
import { fraction, nonNegative, positive } from "./numbers.ts";
import { checkPlan, knownEnum } from "./plan.ts";
import { checkName, checkRange, type Problems } from "./problems.ts";
import { checkRouting } from "./routing.ts";

const MAX_STEPS = 2 ** 40;
const MAX_BATCH_SIZE = 65536;
const MAX_TOKENS = 65536;
const MAX_ACCUMULATION_STEPS = 4096;
const MAX_SPLITS = 16;
/** Datasets mixed into one run, beside its own. */
const MAX_MIXED = 31;
export const SPLIT_NAME = /^[a-z0-9_]{1,64}$/;

/** Batch and sequence sizes; 0 means the default. */
export function checkShape(
  problems: Problems,
  shape: { batchSize: bigint; maxInputTokens: bigint; maxTargetTokens: bigint },
  prefix = "",
): void {
  checkRange(problems, `${prefix}batch_size`, shape.batchSize, 0, MAX_BATCH_SIZE);
  checkRange(problems, `${prefix}max_input_tokens`, shape.maxInputTokens, 0, MAX_TOKENS);
  checkRange(problems, `${prefix}max_target_tokens`, shape.maxTargetTokens, 0, MAX_TOKENS);
}

export function checkRunSpec(problems: Problems, spec: RunSpec | undefined, field: string): void {
  if (!spec) {
    problems.add(field, "required");
    return;
  }
  checkName(problems, "models", spec.model, `${field}.model`);
  checkName(problems, "datasets", spec.dataset, `${field}.dataset`);
  if (spec.mixture) checkMixture(problems, spec.mixture, spec.dataset, `${field}.mixture`);
  checkRange(problems, `${field}.steps`, spec.steps, 1, MAX_STEPS);
  checkShape(problems, spec, `${field}.`);
  checkRange(problems, `${field}.accumulation_steps`, spec.accumulationSteps, 0, MAX_ACCUMULATION_STEPS);
  checkRange(problems, `${field}.seed`, spec.seed, 0, 2 ** 32 - 1);
  if (spec.trainable) checkPlan(problems, spec.trainable, `${field}.trainable`, false);
  if (spec.optimizer) checkOptimizer(problems, spec.optimizer, `${field}.optimizer`);
  if (spec.routing) checkRouting(problems, spec.routing, `${field}.routing`);
  if (spec.losses) checkLosses(problems, spec.losses, `${field}.losses`);
  fraction(problems, `${field}.dropout`, spec.dropout);
  fraction(problems, `${field}.expert_dropout`, spec.expertDropout);
  knownEnum(problems, `${field}.non_finite`, NonFinitePolicySchema, spec.nonFinite);
  knownEnum(problems, `${field}.batching`, BatchingSchema, spec.batching);
  knownEnum(problems, `${field}.precision`, PrecisionSchema, spec.precision);
  const { evaluation, checkpoints } = spec;
  if (evaluation) {
    checkRange(problems, `${field}.evaluation.every_steps`, evaluation.everySteps, 0, MAX_STEPS);
    checkRange(problems, `${field}.evaluation.max_examples`, evaluation.maxExamples ?? 0n, 0, MAX_STEPS);
    const { overfitting } = evaluation;
    if (overfitting) {
      const path = `${field}.evaluation.overfitting`;
      knownEnum(problems, `${path}.metric`, EvaluationMetricSchema, overfitting.metric);
      nonNegative(problems, `${path}.min_improvement`, overfitting.minImprovement);
      checkRange(problems, `${path}.patience`, overfitting.patience, 0, MAX_STEPS);
    }
    problems.require(evaluation.splits.length <= MAX_SPLITS, `${field}.evaluation.splits`, `more than ${MAX_SPLITS}`);
    evaluation.splits.slice(0, MAX_SPLITS).forEach((split, index) => {
      problems.require(SPLIT_NAME.test(split), `${field}.evaluation.splits[${index}]`, "must be [a-z0-9_]+");
    });
  }
  checkRange(problems, `${field}.checkpoints.every_steps`, checkpoints?.everySteps ?? 0n, 0, MAX_STEPS);
  checkRange(problems, `${field}.checkpoints.keep_last`, checkpoints?.keepLast ?? 1n, 1, MAX_STEPS);
  const checkpointNamed = spec.initialCheckpoint === "" || checkpointIn(spec.initialCheckpoint);
  if (!checkpointNamed) problems.add(`${field}.initial_checkpoint`, "is not `runs/{run}/checkpoints/{checkpoint}`");
}

/** @param dataset the run's own */
function checkMixture(problems: Problems, { datasets, cap }: Mixture, dataset: string, field: string): void {
  const counted = datasets.length >= 1 && datasets.length <= MAX_MIXED;
  problems.require(counted, `${field}.datasets`, `must be 1 to ${MAX_MIXED}`);
  const seen = new Set([dataset]);
  datasets.slice(0, MAX_MIXED).forEach((name, index) => {
    checkName(problems, "datasets", name, `${field}.datasets[${index}]`);
    problems.require(!seen.has(name), `${field}.datasets[${index}]`, "is trained on already");
    seen.add(name);
  });
  checkRange(problems, `${field}.cap`, cap, 0, MAX_STEPS);
}

function checkOptimizer(problems: Problems, optimizer: OptimizerOptions, field: string): void {
  positive(problems, `${field}.learning_rate`, optimizer.learningRate);
  nonNegative(problems, `${field}.max_gradient_norm`, optimizer.maxGradientNorm);
  checkAlgorithm(problems, optimizer.algorithm, field);
  if (!optimizer.schedule) return;
  knownEnum(problems, `${field}.schedule.kind`, ScheduleKindSchema, optimizer.schedule.kind);
  checkRange(problems, `${field}.schedule.warmup_steps`, optimizer.schedule.warmupSteps, 0, MAX_STEPS);
}

function checkAlgorithm(problems: Problems, algorithm: OptimizerOptions["algorithm"], optimizer: string): void {
  if (algorithm.case === undefined) return;
  const field = `${optimizer}.${algorithm.case}`;
  nonNegative(problems, `${field}.weight_decay`, algorithm.value.weightDecay);
  if (algorithm.case === "adamw") {
    const { beta1, beta2, epsilon } = algorithm.value;
    fraction(problems, `${field}.beta1`, beta1);
    fraction(problems, `${field}.beta2`, beta2);
    positive(problems, `${field}.epsilon`, epsilon);
  } else if (algorithm.case === "adafactor") {
    const { decayRate, clipThreshold, epsilon, minParameterScale, minDimensionToFactor } = algorithm.value;
    positive(problems, `${field}.decay_rate`, decayRate);
    positive(problems, `${field}.clip_threshold`, clipThreshold);
    positive(problems, `${field}.epsilon`, epsilon);
    nonNegative(problems, `${field}.min_parameter_scale`, minParameterScale);
    checkRange(problems, `${field}.min_dimension_to_factor`, minDimensionToFactor ?? 1n, 1, 2 ** 31 - 1);
  } else {
    fraction(problems, `${field}.momentum`, algorithm.value.momentum);
  }
}

function checkLosses(problems: Problems, losses: LossOptions, field: string): void {
  nonNegative(problems, `${field}.balance_coefficient`, losses.balanceCoefficient);
  nonNegative(problems, `${field}.z_coefficient`, losses.zCoefficient);
  knownEnum(problems, `${field}.f_counts`, FCountsSchema, losses.fCounts);
  knownEnum(problems, `${field}.layer_reduction`, LayerReductionSchema, losses.layerReduction);
  nonNegative(problems, `${field}.vocabulary_z_coefficient`, losses.vocabularyZCoefficient);
  fraction(problems, `${field}.label_smoothing`, losses.labelSmoothing);
}
