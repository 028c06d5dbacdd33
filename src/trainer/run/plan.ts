// A run's programs for a freeze plan: one training program for each batch shape, an encoder and a decoder. Built, lowered,
// priced, and checked against the memory there is, all before anything is allocated.

import { totalmem } from "node:os";
import type { Capabilities } from "../../kernels/capabilities.ts";
import { kernelTarget, mixedProducts } from "../../kernels/capabilities.ts";
import type { Lengths } from "../data/batches.ts";
import { packingProblems } from "../data/batching.ts";
import { arenaLimit } from "../graph/arenas.ts";
import type { Tensor } from "../graph/graph.ts";
import { elements, tensorBytes } from "../graph/graph.ts";
import { type LoweredGraph, lowerGraph } from "../graph/lowered.ts";
import { matchedTensors, type TrainableSet } from "../groups.ts";
import type { BuildOptions, InferenceGraph, Model, SparseLayer, TrainingGraph } from "../model/family.ts";
import {
  InputError,
  MemoryError,
  type PlanCost,
  type RunConfig,
  type TrainablePlan,
  type TrainingShape,
} from "../types.ts";
import type { DecoderPlan } from "./decoder.ts";
import { type PlannedBytes, planRun } from "./device_memory.ts";
import { stagingBytes } from "./readback.ts";

/** Lengths that serve both. */
export const longest = (a: Lengths, b: Lengths): Lengths => ({
  input: Math.max(a.input, b.input),
  target: Math.max(a.target, b.target),
});

/** One program before it is recorded, and what is read back from it. */
export interface Planned<G> {
  readonly built: G;
  readonly lowered: LoweredGraph;
  /** What every run of it reads back. */
  readonly results: readonly Tensor[];
  /** What it reads back besides while somebody listens to routes. */
  readonly routes: readonly Tensor[];
}

export interface RunPlan {
  /** One for each shape, the longest last; none for a model opened for inference only. */
  readonly training: readonly (Planned<TrainingGraph> & { readonly shape: TrainingShape })[];
  readonly encoder: Planned<InferenceGraph>;
  readonly decoder: Planned<InferenceGraph>;
  /** Whether the router losses are part of what is minimised. */
  readonly routerLosses: boolean;
  /** Batches of an optimizer step. */
  readonly accumulationSteps: number;
  /** Whether gradients add up from batch to batch, and the optimizer is a program of its own. */
  readonly sums: boolean;
  readonly bytes: PlannedBytes;
  readonly cost: PlanCost;
}

export interface PlanRequest {
  readonly model: Model;
  readonly capabilities: Capabilities;
  readonly config: Pick<
    RunConfig,
    | "batchSize"
    | "batching"
    | "routing"
    | "losses"
    | "dropout"
    | "expertDropout"
    | "optimizer"
    | "accumulationSteps"
    | "precision"
  >;
  /** Absent: inference only. */
  readonly training?: {
    readonly trainable: TrainableSet;
    readonly plan: TrainablePlan;
    readonly shapes: readonly TrainingShape[];
    /** Gradients add up although a step of the run has one batch, and routes can be replayed. */
    readonly driven?: boolean;
  };
  /** Lengths of the evaluation and generation programs. */
  readonly inference: Lengths;
}

const layerResults = ({ routing, coActivation }: SparseLayer): Tensor[] => [
  routing.losses,
  routing.demand,
  routing.expertCount,
  ...(routing.selectionBias ? [routing.selectionBias] : []),
  ...(coActivation ? [coActivation] : []),
];
const layerRoutes = ({ routing }: SparseLayer): Tensor[] => [routing.chosenIds, routing.gates, routing.rowOfAssignment];

type BuildConfig = Pick<
  RunConfig,
  "batchSize" | "batching" | "routing" | "losses" | "dropout" | "expertDropout" | "accumulationSteps" | "precision"
>;

