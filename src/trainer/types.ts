// The trainer's vocabulary: what a run is told, and what it reports. Plain data only, so that it crosses a process
// boundary and can be written to an event log. The gRPC contract (proto/thaw/v1) says the same in its own types.

import type { OnEncoding } from "./run/encoded_files.ts";
import type { Scoring } from "./tasks/task.ts";

export const PARAMETER_KINDS = [
  "embedding",
  "attention.self",
  "attention.cross",
  "ffn",
  "expert",
  "router",
  "norm",
  "head",
] as const;
/** Every parameter has exactly one kind. The relative position bias is part of `attention.self`. */
export type ParameterKind = (typeof PARAMETER_KINDS)[number];

export const STACKS = ["encoder", "decoder"] as const;
export type Stack = (typeof STACKS)[number];

export const PRESETS = ["all", "non_moe", "moe", "attention", "ffn"] as const;
export type Preset = (typeof PRESETS)[number];

/** Matches parameters by structure, never by name. Empty lists match everything; all conditions must hold. */
export interface Selector {
  readonly kinds: readonly ParameterKind[];
  readonly stacks: readonly Stack[];
  /** Inclusive layer range inside a stack. */
  readonly layers?: { readonly first: number; readonly last: number };
  /** Expert ids; a selector with experts matches only `expert` parameters. */
  readonly experts: readonly number[];
}

/** What is trainable: a preset, then selectors added, then selectors taken away, then the router switched. */
export interface TrainableSelection {
  readonly preset?: Preset;
  readonly add: readonly Selector[];
  readonly remove: readonly Selector[];
  readonly router?: boolean;
}

/** What becomes of the optimizer state of a parameter when it is frozen: kept on the host, or dropped. */
export type OptimizerStatePolicy = "keep" | "drop";
/** Whether router losses stay on when every router is frozen. */
export type RouterLossPolicy = "keep" | "off";

export interface TrainablePlan {
  readonly selection: TrainableSelection;
  readonly optimizerState: OptimizerStatePolicy;
  readonly routerLosses: RouterLossPolicy;
}

/** How one parameter tensor stands under a plan. */
export interface MatchedTensor {
  readonly name: string;
  readonly kind: ParameterKind;
  readonly stack?: Stack;
  readonly layer?: number;
  readonly shape: readonly number[];
  /** Trainable experts, where only some of the tensor's experts train; absent when all do. */
  readonly experts?: readonly number[];
  readonly parameters: number;
}

/** What a plan costs per training step; all figures planned, before anything is allocated. */
export interface PlanCost {
  readonly trainableParameters: number;
  readonly totalParameters: number;
  readonly parameterBytes: number;
  readonly gradientBytes: number;
  readonly optimizerBytes: number;
  /** Beyond what gradients come to lie in. */
  readonly activationBytes: number;
  readonly peakBytes: number;
  readonly forwardFlops: number;
  readonly backwardFlops: number;
  readonly dispatches: number;
  readonly weightGradientDispatches: number;
  /** From the measured rate of past steps of this run; absent before the first. */
  readonly predictedStepSeconds?: number;
}

export interface TrainableReport {
  readonly matched: readonly MatchedTensor[];
  readonly before: PlanCost;
  readonly after: PlanCost;
  /** Parameters whose optimizer state was restored from the host, started fresh, kept on the host, dropped. */
  readonly state: {
    readonly restored: readonly string[];
    readonly fresh: readonly string[];
    readonly kept: readonly string[];
    readonly dropped: readonly string[];
  };
  /** First optimizer step (0-based) that runs under the new plan. */
  readonly effectiveStep: number;
}

export interface CapacityRule {
  readonly rule: "dropless" | "factor" | "factor_k" | "fixed";
  /** Capacity factor, for `factor` and `factor_k`. */
  readonly factor?: number;
  /** Slots per expert and group, for `fixed`. */
  readonly slots?: number;
}

