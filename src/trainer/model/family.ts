// What a model family gives the trainer: its parameters, and its programs as graphs. A run knows nothing else of a
// model; adding a family adds a folder beside `switch/` and a line in `open.ts`.

import type { KernelTarget, Products } from "../../kernels/capabilities.ts";
import type { Graph, Tensor } from "../graph/graph.ts";
import type { LossRows } from "../graph/ops/loss.ts";
import type { OptimizerNodes } from "../graph/ops/optimizer.ts";
import type { Routing } from "../graph/ops/routing.ts";
import type { TrainableSet } from "../groups.ts";
import type { CapacityRule, LossOptions, OptimizerAlgorithm, Problem, RoutingOptions, Stack } from "../types.ts";
import type { ParameterSpec } from "./parameters.ts";

/** How one build of a model behaves; everything here is fixed when its program is recorded. */
export interface BuildOptions {
  readonly batch: number;
  readonly inputLength: number;
  readonly targetLength: number;
  /** Whether a row may hold several examples, told apart by segments. */
  readonly packed: boolean;
  /** Training: dropout, jitter and the training capacity are on, and gradients are taken. */
  readonly train: boolean;
  readonly dropout: number;
  /** Of the experts' hidden activation. */
  readonly expertDropout: number;
  readonly routing: RoutingOptions;
  readonly losses: LossOptions;
  /** Whether router losses send a gradient. */
  readonly lossGradient: boolean;
  /** Whether the gradients of several batches are summed before an optimizer step. */
  readonly sumGradients: boolean;
  /** Whether tokens can be told their experts: `Routing.forcedIds` are inputs. Default: false. */
  readonly replay?: boolean;
  /** Bytes of an arena of parameters at most (graph/arenas.ts). */
  readonly arenaBytes: number;
  /** How matrix products take their operands. Default: f32. */
  readonly products?: Products;
  /** Whether f16 copies of weights last (graph/ops/weights.ts). Default: false. */
  readonly copiesLast?: boolean;
}

/** The capacity rule in force. */
export const capacityOf = ({ train, routing }: BuildOptions): CapacityRule =>
  train ? routing.trainCapacity : routing.evalCapacity;

/** Tokens of a routing group, where a layer has `tokens` tokens. */
export function groupTokens({ batch, routing: { group } }: BuildOptions, tokens: number): number {
  if (typeof group === "object") return group.tokens;
  return group === "sequence" ? tokens / batch : tokens;
}

/** One sparse layer of a built graph: what telemetry and parity read. */
export interface SparseLayer {
  readonly stack: Stack;
  readonly layer: number;
  /** [tokens, dModel]: what router and experts read. */
  readonly input: Tensor;
  /** The router's parameter. */
  readonly router: Tensor;
  /** [tokens, experts] */
  readonly logits: Tensor;
  readonly routing: Routing;
  /** [experts · (experts + 1) / 2] u32: see kernels/co_activation.ts. Absent where it is not counted. */
  readonly coActivation?: Tensor;
  /** [tokens, dModel] */
  readonly output: Tensor;
}

/**
 * What tokens choose experts by besides their probabilities (arXiv 2408.15664): state of a router that is no parameter. No
 * gradient reaches it, no optimizer keeps anything of it and no group counts it. Its tensor, [experts] f32, is a run's
 * input of the name `key`.
 */
export interface SelectionBias {
  /** In checkpoints of thaw, beside the parameters; transformers does not know it and ignores it. */
  readonly key: string;
  readonly experts: number;
}

/** One training step: forward, loss, backward for what is trainable, optimizer. */
export interface TrainingGraph {
  readonly graph: Graph;
  readonly loss: LossRows;
  readonly sparse: readonly SparseLayer[];
  /** [2] f32: load-balancing and z-loss pooled over all layers; only where these are minimised instead of each layer's. */
  readonly pooledLosses?: Tensor;
  /** Gradients by parameter name, summed over batches where several make a step. */
  readonly gradients: ReadonlyMap<string, Tensor>;
  readonly optimizer: OptimizerNodes;
  /** [3] f32 as kernels/loss_scale.ts keeps it; only in mixed precision. */
  readonly lossScale?: Tensor;
  /** Output of each stack, [tokens, dModel]. */
  readonly hidden: Readonly<Partial<Record<Stack, Tensor>>>;
}

/** Forward only, for evaluation and generation. */
export interface InferenceGraph {
  readonly graph: Graph;
  readonly sparse: readonly SparseLayer[];
  /** Absent in a program that ends before the vocabulary. */
  readonly loss?: LossRows;
  /** What the vocabulary projection reads: logits = alpha · hidden · weightᵀ. Absent with the loss. */
  readonly head?: { readonly hidden: Tensor; readonly weight: Tensor; readonly alpha: number };
}

/**
 * Incremental decoding over caches, which are inputs of the same names in all three. The step's inputs besides:
 * decoding_ids, decoding_routed [rows, 1], decoding_position [1], decoding_visible [rows, length] and decoding_buckets
 * [length] u32; that of `reorder`: beam_parents [rows] u32. Rows are batch · beams.
 */
export interface DecodingGraphs {
  /** Cross-attention's keys and values from `encoder_output`; once per batch. */
  readonly prefix: InferenceGraph;
  /** One position of every row. */
  readonly step: InferenceGraph & {
    /** [rows, vocabulary] f32 */
    readonly logits: Tensor;
    /** [rows] u32: most probable token, the lower id among equals. */
    readonly predicted: Tensor;
    /** What decoding_buckets holds while `position` is decoded: the bucket of the distance to every key. */
    bucketsAt(position: number): Uint32Array<ArrayBuffer>;
  };
  /** Rows of the self-attention caches change places. */
  readonly reorder: InferenceGraph;
}

/** An encoder-decoder model of some family, its configuration checked. */
export interface Model {
  readonly modelType: string;
  readonly parameters: readonly ParameterSpec[];
  /** Checkpoint keys that only repeat another tensor: key → the key it repeats. */
  readonly aliases: Readonly<Record<string, string>>;
  /** One for each sparse layer, which a checkpoint or a run may have. */
  readonly selectionBiases: readonly SelectionBias[];
  readonly vocabularySize: number;
  readonly padTokenId: number;
  readonly eosTokenId: number;
  readonly decoderStartTokenId: number;
  /** What keeps the model from routing so, or from losing so: fields `routing.…` and `losses.…`; empty when nothing does. */
  routingProblems(routing: RoutingOptions, losses: LossOptions): readonly Problem[];
  trainingGraph(
    target: KernelTarget,
    trainable: TrainableSet,
    options: BuildOptions,
    optimizer: OptimizerAlgorithm,
  ): TrainingGraph;
  /** Writes the input tensor `encoder_output`, which the decoder's program reads. */
  encoderGraph(target: KernelTarget, options: BuildOptions): InferenceGraph;
  /** Loss against the labels and the most probable token at every target position. */
  decoderGraph(target: KernelTarget, options: BuildOptions): InferenceGraph;
  /** Programs of generation for at most `options.targetLength` tokens. */
  decodingGraphs(target: KernelTarget, options: BuildOptions, beams: number): DecodingGraphs;
}