function buildOptions(
  c: BuildConfig,
  capabilities: Capabilities,
  lengths: Lengths,
  train: boolean,
  lossGradient: boolean,
  sumGradients = false,
  copiesLast = false,
): BuildOptions {
  const accumulationSteps = train ? (c.accumulationSteps ?? 1) : 1;
  return {
    batch: c.batchSize,
    inputLength: lengths.input,
    targetLength: lengths.target,
    packed: train && c.batching === "packed",
    train,
    dropout: train ? c.dropout : 0,
    expertDropout: train ? (c.expertDropout ?? c.dropout) : 0,
    routing: c.routing,
    // The gradients of a step's batches are summed: the cross-entropy counts the tokens of all of them, router losses
    // are means over each batch.
    losses: {
      ...c.losses,
      balanceCoefficient: c.losses.balanceCoefficient / accumulationSteps,
      zCoefficient: c.losses.zCoefficient / accumulationSteps,
    },
    lossGradient,
    sumGradients,
    arenaBytes: arenaLimit(capabilities),
    products: c.precision === "mixed" ? mixedProducts(capabilities) : "f32",
    copiesLast,
  };
}

function planGraph<G extends InferenceGraph>(built: G, alignment: number, extra: readonly Tensor[] = []): Planned<G> {
  const { rowLoss, rowCorrect, rowTerms } = built.loss ?? {};
  const rows = [rowLoss, rowCorrect, rowTerms].filter((t) => t !== undefined);
  return {
    built,
    lowered: lowerGraph(built.graph, alignment),
    results: [...rows, ...extra, ...built.sparse.flatMap(layerResults)],
    routes: built.sparse.flatMap(layerRoutes),
  };
}

export interface DecoderRequest {
  readonly model: Model;
  readonly capabilities: Capabilities;
  readonly config: BuildConfig;
  /** At most `target` tokens of each row. */
  readonly lengths: Lengths;
  /** Rows to an example. */
  readonly beams: number;
  readonly readLogits: boolean;
  /** Device memory the run holds meanwhile. */
  readonly runBytes: number;
}

/**
 * The programs of a generation, refused as {@link planWithin} refuses a run's.
 * @throws MemoryError when they do not fit beside the run
 */
export function planDecoderWithin(request: DecoderRequest, memoryLimitBytes?: number): DecoderPlan {
  const { model, capabilities, config, lengths, beams, readLogits, runBytes } = request;
  const alignment = capabilities.limits.minUniformBufferOffsetAlignment;
  const options = buildOptions(config, capabilities, lengths, false, false);
  const graphs = model.decodingGraphs(kernelTarget(capabilities), options, beams);
  const prefix = planGraph(graphs.prefix, alignment);
  const step = planGraph(graphs.step, alignment);
  const reorder = planGraph(graphs.reorder, alignment);
  const read = [step.built.predicted, ...(readLogits ? [step.built.logits] : []), ...step.routes];
  const { total, parameter } = planRun(
    [prefix, step, reorder].map((p) => p.lowered),
    stagingBytes(read),
  );
  const bytes = total - parameter;
  const short = shortage(runBytes + bytes, [prefix, step, reorder], capabilities, memoryLimitBytes);
  if (short) throw new MemoryError(short.needed, short.available, 0);
  return { shape: { rows: config.batchSize * beams, length: lengths.target }, prefix, step, reorder, readLogits };
}

/** @throws InputError when the model, or packed rows, cannot be routed as the configuration says */
export function planPrograms(request: PlanRequest): RunPlan {
  const { model, capabilities, config, training } = request;
  const problems = [...model.routingProblems(config.routing, config.losses), ...packingProblems(config)];
  if (problems.length > 0) throw new InputError(problems);
  const target = kernelTarget(capabilities);
  const routerLosses = training !== undefined && routerLossesOn(model, training.trainable, training.plan);
  const alignment = capabilities.limits.minUniformBufferOffsetAlignment;
  const accumulationSteps = config.accumulationSteps ?? 1;
  const sums = accumulationSteps > 1 || training?.driven === true;
  const options = (lengths: Lengths, train: boolean) =>
    buildOptions(config, capabilities, lengths, train, train && routerLosses, train && sums, training !== undefined);
  const planned = <G extends InferenceGraph>(built: G, extra: readonly Tensor[] = []) =>
    planGraph(built, alignment, extra);

  const train = (training?.shapes ?? []).map((shape) => {
    const { algorithm } = config.optimizer;
    const replay = training!.driven;
    const built = model.trainingGraph(target, training!.trainable, { ...options(shape, true), replay }, algorithm);
    const extra = [built.optimizer.norm, built.pooledLosses, built.lossScale].filter((t) => t !== undefined);
    return { ...planned(built, extra), shape };
  });
  const encoder = planned(model.encoderGraph(target, options(request.inference, false)));
  const decoder = planned(model.decoderGraph(target, options(request.inference, false)));
  const all = [...train, encoder, decoder];
  const staging = all.reduce((n, p) => n + stagingBytes([...p.results, ...p.routes]), 0);
  const bytes = planRun(
    all.map((p) => p.lowered),
    staging,
  );
  const cost = costOf(model, training?.trainable, train, bytes, accumulationSteps);
  return { training: train, encoder, decoder, routerLosses, accumulationSteps, sums, bytes, cost };
}