/** How a sparse layer routes (moe-spec section 1); an optional field left out is the model's own, or the default. */
export interface RoutingOptions {
  readonly trainCapacity: CapacityRule;
  readonly evalCapacity: CapacityRule;
  /**
   * Tokens compete for slots, and router losses are averaged, inside their group: the batch, a sequence, or so many
   * consecutive tokens of the batch, where the last group may be shorter and then has fewer slots.
   */
  readonly group: "batch" | "sequence" | { readonly tokens: number };
  /** Reproduces Hugging Face Switch, where padding is routed and takes slots. */
  readonly routePadding: boolean;
  /** Router input noise U[1-eps, 1+eps], training only; 0 = off. */
  readonly jitter: number;
  /** Experts per token; the model's. */
  readonly topK?: number;
  /** Whether the chosen gates are divided by their sum; the model's. */
  readonly gateNormalization?: "none" | "top_k";
  /** `random`: choice i > 1 is used with probability min(1, gate_i / 0.2), training only. Default: `always`. */
  readonly secondExpertPolicy?: "always" | "random";
  /** Who takes a slot first; `batch_prioritized` by descending top-1 probability, encoder only. Default: `position`. */
  readonly priority?: "position" | "batch_prioritized";
  /**
   * Who chooses in the encoder: each token its experts, or each expert as many tokens as it has slots, by the token's
   * probability for it (Zhou et al. 2022, arXiv 2202.09368). In a decoder that would show a token its future, so there
   * tokens choose. Default: `tokens`.
   */
  readonly encoderChoice?: "tokens" | "experts";
  /**
   * Balances loads without a loss (arXiv 2408.15664): tokens choose by probability + a bias of the expert, which moves by
   * `updateRate` towards the mean load after each step that trains the layer's router. Default: none learns; a model that
   * has biases is chosen by them all the same.
   */
  readonly selectionBias?: { readonly updateRate: number };
}

/** What is minimised besides the cross-entropy (moe-spec section 2). */
export interface LossOptions {
  readonly balanceCoefficient: number;
  readonly zCoefficient: number;
  /** What f_e counts: each token's first choice (papers), or every choice. Default: `top1`. */
  readonly fCounts?: "top1" | "all_k";
  /** How layers add up: `sum` or `mean` of their losses, or one loss of f and P `pooled` over layers. Default: `sum`. */
  readonly layerReduction?: "sum" | "mean" | "pooled";
  /** Coefficient of mean(logsumexp(vocabulary logits)²), t5x z_loss. Default: 0, off. */
  readonly vocabularyZCoefficient?: number;
  /** Probability mass of the target spread evenly over the vocabulary, in [0, 1). Default: 0. */
  readonly labelSmoothing?: number;
}

/** How examples of different lengths share batches: see data/batching.ts. */
export type Batching = "padded" | "packed" | "bucketed";

export interface AdamW {
  readonly kind: "adamw";
  readonly beta1: number;
  readonly beta2: number;
  readonly epsilon: number;
  /** Decoupled. */
  readonly weightDecay: number;
}

/**
 * Shazeer and Stern 2018, without first moment. Second moments are per expert; the root mean squares of updates and
 * parameters are over a whole tensor, its trainable experts together (as in optax, where the expert axis is one of three).
 */
export interface Adafactor {
  readonly kind: "adafactor";
  /** Exponent of the second moment's decay 1 - t^-decayRate. */
  readonly decayRate: number;
  /** Largest root mean square of an update before the learning rate. */
  readonly clipThreshold: number;
  /** Added to squared gradients. */
  readonly epsilon: number;
  /** Steps are scaled by max(rms(parameter), this). */
  readonly minParameterScale: number;
  /** Second moments are factored where both dimensions are at least this. */
  readonly minDimensionToFactor: number;
  /** Decoupled, and as in optax not multiplied by the learning rate. */
  readonly weightDecay: number;
}

export interface Sgd {
  readonly kind: "sgd";
  /** In [0, 1); 0 keeps no state. */
  readonly momentum: number;
  /** Decoupled. */
  readonly weightDecay: number;
}

export type OptimizerAlgorithm = AdamW | Adafactor | Sgd;

export interface OptimizerOptions {
  readonly algorithm: OptimizerAlgorithm;
  readonly learningRate: number;
  /** Clip by global norm over trainable parameters; 0 = off. */
  readonly maxGradientNorm: number;
  readonly schedule: "constant" | "linear" | "inverse_sqrt" | "cosine";
  readonly warmupSteps: number;
}

