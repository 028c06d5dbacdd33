// The encoder-decoder of Switch and ST-MoE as graph operations: T5 with sparse feed-forward layers.
//
// Sources: Fedus et al. 2021 (arXiv 2101.03961); Zoph et al. 2022 (arXiv 2202.08906), flaxformer; Hugging Face
// `modeling_switch_transformers.py` for the layout. Pre-norm blocks, RMSNorm without mean or bias, no biases anywhere,
// attention scores not scaled by 1/sqrt(headDim), a relative position bias held by the first block of each stack and added
// in every self-attention of that stack.

import { relativeBuckets } from "../../../kernels/attention.ts";
import type { KernelTarget } from "../../../kernels/capabilities.ts";
import { Graph, type Tensor } from "../../graph/graph.ts";
import { attention, type PositionBias, positionBias, type Segments } from "../../graph/ops/attention.ts";
import {
  type Dropout,
  dropout,
  embedding,
  linear,
  residual,
  rmsNorm,
  type TokenLookup,
} from "../../graph/ops/dense.ts";
import { combine, expertLinear } from "../../graph/ops/experts.ts";
import { expertScale, gatedGelu } from "../../graph/ops/feed_forward.ts";
import { jitter } from "../../graph/ops/jitter.ts";
import { route } from "../../graph/ops/routing.ts";
import type { Stack } from "../../types.ts";
import type { BuildOptions, SparseLayer } from "../family.ts";
import { isSparse, type SwitchConfig } from "./config.ts";
import { inputMatrices } from "./parameters.ts";
import { routerOptions } from "./routing.ts";

/** A stack under construction: the graph, the model, and what its layers share. */
export interface SwitchBuild {
  readonly graph: Graph;
  readonly config: SwitchConfig;
  readonly options: BuildOptions;
  /** Step scalars. */
  readonly step: Tensor;
  /** Sparse layers in the order they were built. */
  readonly sparse: SparseLayer[];
}

/**
 * A graph of this model: what products read is kept as f16 in mixed precision, where the model's widths allow it. What they
 * write for the residual stream stays f32: in trained models it can exceed the range of f16.
 */
export function graphOf(target: KernelTarget, { dModel, dFf, headDim }: SwitchConfig, o: BuildOptions): Graph {
  const eights = [dModel, dFf, headDim].every((width) => width % 8 === 0);
  const { products = "f32", copiesLast } = o;
  return new Graph(target, products, products !== "f32" && eights ? "f16" : "f32", copiesLast);
}

export const parameter = (b: SwitchBuild, name: string): Tensor => b.graph.parameters.get(name)!;
export const drop = (b: SwitchBuild): Dropout => ({ rate: b.options.dropout, step: b.step });

/** The encoder; `segments` say which tokens see each other, `routed` marks those that may be routed. */
export function encode(b: SwitchBuild, ids: TokenLookup, segments: Segments, routed: Tensor, into?: Tensor): Tensor {
  const { graph: g, config: c, options: o } = b;
  let h = dropout(g, embedding(g, "encoder_embedding", embeddingTable(b, "encoder"), ids), drop(b));
  const bias = stackBias(b, "encoder", o.inputLength);
  for (let layer = 0; layer < c.encoderLayers; layer++) {
    const block = `encoder.block.${layer}.layer`;
    h = attentionSublayer(b, h, `${block}.0`, "SelfAttention", {
      length: o.inputLength,
      segments,
      bias,
      causal: false,
    });
    h = feedForwardSublayer(b, h, `${block}.1`, "encoder", layer, c.encoderSparseStep, routed);
  }
  return finalNorm(b, h, "encoder", into);
}

/** What a decoder's queries see: in its own stack (besides the order) and in the encoder's output. */
export interface DecoderSegments {
  readonly own?: Segments;
  readonly cross: Segments;
}

