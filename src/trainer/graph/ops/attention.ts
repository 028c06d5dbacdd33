// Attention as one operation: scores are never materialised, the backward pass needs only the row log-sum-exp.

import {
  type AttentionDims,
  attentionBiasGradientScratch,
  attention as attentionKernel,
  attentionKeyValueGradient,
  attentionQueryBiasGradient,
  attentionRowStatistics,
  distanceBias,
  type SegmentLayout,
} from "../../../kernels/attention.ts";
import { gradientTensor } from "../autodiff.ts";
import type { Graph, Tensor } from "../graph.ts";
import type { Dropout } from "./dense.ts";

export interface AttentionOptions {
  readonly batch: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly queryLength: number;
  readonly keyLength: number;
  readonly headDim: number;
  /** Factor on q·k; T5 uses 1. */
  readonly scale: number;
  readonly causal: boolean;
  /** Which keys a query sees; every one where this is absent. */
  readonly segments?: Segments;
  readonly bias?: PositionBias;
  readonly dropout: Dropout;
}

/** Segment ids, [batch, …] u32 as the layout says. */
export interface Segments {
  readonly ids: Tensor;
  readonly layout: SegmentLayout;
}

/** T5's relative position bias of a stack, shared by its self-attentions. */
export interface PositionBias {
  /** [buckets, heads] */
  readonly table: Tensor;
  /** [queryLength + keyLength - 1] u32 */
  readonly bucketOfDistance: Tensor;
  /** [queryLength + keyLength - 1, heads]: the table's row of every distance. */
  readonly byDistance: Tensor;
}

/** Looks up the bias of every distance once for all layers; the table's gradient comes from the attentions. */
export function positionBias(
  g: Graph,
  name: string,
  table: Tensor,
  bucketOfDistance: Tensor,
  lengths: { queryLength: number; keyLength: number },
): PositionBias {
  const [buckets, heads] = table.shape;
  const byDistance = g.activation(name, [lengths.queryLength + lengths.keyLength - 1, heads]);
  g.add({
    name: "position_bias",
    reads: [table, bucketOfDistance],
    writes: [byDistance],
    lower: () => distanceBias({ table, bucketOfDistance, out: byDistance }, { ...lengths, heads, buckets }),
  });
  return { table, bucketOfDistance, byDistance };
}

/**
 * q [batch·queryLength, heads·headDim], k and v [batch·keyLength, kvHeads·headDim], all f32 or all f16; returns one like q.
 */
export function attention(g: Graph, name: string, q: Tensor, k: Tensor, v: Tensor, o: AttentionOptions): Tensor {
  const { batch, heads, queryLength, keyLength, headDim } = o;
  const table = o.bias?.table;
  const requiresGradient = [q, k, v, table].some((t) => t?.requiresGradient);
  const out = g.tensor({ name, shape: q.shape, role: "activation", dtype: q.dtype, requiresGradient });
  const logSumExp = g.activation(`${name}_log_sum_exp`, [batch, heads, queryLength]);
  const rate = o.dropout.rate;
  const step = rate > 0 ? o.dropout.step : undefined;
  const dims: AttentionDims = {
    batch,
    heads,
    kvHeads: o.kvHeads,
    queryLength,
    keyLength,
    headDim,
    scale: o.scale,
    causal: o.causal,
    buckets: table ? table.shape[0] : 0,
    segments: o.segments?.layout,
    products: g.products,
    half: q.dtype === "f16",
    dropout: rate > 0 ? { rate, use: g.nextUse() } : undefined,
  };
  const pairs = batch * heads * queryLength * keyLength * (o.causal ? 0.5 : 1);
  const optional = { segments: o.segments?.ids, distanceBias: o.bias?.byDistance, step };
  const extra = [o.segments?.ids, o.bias?.byDistance, step];
  g.add({
    name: "attention",
    reads: [q, k, v, table, ...extra],
    writes: [out, logSumExp],
    flops: 4 * pairs * headDim,
    lower: (target) => attentionKernel({ q, k, v, out, logSumExp, ...optional }, dims, target),
    backward: (gradients) => {
      const dOut = gradients.of(out)!;
      const rowStatistics = g.activation(`${name}_row_statistics`, [...logSumExp.shape, 2]);
      g.add({
        name: "attention_row_statistics",
        reads: [out, dOut, logSumExp],
        writes: [rowStatistics],
        flops: 2 * batch * queryLength * heads * headDim,
        lower: () => attentionRowStatistics({ out, dOut, logSumExp, rowStatistics }, dims),
      });
      const inputs = { q, k, v, dOut, rowStatistics, ...optional };
      const reads = [q, k, v, dOut, rowStatistics, ...extra];
      const dQ = q.requiresGradient ? gradientTensor(g, q) : undefined;
      const bias = o.bias?.table.requiresGradient
        ? {
            bucketOfDistance: o.bias.bucketOfDistance,
            scratch: g.activation("attention_bias_scratch", [attentionBiasGradientScratch(dims)]),
            dBias: gradientTensor(g, o.bias.table),
          }
        : undefined;
      if (dQ || bias) {
        g.add({
          name: bias ? "attention_query_bias_gradient" : "attention_query_gradient",
          reads: [...reads, bias?.bucketOfDistance],
          writes: [dQ, bias?.dBias],
          scratch: bias && [bias.scratch],
          parameter: bias && table?.parameter,
          flops: (dQ ? 6 : 4) * pairs * headDim,
          lower: (target) => attentionQueryBiasGradient({ ...inputs, dQ, bias }, dims, target),
        });
        if (dQ) gradients.addTensor(q, dQ, true);
        if (table && bias) gradients.addTensor(table, bias.dBias, true);
      }
      if (k.requiresGradient || v.requiresGradient) {
        const [dK, dV] = [gradientTensor(g, k), gradientTensor(g, v)];
        g.add({
          name: "attention_key_value_gradient",
          reads,
          writes: [dK, dV],
          flops: 8 * pairs * headDim,
          lower: (target) => attentionKeyValueGradient({ ...inputs, dK, dV }, dims, target),
        });
        gradients.addTensor(k, dK, true);
        gradients.addTensor(v, dV, true);
      }
    },
  });
  return out;
}