/** Everything that defines a run. Paths are absolute and already checked by the caller. */
export interface RunConfig {
  readonly modelDirectory: string;
  /** At least one: JSON Lines, or plain text (.txt). Several are mixed in proportion to their examples (data/mixture.ts). */
  readonly trainFiles: readonly string[];
  /** At most so many examples of each file count in the proportions. Default: all. */
  readonly mixingCap?: number;
  /** Tokenised before the first step, and what their evaluation needs is planned from the outset. */
  readonly evaluationFiles?: readonly string[];
  readonly steps: number;
  /** Rows of a batch. */
  readonly batchSize: number;
  /** With packed batches, rows of up to `maxInputTokens` and `maxTargetTokens`. Default: `padded`. */
  readonly batching?: Batching;
  /** Batches whose gradients make one optimizer step. Default: 1. */
  readonly accumulationSteps?: number;
  readonly maxInputTokens: number;
  readonly maxTargetTokens: number;
  readonly seed: number;
  readonly trainable: TrainablePlan;
  readonly optimizer: OptimizerOptions;
  readonly routing: RoutingOptions;
  readonly losses: LossOptions;
  readonly dropout: number;
  /** Dropout of the experts' hidden activation. Default: `dropout`. */
  readonly expertDropout?: number;
  /**
   * `mixed`: linear and expert products take their operands rounded to f16 and sum in f32, on matrix units where there are
   * some, and attention's too where there are; under dynamic loss scaling. What they read is kept as f16 where the
   * model's widths are multiples of 8; all else is f32. Default: `f32`.
   */
  readonly precision?: "f32" | "mixed";
  /**
   * Steps' worth of batches to pass over before the first step, from the beginning of the data or from where a checkpoint
   * left off; checkpoints remember it. Default: 0.
   */
  readonly passedOverSteps?: number;
}

export interface StepMetrics {
  /** Optimizer steps completed, counting this one. */
  readonly step: number;
  /** Cross-entropy per target token, without router losses. */
  readonly loss: number;
  /** Everything the gradient was taken of. */
  readonly totalLoss: number;
  /** Mean squared log-sum-exp of the vocabulary logits; absent while its coefficient is 0. */
  readonly vocabularyZLoss?: number;
  /** Cross-entropy against the smoothed targets; absent without label smoothing. */
  readonly smoothedLoss?: number;
  readonly gradientNorm: number;
  /**
   * In mixed precision: what the gradient of the loss was multiplied with, and whether it overflowed, so that the step
   * changed nothing.
   */
  readonly lossScale?: { readonly scale: number; readonly overflowed: boolean };
  readonly learningRate: number;
  readonly tokens: number;
  readonly stepSeconds: number;
  readonly layers: readonly RouterLayerMetrics[];
}

export interface RouterLayerMetrics {
  readonly stack: Stack;
  readonly layer: number;
  readonly balanceLoss: number;
  readonly zLoss: number;
  /** Share of routed assignments per expert, before drops; sums to 1. */
  readonly load: readonly number[];
  /** Assignments dropped by capacity. */
  readonly dropped: number;
  /** Assignments routed (kept or dropped). */
  readonly assignments: number;
  /** Of each expert: after a training step, or as an evaluation chose by it. Absent where a layer has none. */
  readonly selectionBias?: readonly number[];
  /**
   * Tokens that chose both experts of a pair, used or dropped: upper triangle of [experts, experts] row by row, the diagonal
   * the tokens that chose the expert. Absent where a token has one expert, and in layers of more than 64.
   */
  readonly coActivation?: readonly number[];
}

export type RouteSource = "training" | "evaluation" | "generation";

/** One layer's routing of one batch. */
export interface RouteBatch {
  readonly source: RouteSource;
  readonly step: number;
  readonly stack: Stack;
  readonly layer: number;
  readonly experts: number;
  /** Choices per token; where experts choose, the most experts that a token of the batch has. */
  readonly topK: number;
  /** Index of each token's example in its data file. */
  readonly exampleIds: Uint32Array;
  /** Position of each token in its sequence. */
  readonly positions: Uint32Array;
  readonly tokenIds: Uint32Array;
  /** [tokens, topK], best choice first; `experts` is none, where experts choose and fewer than topK took the token. */
  readonly expertIds: Uint16Array;
  /** [tokens, topK] */
  readonly gates: Float32Array;
  /** [tokens, topK]; 0 = dropped by capacity, a later expert that the random policy did not use, or none. */
  readonly kept: Uint8Array;
}

