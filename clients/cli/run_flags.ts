// What a run is told, from a JSON file and flags: the file is a RunSpec in protobuf JSON, flags given beside it win. Only
// what is said is sent; defaults are the server's.

import { readFile } from "node:fs/promises";
import process from "node:process";
import { text } from "node:stream/consumers";
import { create, fromJson, type JsonValue } from "@bufbuild/protobuf";
import type { Command } from "commander";
import { TrainablePlanSchema } from "../../proto/gen/thaw/v1/group_pb.ts";
import {
  type Batching,
  BatchingSchema,
  CheckpointPolicySchema,
  type EvaluationMetric,
  EvaluationMetricSchema,
  EvaluationPolicySchema,
  type FCounts,
  FCountsSchema,
  type LayerReduction,
  LayerReductionSchema,
  LossOptionsSchema,
  MixtureSchema,
  type NonFinitePolicy,
  NonFinitePolicySchema,
  OverfittingWatchSchema,
  type Precision,
  PrecisionSchema,
  type Priority,
  PrioritySchema,
  type RunSpec,
  RunSpecSchema,
} from "../../proto/gen/thaw/v1/run_pb.ts";
import { resource } from "./format.ts";
import { assignOptimizer, type OptimizerFlags, optimizerFlags } from "./optimizer_flags.ts";
import { assign, enumValue, integer, keyValue, real } from "./parse.ts";
import { type PlanFlags, planFlags, planOf } from "./plan.ts";
import { assignRouting, type RoutingFlags, routingFlags } from "./routing_flags.ts";
import { UsageError } from "./session.ts";

export interface RunFlags extends PlanFlags, OptimizerFlags, RoutingFlags {
  readonly spec?: string;
  readonly id?: string;
  readonly name?: string;
  readonly label?: Record<string, string>;
  readonly queuePriority?: Priority;
  readonly model?: string;
  readonly dataset?: string;
  readonly mix?: readonly string[];
  readonly mixingCap?: bigint;
  readonly steps?: bigint;
  readonly batchSize?: bigint;
  readonly batching?: Batching;
  readonly precision?: Precision;
  readonly accumulationSteps?: bigint;
  readonly maxInputTokens?: bigint;
  readonly maxTargetTokens?: bigint;
  readonly seed?: bigint;
  readonly dropout?: number;
  readonly expertDropout?: number;
  readonly balanceCoefficient?: number;
  readonly zCoefficient?: number;
  readonly fCounts?: FCounts;
  readonly layerReduction?: LayerReduction;
  readonly vocabularyZCoefficient?: number;
  readonly labelSmoothing?: number;
  readonly nonFinite?: NonFinitePolicy;
  readonly evaluateEvery?: bigint;
  readonly evaluateExamples?: bigint;
  readonly evaluateSplits?: string[];
  readonly evaluateAtStart?: boolean;
  readonly watchOverfitting?: EvaluationMetric;
  readonly patience?: bigint;
  readonly keepBest?: boolean;
  readonly checkpointEvery?: bigint;
  readonly fromCheckpoint?: string;
}

/** Adds the flags of a run to a command. */
export function runFlags(command: Command): Command {
  command
    .option("--spec <file>", "a RunSpec as JSON; - reads stdin; flags win over it")
    .option("--id <id>", "the id in runs/{run}; chosen by the server when left out")
    .option("--name <text>", "a name for people")
    .option("--label <key=value>", "a label; may be repeated", keyValue)
    .option("--queue-priority <level>", "what it goes before on the GPU: low, normal, high", enumValue(PrioritySchema))
    .option("--model <name>", "the model to start from")
    .option("--dataset <name>", "the data")
    .option("--mix <names>", "further datasets to train on, separated by commas", (names: string) => names.split(","))
    .option("--mixing-cap <n>", "with --mix: at most so many examples of each count in its share", integer)
    .option("--steps <n>", "optimizer steps", integer)
    .option("--batch-size <n>", "examples per batch", integer)
    .option("--batching <how>", "padded, packed (the batch size counts rows), bucketed", enumValue(BatchingSchema))
    .option("--precision <how>", "f32, mixed (products of f16 operands, loss scaling)", enumValue(PrecisionSchema))
    .option("--accumulation-steps <n>", "batches per optimizer step", integer)
    .option("--max-input-tokens <n>", "tokens an input is cut to", integer)
    .option("--max-target-tokens <n>", "tokens a target is cut to", integer)
    .option("--seed <n>", "seeds data order and dropout", integer);
  optimizerFlags(planFlags(command))
    .option("--dropout <x>", "dropout rate", real)
    .option("--expert-dropout <x>", "of the experts' hidden activation; the dropout rate when left out", real);
  return routingFlags(command)
    .option("--balance-coefficient <x>", "of the load-balancing loss", real)
    .option("--z-coefficient <x>", "of the router z-loss", real)
    .option("--f-counts <choices>", "what the load-balancing loss counts: top1, all_k", enumValue(FCountsSchema))
    .option("--layer-reduction <rule>", "of router losses: sum, mean, pooled", enumValue(LayerReductionSchema))
    .option("--vocabulary-z-coefficient <x>", "of the z-loss of the vocabulary logits", real)
    .option("--label-smoothing <x>", "probability mass spread over the vocabulary", real)
    .option("--evaluate-every <n>", "steps between evaluations; 0 only after the last", integer)
    .option("--evaluate-examples <n>", "examples of each split at most; 0 means all", integer)
    .option("--evaluate-splits <names>", "splits, separated by commas", (names: string) => names.split(","))
    .option(
      "--non-finite <policy>",
      "a step whose loss or gradient is not finite: stop the run, skip the step, or rollback to a checkpoint",
      enumValue(NonFinitePolicySchema),
    )
    .option("--evaluate-at-start", "also before the first step")
    .option(
      "--watch-overfitting <metric>",
      "report train and validation at every evaluation; best by loss, token_accuracy, exact_match, accuracy or primary",
      enumValue(EvaluationMetricSchema),
    )
    .option("--patience <n>", "with the watch: end after so many evaluations without improvement", integer)
    .option("--keep-best", "with the watch: keep a checkpoint of the best evaluation")
    .option("--checkpoint-every <n>", "steps between checkpoints; 0 only after the last", integer)
    .option("--from-checkpoint <name>", "start from the parameters of runs/{run}/checkpoints/{checkpoint}");
}

