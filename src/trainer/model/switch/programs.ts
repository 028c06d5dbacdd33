// The three programs of a Switch run, as graphs: one training step, the encoder alone, the decoder alone. The last two
// serve evaluation and generation; they share the training program's batch shape, inputs and activation slots.

import type { KernelTarget } from "../../../kernels/capabilities.ts";
import { STEP_SCALARS_BYTES } from "../../../kernels/step_scalars.ts";
import { declareParameters } from "../../graph/arenas.ts";
import { differentiate } from "../../graph/autodiff.ts";
import type { Graph, Tensor } from "../../graph/graph.ts";
import { accumulateGradients } from "../../graph/ops/accumulate.ts";
import type { Segments } from "../../graph/ops/attention.ts";
import { countCoActivation } from "../../graph/ops/co_activation.ts";
import type { TokenLookup } from "../../graph/ops/dense.ts";
import { linearCrossEntropy } from "../../graph/ops/loss.ts";
import { learnLossScale, scaleLoss } from "../../graph/ops/loss_scale.ts";
import { optimizerNodes } from "../../graph/ops/optimizer.ts";
import { poolRouterLosses } from "../../graph/ops/router_losses.ts";
import { countLoad, type LearningBias, learnBias } from "../../graph/ops/selection_bias.ts";
import type { TrainableSet } from "../../groups.ts";
import type { OptimizerAlgorithm } from "../../types.ts";
import type { BuildOptions, InferenceGraph, SparseLayer, TrainingGraph } from "../family.ts";
import type { ParameterSpec } from "../parameters.ts";
import type { SwitchConfig } from "./config.ts";
import { type DecoderSegments, decode, encode, graphOf, type SwitchBuild, vocabularyHead } from "./model.ts";

/** Inputs by name; a run owns one buffer for each, shared by its programs. */
export interface SwitchInputs {
  readonly step: Tensor;
  readonly input: TokenLookup;
  /** [batch, inputLength] u32: 0 = padding, n = a token of the row's n-th example. */
  readonly inputSegments: Tensor;
  /** [batch, inputLength] u32, 1 = may be routed. */
  readonly inputRouted: Tensor;
  readonly decoder: TokenLookup;
  readonly decoderRouted: Tensor;
  /** [batch, targetLength] i32 */
  readonly labels: Tensor;
  /** [batch·inputLength, dModel]: encoder output, handed from the encoder program to the decoder program. */
  readonly encoded: Tensor;
}

function inputs(g: Graph, c: SwitchConfig, o: BuildOptions): SwitchInputs {
  const lookup = (name: string, length: number): TokenLookup => ({
    ids: g.input(`${name}_ids`, [o.batch, length], "u32"),
    order: g.input(`${name}_order`, [o.batch * length], "u32"),
    rowStart: g.input(`${name}_row_start`, [c.vocabularySize + 1], "u32"),
  });
  return {
    step: g.input("step_scalars", [STEP_SCALARS_BYTES / 4], "f32"),
    input: lookup("input", o.inputLength),
    inputSegments: g.input("input_segments", [o.batch, o.inputLength], "u32"),
    inputRouted: g.input("input_routed", [o.batch, o.inputLength], "u32"),
    decoder: lookup("decoder", o.targetLength),
    decoderRouted: g.input("decoder_routed", [o.batch, o.targetLength], "u32"),
    labels: g.input("labels", [o.batch, o.targetLength], "i32"),
    encoded: g.input("encoder_output", [o.batch * o.inputLength, c.dModel], "f32"),
  };
}

/** A row that holds one example needs only its padding hidden. */
const inputSegments = ({ inputSegments: ids }: SwitchInputs, packed: boolean): Segments => ({
  ids,
  layout: packed ? "shared" : "keys",
});

/**
 * What the decoder sees. Its inputs exist where rows are packed: decoder_segments [batch, targetLength] and, for
 * cross-attention, the same with input_segments behind it: cross_segments [batch, targetLength + inputLength].
 */
function decoderSegments(g: Graph, t: SwitchInputs, o: BuildOptions): DecoderSegments {
  if (!o.packed) return { cross: inputSegments(t, false) };
  const own = g.input("decoder_segments", [o.batch, o.targetLength], "u32");
  const cross = g.input("cross_segments", [o.batch, o.targetLength + o.inputLength], "u32");
  return { own: { ids: own, layout: "shared" }, cross: { ids: cross, layout: "both" } };
}