export interface EvaluationResult {
  readonly step: number;
  readonly split: string;
  readonly examples: number;
  readonly loss: number;
  /** Share of target tokens predicted under teacher forcing. */
  readonly tokenAccuracy: number;
  /** Share of examples whose greedy generation equals the target text. */
  readonly exactMatch: number;
  /** Same as exactMatch where targets are class labels; share of examples with every target token right otherwise. */
  readonly accuracy: number;
  /** Scores of the generated texts by name (tasks/score.ts): the task's, where there is one; empty for token ids. */
  readonly metrics: Readonly<Record<string, number>>;
  /** The task's first metric; absent without a task. */
  readonly primaryMetric?: string;
  readonly layers: readonly RouterLayerMetrics[];
  readonly seconds: number;
}

/** How the next token is chosen. */
export type Decoding =
  /** The most probable token, the lower id among equals. */
  | { readonly kind: "greedy" }
  /** Drawn from softmax(logits / temperature), cut to the most probable tokens that hold `topP` of it. */
  | { readonly kind: "sample"; readonly temperature: number; readonly topP: number; readonly seed: number }
  /** Beam search; the score of a sequence is its log-probability over length^lengthPenalty. */
  | { readonly kind: "beam"; readonly beams: number; readonly lengthPenalty: number };

export interface GenerateOptions {
  readonly maxNewTokens: number;
  /** Default: greedy. */
  readonly decoding?: Decoding;
}

export interface Generation {
  readonly input: string;
  readonly text: string;
  readonly inputIds: readonly number[];
  readonly tokenIds: readonly number[];
  /** Of beam search: log-probability over length^lengthPenalty. */
  readonly score?: number;
  readonly routes: readonly RouteBatch[];
}

/** A caller's mistake; `problems` lists every one found, with a field path where there is one. */
export class InputError extends Error {
  override name = "InputError";
  readonly problems: readonly Problem[];
  constructor(problems: readonly Problem[]) {
    super(problems.map((p) => (p.field ? `${p.field}: ${p.message}` : p.message)).join("\n"));
    this.problems = problems;
  }
}

export interface Problem {
  /** Field path in the caller's terms, `lower_snake.dotted`, or "" */
  readonly field: string;
  readonly message: string;
}

/** The plan needs more device memory than there is. */
export class MemoryError extends Error {
  override name = "MemoryError";
  readonly neededBytes: number;
  readonly availableBytes: number;
  /** The largest batch size that would fit, 0 when none does. */
  readonly fittingBatchSize: number;
  constructor(neededBytes: number, availableBytes: number, fittingBatchSize: number) {
    super(
      `needs ${neededBytes} bytes, ${availableBytes} available` +
        (fittingBatchSize > 0 ? `; a batch size of ${fittingBatchSize} would fit` : ""),
    );
    this.neededBytes = neededBytes;
    this.availableBytes = availableBytes;
    this.fittingBatchSize = fittingBatchSize;
  }
}

/** What a model directory holds, read on the host without a GPU. */
export interface ModelDescription {
  readonly modelType: string;
  readonly parameters: number;
  readonly config: Readonly<Record<string, unknown>>;
  readonly groups: readonly GroupDescription[];
  readonly tensors: readonly MatchedTensor[];
}

/** All parameters of one kind. */
export interface GroupDescription {
  readonly kind: ParameterKind;
  readonly tensors: number;
  readonly parameters: number;
  readonly bytes: number;
}

/** What the training data turned out to be. */
export interface DataStatistics {
  readonly examples: number;
  readonly truncatedInputs: number;
  readonly truncatedTargets: number;
  /** Share of the positions of batches, input and target, that hold no token. */
  readonly padding: number;
  /** Each longer than the one before. */
  readonly shapes: readonly TrainingShape[];
}

/** Lengths of the rows of training batches. */
export interface TrainingShape {
  readonly input: number;
  readonly target: number;
  /** The share of the batches that have it. */
  readonly share: number;
}