/** Router losses keep sending gradient into the layers below a frozen router unless the plan says otherwise. */
function routerLossesOn(model: Model, trainable: TrainableSet, plan: TrainablePlan): boolean {
  const routers = model.parameters.filter((p) => p.kind === "router");
  return plan.routerLosses === "keep" || routers.some((p) => trainable.has(p.name));
}

function costOf(
  model: Model,
  trainable: TrainableSet | undefined,
  programs: RunPlan["training"],
  bytes: PlannedBytes,
  batches: number,
): PlanCost {
  const mean = (flops: (lowered: LoweredGraph) => number) =>
    programs.reduce((sum, { lowered, shape }) => sum + shape.share * flops(lowered), 0);
  const lowered = programs.at(-1)?.lowered;
  const matched = trainable ? matchedTensors(model.parameters, trainable) : [];
  const weightGradients = [...(lowered?.weightGradientDispatches.values() ?? [])];
  return {
    trainableParameters: matched.reduce((n, t) => n + t.parameters, 0),
    totalParameters: model.parameters.reduce((n, p) => n + elements(p.shape), 0),
    parameterBytes: bytes.parameter,
    gradientBytes: bytes.gradient,
    optimizerBytes: bytes.optimizer,
    activationBytes: bytes.activation,
    peakBytes: bytes.total,
    forwardFlops: batches * mean(({ flops }) => flops.forward),
    backwardFlops: batches * mean(({ flops }) => flops.backward) + mean(({ flops }) => flops.optimizer),
    dispatches: lowered?.dispatches ?? 0,
    weightGradientDispatches: weightGradients.reduce((n, count) => n + count, 0),
  };
}

/** Device memory that runs may use when nobody says, in bytes: half the machine's for a CPU adapter, unknown for a GPU. */
export const defaultMemoryLimit = (c: Capabilities): number =>
  c.software ? Math.floor(totalmem() / 2) : Number.POSITIVE_INFINITY;

/**
 * Plans, and refuses what does not fit: in all, or in one binding.
 * @throws MemoryError with the largest batch size that would fit
 */
export function planWithin(request: PlanRequest, memoryLimitBytes?: number): RunPlan {
  const shortOf = ({ bytes, training, encoder, decoder }: RunPlan) =>
    shortage(bytes.total, [...training, encoder, decoder], request.capabilities, memoryLimitBytes);
  const plan = planPrograms(request);
  const short = shortOf(plan);
  if (!short) return plan;
  let fitting = 0;
  for (let batchSize = request.config.batchSize >> 1; batchSize >= 1 && fitting === 0; batchSize >>= 1) {
    const smaller = planPrograms({ ...request, config: { ...request.config, batchSize } });
    if (!shortOf(smaller)) fitting = batchSize;
  }
  throw new MemoryError(short.needed, short.available, fitting);
}

/** What programs lack that need so many bytes in all: memory, or room in one binding. */
function shortage(
  totalBytes: number,
  programs: readonly { readonly lowered: LoweredGraph }[],
  capabilities: Capabilities,
  memoryLimitBytes = defaultMemoryLimit(capabilities),
): { needed: number; available: number } | undefined {
  if (totalBytes > memoryLimitBytes) return { needed: totalBytes, available: memoryLimitBytes };
  const { maxBufferSize, maxStorageBufferBindingSize } = capabilities.limits;
  const limit = Math.min(maxBufferSize, maxStorageBufferBindingSize);
  const largest = Math.max(...programs.flatMap((p) => p.lowered.graph.tensors.map(tensorBytes)));
  return largest > limit ? { needed: largest, available: limit } : undefined;
}