/** The decoder; cross-attention reads `encoded` [batch·inputLength, dModel]. */
export function decode(
  b: SwitchBuild,
  ids: TokenLookup,
  encoded: Tensor,
  segments: DecoderSegments,
  routed: Tensor,
): Tensor {
  const { graph: g, config: c, options: o } = b;
  let h = dropout(g, embedding(g, "decoder_embedding", embeddingTable(b, "decoder"), ids), drop(b));
  const bias = stackBias(b, "decoder", o.targetLength);
  for (let layer = 0; layer < c.decoderLayers; layer++) {
    const block = `decoder.block.${layer}.layer`;
    const own = { length: o.targetLength, segments: segments.own, bias, causal: true };
    h = attentionSublayer(b, h, `${block}.0`, "SelfAttention", own);
    h = attentionSublayer(b, h, `${block}.1`, "EncDecAttention", {
      length: o.targetLength,
      memory: { states: encoded, length: o.inputLength },
      segments: segments.cross,
      causal: false,
    });
    h = feedForwardSublayer(b, h, `${block}.2`, "decoder", layer, c.decoderSparseStep, routed);
  }
  return finalNorm(b, h, "decoder");
}

/** The vocabulary matrix and the factor on the decoder's output: dModel^-0.5 when it is the tied embedding. */
export function vocabularyHead(b: SwitchBuild): { weight: Tensor; alpha: number } {
  return b.config.tied
    ? { weight: parameter(b, "shared.weight"), alpha: b.config.dModel ** -0.5 }
    : { weight: parameter(b, "lm_head.weight"), alpha: 1 };
}

export const embeddingTable = (b: SwitchBuild, stack: Stack): Tensor =>
  parameter(b, b.config.separateEmbeddings ? `${stack}.embed_tokens.weight` : "shared.weight");

function stackBias(b: SwitchBuild, stack: Stack, length: number): PositionBias {
  const table = parameter(b, `${stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight`);
  const buckets = relativeBuckets(length, length, {
    buckets: b.config.relativeBuckets,
    maxDistance: b.config.relativeMaxDistance,
    bidirectional: stack === "encoder",
  });
  const bucketOfDistance = b.graph.constant(`${stack}_relative_buckets`, buckets);
  const lengths = { queryLength: length, keyLength: length };
  return positionBias(b.graph, `${stack}_position_bias`, table, bucketOfDistance, lengths);
}

interface AttentionSublayer {
  readonly length: number;
  readonly causal: boolean;
  readonly segments?: Segments;
  readonly bias?: PositionBias;
  /** Cross-attention: keys and values come from here. */
  readonly memory?: { readonly states: Tensor; readonly length: number };
}

function attentionSublayer(b: SwitchBuild, h: Tensor, prefix: string, module: string, a: AttentionSublayer): Tensor {
  return aroundAttention(b, h, prefix, module, (x, project) => {
    const source = a.memory?.states ?? x;
    return attention(b.graph, `${prefix}.attention`, project(x, "q"), project(source, "k"), project(source, "v"), {
      ...headsOf(b),
      batch: b.options.batch,
      queryLength: a.length,
      keyLength: a.memory?.length ?? a.length,
      causal: a.causal,
      segments: a.segments,
      bias: a.bias,
    });
  });
}

/** What every attention of the model has. */
export const headsOf = (b: SwitchBuild) => ({
  heads: b.config.heads,
  kvHeads: b.config.heads,
  headDim: b.config.headDim,
  scale: 1,
  dropout: drop(b),
});

/** The pre-norm frame of an attention: `mix` makes of the normed input what the output projection reads. */
export function aroundAttention(
  b: SwitchBuild,
  h: Tensor,
  prefix: string,
  module: string,
  mix: (x: Tensor, project: (from: Tensor, projection: string) => Tensor) => Tensor,
): Tensor {
  const { graph: g, config: c } = b;
  const x = rmsNorm(g, `${prefix}.norm`, h, parameter(b, `${prefix}.layer_norm.weight`), c.epsilon);
  const weight = (p: string) => parameter(b, `${prefix}.${module}.${p}.weight`);
  const mixed = mix(x, (from, p) => linear(g, `${prefix}.${p}`, from, weight(p)));
  return residual(g, `${prefix}.out`, h, linear(g, `${prefix}.o`, mixed, weight("o"), { precise: true }), drop(b));
}