/** An example that a caller drives a run with. */
export type DrivenExample = (
  | { readonly input: string; readonly target: string }
  | { readonly inputIds: readonly number[]; readonly targetIds: readonly number[] }
) & {
  /**
   * Routes of a pass over the same tokens, as a batch or a generation recorded them: each token takes the experts it took
   * there, with the gates that its router gives them now. Tokens without a record choose, and capacity holds as ever.
   */
  readonly routes?: readonly RouteBatch[];
};

export interface DrivenOptions {
  /** Of the summed cross-entropy. Default: the batch's target tokens. */
  readonly divisor?: number;
  /** Whether to return routes. Default: no. */
  readonly recordRoutes?: boolean;
}

/** What a batch came to whose gradients were added. */
export interface DrivenBatch {
  /** Batches in the gradients now. */
  readonly batches: number;
  /** Cross-entropy per target token of the batch. */
  readonly loss: number;
  readonly targetTokens: number;
  /** Cross-entropy of each target token, by example. */
  readonly tokenLosses: readonly Float32Array[];
  readonly truncatedInputs: number;
  readonly truncatedTargets: number;
  readonly layers: readonly RouterLayerMetrics[];
  /** By example, one entry per sparse layer; empty unless asked for. */
  readonly routes: readonly (readonly RouteBatch[])[];
}

/**
 * A run in progress on the device. Methods are called one at a time, except that `trainStep` may be called again while
 * one earlier step is in flight.
 */
export interface TrainingRun {
  /** Optimizer steps completed. */
  readonly step: number;
  readonly cost: PlanCost;
  /** The freeze plan in force, and what trains under it. */
  readonly plan: TrainablePlan;
  readonly trainable: readonly MatchedTensor[];
  /** Kernels of a training step and how often it dispatches each. */
  readonly kernels: ReadonlyMap<string, number>;
  readonly data: DataStatistics;
  /** One optimizer step. */
  trainStep(): Promise<StepMetrics>;
  /**
   * Adds the gradients of a batch, of 1 to `batchSize` examples, to those added since the last step, and leaves everything
   * else as it is.
   * @throws InputError naming every bad example, and every route that is not of its tokens; MemoryError when there is no
   * room for gradients that add up
   */
  forwardBackward(examples: readonly DrivenExample[], options?: DrivenOptions): Promise<DrivenBatch>;
  /** Batches in the gradients; `setTrainable` and `endDriving` clear them too. */
  readonly drivenBatches: number;
  /** One optimizer step on the gradients, which must be of one batch at least. @param rate default: the schedule's */
  optimStep(rate?: number): Promise<StepMetrics>;
  /** Makes `trainStep` possible again after `forwardBackward`. @throws MemoryError */
  endDriving(): Promise<void>;
  /** Dry run: throws InputError when a selector matches nothing. */
  planTrainable(plan: TrainablePlan): TrainableReport;
  setTrainable(plan: TrainablePlan): Promise<TrainableReport>;
  /**
   * Loss, accuracy and scores over at most `maxExamples` examples of a data file.
   * @param scoring the data's task, whose metrics are taken; without one, what targets look like decides
   */
  evaluate(file: string, split: string, maxExamples: number, scoring?: Scoring): Promise<EvaluationResult>;
  generate(inputs: readonly string[], options: GenerateOptions): Promise<Generation[]>;
  /** Writes parameters, optimizer state, freeze plan and data position into an existing empty directory. */
  saveCheckpoint(directory: string): Promise<{ bytes: number }>;
  /** Writes a Hugging Face directory (config.json, model.safetensors, tokenizer) into an existing empty directory. */
  exportModel(directory: string): Promise<{ bytes: number }>;
  /** Routes are read back only while a listener is set. */
  onRoutes: ((batch: RouteBatch) => void) | undefined;
  close(): void;
}

/** The trainer of one device: `src/trainer/engine.ts` implements it. */
export interface Engine {
  /** @param onEncoding hears how far each data file has been tokenised */
  openRun(config: RunConfig, resumeFrom?: string, onEncoding?: OnEncoding): Promise<TrainingRun>;
  /**
   * A model for generation and evaluation only: `trainStep`, `setTrainable` and `saveCheckpoint` throw.
   * @param routing default: dropless, each token choosing as the model says
   */
  openModel(
    directory: string,
    batchSize: number,
    maxInputTokens: number,
    maxTargetTokens: number,
    routing?: RoutingOptions,
  ): Promise<TrainingRun>;
}