/** The CreateRunRequest that the flags say. @throws UsageError when the file is not a RunSpec. */
export async function createRunRequest(flags: RunFlags) {
  const spec = flags.spec === undefined ? create(RunSpecSchema) : await readSpec(flags.spec);
  const plan = planOf(flags);
  if (plan) spec.trainable = create(TrainablePlanSchema, plan);
  if (flags.model !== undefined) spec.model = resource("models", flags.model);
  if (flags.dataset !== undefined) spec.dataset = resource("datasets", flags.dataset);
  const mixture = spec.mixture ?? create(MixtureSchema);
  const datasets = flags.mix?.map((name) => resource("datasets", name));
  if (assign(mixture, { datasets, cap: flags.mixingCap })) spec.mixture = mixture;
  assign(spec, {
    steps: flags.steps,
    batchSize: flags.batchSize,
    batching: flags.batching,
    precision: flags.precision,
    accumulationSteps: flags.accumulationSteps,
    maxInputTokens: flags.maxInputTokens,
    maxTargetTokens: flags.maxTargetTokens,
    seed: flags.seed,
    dropout: flags.dropout,
    expertDropout: flags.expertDropout,
    nonFinite: flags.nonFinite,
    initialCheckpoint: flags.fromCheckpoint,
  });

  assignOptimizer(spec, flags);
  assignRouting(spec, flags);
  const losses = spec.losses ?? create(LossOptionsSchema);
  const { balanceCoefficient, zCoefficient, vocabularyZCoefficient, labelSmoothing } = flags;
  const { fCounts, layerReduction } = flags;
  const coefficients = { balanceCoefficient, zCoefficient, vocabularyZCoefficient, labelSmoothing };
  if (assign(losses, { ...coefficients, fCounts, layerReduction })) spec.losses = losses;
  const evaluation = spec.evaluation ?? create(EvaluationPolicySchema);
  const told = {
    everySteps: flags.evaluateEvery,
    maxExamples: flags.evaluateExamples,
    splits: flags.evaluateSplits,
    atStart: flags.evaluateAtStart,
  };
  const watch = evaluation.overfitting ?? create(OverfittingWatchSchema);
  const { watchOverfitting: metric, patience, keepBest } = flags;
  if (assign(watch, { metric, patience, keepBest })) evaluation.overfitting = watch;
  if (assign(evaluation, told) || evaluation.overfitting) spec.evaluation = evaluation;
  const checkpoints = spec.checkpoints ?? create(CheckpointPolicySchema);
  if (assign(checkpoints, { everySteps: flags.checkpointEvery })) spec.checkpoints = checkpoints;

  const { id = "", name = "", label = {}, queuePriority } = flags;
  return { runId: id, displayName: name, labels: label, priority: queuePriority, spec };
}

async function readSpec(path: string): Promise<RunSpec> {
  const json = path === "-" ? await text(process.stdin) : await readFile(path, "utf8");
  try {
    return fromJson(RunSpecSchema, JSON.parse(json) as JsonValue);
  } catch (error) {
    throw new UsageError(`${path === "-" ? "stdin" : path} is no RunSpec: ${(error as Error).message}`);
  }
}
