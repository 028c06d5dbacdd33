// What a fork changes, from the flags of a run: the fields that were said are the mask, zeros included.

import type { MessageInitShape } from "@bufbuild/protobuf";
import type { ForkRunRequestSchema } from "../../proto/gen/thaw/v1/run_service_pb.ts";
import { givenRuleFlags, type OptimizerFlags, type RuleFlag } from "./optimizer_flags.ts";
import { type PlanFlags, planOf } from "./plan.ts";
import { ROUTING_PATHS, type RoutingFlags } from "./routing_flags.ts";
import { createRunRequest, type RunFlags } from "./run_flags.ts";
import { UsageError } from "./session.ts";

export type ForkFlags = RunFlags & { readonly resetOptimizerState?: boolean };

/** What a fork has from its checkpoint, or cannot tell apart from silence. */
const REFUSED = ["spec", "model", "fromCheckpoint"] as const;
type AboutTheRun = "id" | "name" | "label" | "queuePriority" | "optimizer" | (typeof REFUSED)[number];

/** Flag → field of the spec. */
const PATHS: Record<Exclude<keyof RunFlags, keyof (PlanFlags & RoutingFlags) | RuleFlag | AboutTheRun>, string> = {
  dataset: "dataset",
  mix: "mixture.datasets",
  mixingCap: "mixture.cap",
  steps: "steps",
  batchSize: "batch_size",
  batching: "batching",
  precision: "precision",
  accumulationSteps: "accumulation_steps",
  maxInputTokens: "max_input_tokens",
  maxTargetTokens: "max_target_tokens",
  seed: "seed",
  dropout: "dropout",
  expertDropout: "expert_dropout",
  nonFinite: "non_finite",
  learningRate: "optimizer.learning_rate",
  maxGradientNorm: "optimizer.max_gradient_norm",
  schedule: "optimizer.schedule.kind",
  warmupSteps: "optimizer.schedule.warmup_steps",
  balanceCoefficient: "losses.balance_coefficient",
  zCoefficient: "losses.z_coefficient",
  fCounts: "losses.f_counts",
  layerReduction: "losses.layer_reduction",
  vocabularyZCoefficient: "losses.vocabulary_z_coefficient",
  labelSmoothing: "losses.label_smoothing",
  evaluateEvery: "evaluation.every_steps",
  evaluateExamples: "evaluation.max_examples",
  evaluateSplits: "evaluation.splits",
  evaluateAtStart: "evaluation.at_start",
  watchOverfitting: "evaluation.overfitting.metric",
  patience: "evaluation.overfitting.patience",
  keepBest: "evaluation.overfitting.keep_best",
  checkpointEvery: "checkpoints.every_steps",
};

/** The ForkRunRequest that the flags say. @throws UsageError for a flag that a fork does not have. */
export async function forkRunRequest(
  sourceCheckpoint: string,
  flags: ForkFlags,
): Promise<MessageInitShape<typeof ForkRunRequestSchema>> {
  const refused = REFUSED.find((name) => flags[name] !== undefined);
  if (refused) throw new UsageError("--spec, --model and --from-checkpoint are not of a fork: it has its checkpoint's");
  const { resetOptimizerState } = flags;
  const request = await createRunRequest(flags);
  const paths = Object.entries({ ...PATHS, ...ROUTING_PATHS }).flatMap(([name, path]) =>
    flags[name as keyof typeof PATHS | keyof RoutingFlags] === undefined ? [] : path,
  );
  if (planOf(flags)) paths.push("trainable");
  paths.push(...rulePaths(flags, request.spec.optimizer?.algorithm.case ?? ""));
  return { ...request, sourceCheckpoint, updateMask: { paths }, resetOptimizerState };
}

/** The rule's fields that were said; the whole rule where it is only named. */
function rulePaths(flags: OptimizerFlags, rule: string): string[] {
  const given = givenRuleFlags(flags).map(
    (name) => `optimizer.${rule}.${name.replace(/[A-Z]/g, (c) => `_${c.toLowerCase()}`)}`,
  );
  return given.length === 0 && flags.optimizer ? [`optimizer.${rule}`] : given;
}