function begin(
  target: KernelTarget,
  config: SwitchConfig,
  specs: readonly ParameterSpec[],
  trainable: TrainableSet,
  options: BuildOptions,
) {
  const graph = graphOf(target, config, options);
  declareParameters(graph, specs, trainable, options.arenaBytes);
  const tensors = inputs(graph, config, options);
  const build: SwitchBuild = { graph, config, options, step: tensors.step, sparse: [] };
  return { graph, tensors, build };
}

const NOTHING: TrainableSet = new Map();

/** Forward, loss, backward for `trainable`, and the optimizer. */
export function trainingGraph(
  target: KernelTarget,
  config: SwitchConfig,
  specs: readonly ParameterSpec[],
  trainable: TrainableSet,
  options: BuildOptions,
  algorithm: OptimizerAlgorithm,
): TrainingGraph {
  const { graph, tensors: t, build } = begin(target, config, specs, trainable, options);
  const lossScale = graph.products === "f32" ? undefined : scaleLoss(graph, t.step);
  const encoded = encode(build, t.input, inputSegments(t, options.packed), t.inputRouted);
  const decoded = decode(build, t.decoder, encoded, decoderSegments(graph, t, options), t.decoderRouted);
  const head = vocabularyHead(build);
  const loss = linearCrossEntropy(graph, decoded, head.weight, t.labels, t.step, {
    alpha: head.alpha,
    train: true,
    labelSmoothing: options.losses.labelSmoothing ?? 0,
    vocabularyZ: options.losses.vocabularyZCoefficient ?? 0,
  });
  const sparse = counted(build);
  const routings = sparse.map((layer) => layer.routing);
  const pooled = options.losses.layerReduction === "pooled" && routings.length > 0;
  const pooledLosses = pooled ? poolRouterLosses(graph, routings) : undefined;
  const biases = learningBiases(build);
  const own = differentiate(graph);
  const gradients = options.sumGradients ? accumulateGradients(graph, own) : own;
  const optimizer = optimizerNodes(graph, gradients, t.step, algorithm);
  if (lossScale) learnLossScale(graph, lossScale, optimizer.norm);
  for (const bias of biases) learnBias(graph, bias, optimizer.norm, options.routing.selectionBias!.updateRate);
  const hidden = { encoder: encoded, decoder: decoded };
  return { graph, loss, sparse, pooledLosses, gradients, optimizer, lossScale, hidden };
}

/** The sparse layers, and in them which experts are chosen together. */
const counted = ({ graph, sparse }: SwitchBuild): SparseLayer[] =>
  sparse.map((layer) => ({ ...layer, coActivation: countCoActivation(graph, layer.routing) }));

/** The selection biases that this step trains, its load counted: a bias is frozen with its router. */
function learningBiases({ graph, options, sparse }: SwitchBuild): LearningBias[] {
  if (!options.routing.selectionBias) return [];
  return sparse.flatMap(({ router, routing: { selectionBias, demand } }) =>
    selectionBias && router.requiresGradient ? [countLoad(graph, selectionBias, demand)] : [],
  );
}

/** The encoder, writing the input tensor `encoder_output`. */
export function encoderGraph(
  target: KernelTarget,
  config: SwitchConfig,
  specs: readonly ParameterSpec[],
  options: BuildOptions,
): InferenceGraph {
  const { graph, tensors: t, build } = begin(target, config, specs, NOTHING, options);
  encode(build, t.input, inputSegments(t, options.packed), t.inputRouted, t.encoded);
  return { graph, sparse: counted(build) };
}

/** The decoder over `encoder_output`: loss rows against the labels and the most probable token at every position. */
export function decoderGraph(
  target: KernelTarget,
  config: SwitchConfig,
  specs: readonly ParameterSpec[],
  options: BuildOptions,
): InferenceGraph {
  const { graph, tensors: t, build } = begin(target, config, specs, NOTHING, options);
  const decoded = decode(build, t.decoder, t.encoded, decoderSegments(graph, t, options), t.decoderRouted);
  const head = vocabularyHead(build);
  const loss = linearCrossEntropy(graph, decoded, head.weight, t.labels, t.step, { alpha: head.alpha, train: false });
  return { graph, loss, sparse: counted(build), head: { hidden: decoded, ...head } };
}
