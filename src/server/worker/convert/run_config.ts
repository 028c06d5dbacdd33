// OpenRun in the trainer's terms: what the engine is told, and what the step loop does around its steps.

import { create } from "@bufbuild/protobuf";
import { type OverfittingWatch, RunSpecSchema } from "../../../../proto/gen/thaw/v1/run_pb.ts";
import { type OpenRun, type RunDataset, RunDatasetSchema } from "../../../../proto/gen/thaw/worker/v1/worker_pb.ts";
import type { Scoring } from "../../../trainer/tasks/task.ts";
import {
  InputError,
  type LossOptions,
  type OptimizerAlgorithm,
  type OptimizerOptions,
  type Problem,
  type RunConfig,
} from "../../../trainer/types.ts";
import * as enums from "./enums.ts";
import { planFromProto } from "./plan.ts";
import { routingOptions } from "./routing_options.ts";
import { type FilledRunSpec, fillRunSpec } from "./run_spec.ts";
import { scoringFromProto } from "./task.ts";

/** What happens around the steps of a run. */
export interface RunPolicy {
  readonly steps: number;
  /** 0 = only after the last step. */
  readonly evaluateEverySteps: number;
  readonly evaluateAtStart: boolean;
  readonly evaluateExamples: number;
  /** What becomes of a run after a step without a finite loss and gradient. */
  readonly nonFinite: enums.NonFinitePolicy;
  readonly overfitting: OverfittingWatch | undefined;
  /** The overfitting watch takes the first. */
  readonly evaluateSplits: readonly EvaluatedSplit[];
  /** 0 = only after the last step. */
  readonly checkpointEverySteps: number;
}

export interface EvaluatedSplit {
  /** `datasets/{dataset}` */
  readonly dataset: string;
  readonly split: string;
  readonly file: string;
  readonly scoring: Scoring | undefined;
}

/**
 * Starting from a checkpoint means reading it as the model: a checkpoint is a whole Hugging Face directory.
 * @throws InputError naming every split without a file
 */
export function openRunToConfig(open: OpenRun): { config: RunConfig; policy: RunPolicy } {
  const dataset = open.datasets[0] ?? create(RunDatasetSchema);
  const spec = fillRunSpec(open.spec ?? create(RunSpecSchema), Object.keys(dataset.splitFiles));
  const problems: Problem[] = [];
  const fileOf = ({ splitFiles }: RunDataset, split: string, field: string): string => {
    const file = splitFiles[split];
    if (file === undefined) problems.push({ field, message: `the dataset has no split "${split}"` });
    return file ?? "";
  };
  const datasets = [dataset, ...open.datasets.slice(1)];
  const trainFiles = datasets.map((one, i) =>
    fileOf(one, "train", i === 0 ? "spec.dataset" : `spec.mixture.datasets[${i - 1}]`),
  );
  const evaluateSplits = datasets.flatMap((one): EvaluatedSplit[] => {
    const scoring = scoringFromProto(one.task);
    const splits = spec.evaluation.splits.map((split, i) => ({ split, field: `spec.evaluation.splits[${i}]` }));
    // What is asked of the run's own dataset must be there; of the others, what is there is scored too.
    const present = one === dataset ? splits : splits.filter(({ split }) => split in one.splitFiles);
    return present.map(({ split, field }) => ({ dataset: one.name, split, scoring, file: fileOf(one, split, field) }));
  });
  if (problems.length > 0) throw new InputError(problems);
  return {
    config: {
      modelDirectory: open.initialDirectory || open.modelDirectory,
      trainFiles,
      mixingCap: Number(spec.mixture?.cap ?? 0n) || undefined,
      evaluationFiles: evaluateSplits.map(({ file }) => file),
      steps: Number(spec.steps),
      batchSize: Number(spec.batchSize),
      maxInputTokens: Number(spec.maxInputTokens),
      maxTargetTokens: Number(spec.maxTargetTokens),
      seed: Number(spec.seed),
      trainable: planFromProto(spec.trainable, "spec.trainable"),
      ...trainingOptions(spec),
      passedOverSteps: Number(open.passedOverSteps),
    },
    policy: {
      steps: Number(spec.steps),
      evaluateEverySteps: Number(spec.evaluation.everySteps),
      evaluateAtStart: spec.evaluation.atStart,
      evaluateExamples: Number(spec.evaluation.maxExamples),
      evaluateSplits,
      nonFinite: enums.nonFinitePolicy.fromProto(spec.nonFinite, "spec.non_finite"),
      overfitting: spec.evaluation.overfitting,
      checkpointEverySteps: Number(spec.checkpoints.everySteps),
    },
  };
}

/** How a run of this specification routes, loses and updates. */
export function trainingOptions(
  spec: FilledRunSpec,
): Pick<
  RunConfig,
  "optimizer" | "routing" | "losses" | "dropout" | "expertDropout" | "accumulationSteps" | "batching" | "precision"
> {
  return {
    optimizer: optimizerOptions(spec),
    routing: routingOptions(spec.routing),
    losses: lossOptions(spec),
    dropout: spec.dropout,
    expertDropout: spec.expertDropout,
    accumulationSteps: Number(spec.accumulationSteps),
    batching: enums.batching.fromProto(spec.batching, "spec.batching"),
    precision: enums.precision.fromProto(spec.precision, "spec.precision"),
  };
}

const optimizerOptions = ({ optimizer }: FilledRunSpec): OptimizerOptions => ({
  algorithm: optimizerAlgorithm(optimizer.algorithm),
  learningRate: optimizer.learningRate,
  maxGradientNorm: optimizer.maxGradientNorm,
  schedule: enums.schedule.fromProto(optimizer.schedule!.kind, "spec.optimizer.schedule.kind"),
  warmupSteps: Number(optimizer.schedule!.warmupSteps),
});

/** @param algorithm with every field filled in */
function optimizerAlgorithm(algorithm: FilledRunSpec["optimizer"]["algorithm"]): OptimizerAlgorithm {
  switch (algorithm.case) {
    case "adamw": {
      const { beta1, beta2, epsilon, weightDecay } = algorithm.value;
      return { kind: "adamw", beta1: beta1!, beta2: beta2!, epsilon: epsilon!, weightDecay: weightDecay! };
    }
    case "adafactor": {
      const { decayRate, clipThreshold, epsilon, minParameterScale, minDimensionToFactor, weightDecay } =
        algorithm.value;
      return {
        kind: "adafactor",
        decayRate: decayRate!,
        clipThreshold: clipThreshold!,
        epsilon: epsilon!,
        minParameterScale: minParameterScale!,
        minDimensionToFactor: Number(minDimensionToFactor),
        weightDecay: weightDecay!,
      };
    }
    case "sgd": {
      const { momentum, weightDecay } = algorithm.value;
      return { kind: "sgd", momentum: momentum!, weightDecay: weightDecay! };
    }
    case undefined:
      throw new Error("fillRunSpec chooses an algorithm");
  }
}

const lossOptions = ({ losses }: FilledRunSpec): LossOptions => ({
  balanceCoefficient: losses.balanceCoefficient,
  zCoefficient: losses.zCoefficient,
  fCounts: enums.fCounts.fromProto(losses.fCounts, "spec.losses.f_counts"),
  layerReduction: enums.layerReduction.fromProto(losses.layerReduction, "spec.losses.layer_reduction"),
  vocabularyZCoefficient: losses.vocabularyZCoefficient,
  labelSmoothing: losses.labelSmoothing,
});
