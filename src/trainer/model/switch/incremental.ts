// The decoder one position at a time, over a key-value cache: what generation runs. Three programs share the caches:
// `prefix` projects the encoder's output to the keys and values of every cross-attention, once per batch; `step` decodes
// one position of every row; `reorder` moves rows of the self-attention caches when beams change places.
//
// Rows are batch · beams, the beams of an example together. Cross-attention sees an example's beams as queries of one
// sequence, so its keys and values are held once per example.

import { relativeBuckets } from "../../../kernels/attention.ts";
import type { KernelTarget } from "../../../kernels/capabilities.ts";
import { STEP_SCALARS_BYTES } from "../../../kernels/step_scalars.ts";
import { declareParameters } from "../../graph/arenas.ts";
import type { Graph, Tensor } from "../../graph/graph.ts";
import { attention, positionBias } from "../../graph/ops/attention.ts";
import { appendToCache, nextTokens, reorderCache } from "../../graph/ops/decoding.ts";
import { embedding, linear } from "../../graph/ops/dense.ts";
import type { BuildOptions, DecodingGraphs } from "../family.ts";
import type { ParameterSpec } from "../parameters.ts";
import type { SwitchConfig } from "./config.ts";
import {
  aroundAttention,
  embeddingTable,
  feedForwardSublayer,
  finalNorm,
  graphOf,
  headsOf,
  parameter,
  type SwitchBuild,
  vocabularyHead,
} from "./model.ts";

const NOTHING = new Map<string, true>();

/** Caches of one decoder layer, run inputs shared by the three programs. */
interface LayerCaches {
  readonly selfKeys: Tensor;
  readonly selfValues: Tensor;
  readonly crossKeys: Tensor;
  readonly crossValues: Tensor;
}

/** `options.targetLength` is the most tokens a row can generate. */
export function decodingGraphs(
  target: KernelTarget,
  config: SwitchConfig,
  specs: readonly ParameterSpec[],
  options: BuildOptions,
  beams: number,
): DecodingGraphs {
  const { batch, inputLength, targetLength: length } = options;
  const rows = batch * beams;
  const inner = config.heads * config.headDim;
  const begin = () => {
    const graph = graphOf(target, config, options);
    declareParameters(graph, specs, NOTHING, options.arenaBytes);
    const caches = Array.from({ length: config.decoderLayers }, (_, layer): LayerCaches => {
      const cache = (name: string, shape: readonly number[]) =>
        graph.input(`cache.${layer}.${name}`, shape, graph.operands);
      return {
        selfKeys: cache("self_keys", [rows, length, inner]),
        selfValues: cache("self_values", [rows, length, inner]),
        crossKeys: cache("cross_keys", [batch * inputLength, inner]),
        crossValues: cache("cross_values", [batch * inputLength, inner]),
      };
    });
    return { graph, caches };
  };

  const prefix = begin();
  const encoded = prefix.graph.input("encoder_output", [batch * inputLength, config.dModel], "f32");
  prefix.caches.forEach(({ crossKeys, crossValues }, layer) => {
    const g = prefix.graph;
    const weight = (p: string) => g.parameters.get(`decoder.block.${layer}.layer.1.EncDecAttention.${p}.weight`)!;
    linear(g, `${layer}.cross_keys`, encoded, weight("k"), { into: crossKeys });
    linear(g, `${layer}.cross_values`, encoded, weight("v"), { into: crossValues });
  });

  const reorder = begin();
  const parents = reorder.graph.input("beam_parents", [rows], "u32");
  for (const { selfKeys, selfValues } of reorder.caches) {
    reorderCache(reorder.graph, selfKeys, parents);
    reorderCache(reorder.graph, selfValues, parents);
  }

  const step = stepGraph(begin(), config, options, rows, beams);
  return { prefix: { graph: prefix.graph, sparse: [] }, step, reorder: { graph: reorder.graph, sparse: [] } };
}

function stepGraph(
  { graph: g, caches }: { graph: Graph; caches: readonly LayerCaches[] },
  config: SwitchConfig,
  options: BuildOptions,
  rows: number,
  beams: number,
): DecodingGraphs["step"] {
  const { batch, inputLength, targetLength: length } = options;
  const b: SwitchBuild = {
    graph: g,
    config,
    options: { ...options, batch: rows, targetLength: 1 },
    step: g.input("step_scalars", [STEP_SCALARS_BYTES / 4], "f32"),
    sparse: [],
  };
  const position = g.input("decoding_position", [1], "u32");
  const visible = g.input("decoding_visible", [rows, length], "u32");
  const inputSegments = g.input("input_segments", [batch, inputLength], "u32");
  const routed = g.input("decoding_routed", [rows, 1], "u32");
  const ids = {
    ids: g.input("decoding_ids", [rows, 1], "u32"),
    order: g.input("decoding_order", [rows], "u32"),
    rowStart: g.input("decoding_row_start", [config.vocabularySize + 1], "u32"),
  };
  // The bucket of every key's distance to the position that is decoded, uploaded with it.
  const buckets = g.input("decoding_buckets", [length], "u32");
  const table = parameter(b, "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight");
  const bias = positionBias(g, "decoding_position_bias", table, buckets, { queryLength: 1, keyLength: length });
  const shared = { ...headsOf(b), causal: false };

  let h = embedding(g, "decoder_embedding", embeddingTable(b, "decoder"), ids);
  caches.forEach((cache, layer) => {
    const block = `decoder.block.${layer}.layer`;
    h = aroundAttention(b, h, `${block}.0`, "SelfAttention", (x, project) => {
      appendToCache(g, project(x, "k"), cache.selfKeys, position);
      appendToCache(g, project(x, "v"), cache.selfValues, position);
      return attention(g, `${block}.0.attention`, project(x, "q"), cache.selfKeys, cache.selfValues, {
        ...shared,
        batch: rows,
        queryLength: 1,
        keyLength: length,
        segments: { ids: visible, layout: "keys" },
        bias,
      });
    });
    h = aroundAttention(b, h, `${block}.1`, "EncDecAttention", (x, project) =>
      attention(g, `${block}.1.attention`, project(x, "q"), cache.crossKeys, cache.crossValues, {
        ...shared,
        batch,
        queryLength: beams,
        keyLength: inputLength,
        segments: { ids: inputSegments, layout: "keys" },
      }),
    );
    h = feedForwardSublayer(b, h, `${block}.2`, "decoder", layer, config.decoderSparseStep, routed);
  });
  const head = vocabularyHead(b);
  const next = nextTokens(g, finalNorm(b, h, "decoder"), head.weight, head.alpha);
  const byDistance = relativeBuckets(length, length, {
    buckets: config.relativeBuckets,
    maxDistance: config.relativeMaxDistance,
    bidirectional: false,
  });
  const bucketsAt = (at: number) => byDistance.slice(length - 1 - at, 2 * length - 1 - at);
  return { graph: g, sparse: b.sparse, ...next, bucketsAt };
}