export function feedForwardSublayer(
  b: SwitchBuild,
  h: Tensor,
  prefix: string,
  stack: Stack,
  layer: number,
  sparseStep: number,
  routed: Tensor,
): Tensor {
  const { graph: g, config: c } = b;
  const x = rmsNorm(g, `${prefix}.norm`, h, parameter(b, `${prefix}.layer_norm.weight`), c.epsilon);
  const mlp = `${prefix}.mlp`;
  if (!isSparse(c.sparseLayout, layer, sparseStep)) return residual(g, `${prefix}.out`, h, dense(b, x, mlp), drop(b));
  const routedOut = residual(g, `${prefix}.out`, h, sparse(b, x, mlp, stack, layer, routed), drop(b));
  if (!c.extraDenseFfn) return routedOut;
  const extra = `${stack}.block.${layer}.layer.${stack === "encoder" ? 2 : 3}`;
  const y = rmsNorm(g, `${extra}.norm`, routedOut, parameter(b, `${extra}.layer_norm.weight`), c.epsilon);
  return residual(g, `${extra}.out`, routedOut, dense(b, y, `${extra}.mlp`), drop(b));
}

/** The dense feed-forward layer of x [tokens, dModel]. */
function dense(b: SwitchBuild, x: Tensor, mlp: string): Tensor {
  const { graph: g } = b;
  const hidden = activation(b, `${mlp}.hidden`, (name, matrix, relu) =>
    linear(g, name, x, parameter(b, `${mlp}.${matrix}.weight`), { relu }),
  );
  return linear(g, `${mlp}.out`, dropout(g, hidden, drop(b)), parameter(b, `${mlp}.wo.weight`), { precise: true });
}

/** The hidden activation of a feed-forward layer whose input matrices `project` applies: ReLU or GEGLU. */
function activation(
  b: SwitchBuild,
  name: string,
  project: (name: string, matrix: string, relu: boolean) => Tensor,
): Tensor {
  const [first, second] = inputMatrices(b.config);
  if (second === undefined) return project(name, first, true);
  return gatedGelu(b.graph, name, project(`${name}_gate`, first, false), project(`${name}_up`, second, false));
}

/** The sparse layer: each routable token goes to the experts of its largest gates, whose outputs are scaled by them. */
function sparse(b: SwitchBuild, x: Tensor, mlp: string, stack: Stack, layer: number, routed: Tensor): Tensor {
  const { graph: g, options: o, config: c } = b;
  // The jittered copy goes to the router only, never to the experts (moe-spec section 6, trap 6).
  const routerInput = jitter(g, x, o.train ? o.routing.jitter : 0, b.step);
  const router = parameter(b, `${mlp}.router.classifier.weight`);
  const logits = linear(g, `${mlp}.router_logits`, routerInput, router, { precise: true, exact: true });
  const routing = route(g, `${mlp}.router`, logits, routed, routerOptions(b, { stack, mlp, tokens: x.shape[0] }));
  let hidden = activation(b, `${mlp}.expert_hidden`, (name, matrix, relu) =>
    expertLinear(g, name, x, parameter(b, `${mlp}.experts.${matrix}.weight`), routing, { gather: true, relu }),
  );
  if (c.expertBias)
    hidden = expertScale(g, `${mlp}.expert_scaled`, hidden, parameter(b, `${mlp}.experts.scale.weight`), routing);
  const rows = expertLinear(
    g,
    `${mlp}.expert_out`,
    dropout(g, hidden, { rate: o.expertDropout, step: b.step }),
    parameter(b, `${mlp}.experts.wo.weight`),
    routing,
    { gather: false, relu: false, precise: true },
  );
  const output = combine(g, `${mlp}.combined`, rows, routing);
  b.sparse.push({ stack, layer, input: x, router, logits, routing, output });
  return output;
}

export function finalNorm(b: SwitchBuild, h: Tensor, stack: Stack, into?: Tensor): Tensor {
  const weight = parameter(b, `${stack}.final_layer_norm.weight`);
  const out = rmsNorm(b.graph, `${stack}_output`, h, weight, b.config.epsilon, { into, precise: true });
  return dropout(b.graph, out, drop(b));
}
