// The operations of a training step that are neither dense products nor experts, each in a graph of its own: time by
// timestamps, held against what bounds it. (Dense products: matmul.ts; router, dispatch and experts: moe.ts and the
// profile.)

import { relativeBuckets } from "../../src/kernels/attention.ts";
import { mixedProducts } from "../../src/kernels/capabilities.ts";
import { sortTokens } from "../../src/kernels/embedding.ts";
import { rmsNormReference } from "../../src/kernels/rms_norm.ts";
import { attention, positionBias } from "../../src/trainer/graph/ops/attention.ts";
import { embedding, residual, rmsNorm } from "../../src/trainer/graph/ops/dense.ts";
import { gatedGelu } from "../../src/trainer/graph/ops/feed_forward.ts";
import { linearCrossEntropy } from "../../src/trainer/graph/ops/loss.ts";
import { attentionError } from "../attention_check.ts";
import { squares } from "../moe_layer.ts";
import { noiseAt } from "../noise.ts";
import { type Bench, type Part, roofline, type Scale, workRate } from "../part.ts";
import { type Layer, type LayerBuild, type RecordedLayer, recordLayer } from "../recorded_graph.ts";

interface Sizes {
  readonly batch: number;
  readonly input: number;
  readonly target: number;
  readonly heads: number;
  readonly headDim: number;
  readonly dFf: number;
  readonly vocabulary: number;
}

/** gpu: switch-base-8 at the batch of the model's part. */
const SIZES: Readonly<Record<Scale, Sizes>> = {
  small: { batch: 2, input: 64, target: 16, heads: 4, headDim: 16, dFf: 128, vocabulary: 384 },
  gpu: { batch: 32, input: 512, target: 128, heads: 12, headDim: 64, dFf: 3072, vocabulary: 32128 },
};

/** A layer to measure; `error` holds it against float64. */
interface Case {
  readonly name: string;
  build(b: LayerBuild): Layer;
  error?(layer: RecordedLayer): Promise<number>;
  /** It has matrix products, or may have: it is measured in both precisions. */
  readonly products?: boolean;
  /** Only the optimizer behind it is measured. */
  readonly optimizer?: boolean;
}

function attentionCase(
  name: string,
  s: Sizes,
  queryLength: number,
  keyLength: number,
  biased: boolean,
  causal: boolean,
) {
  const width = s.heads * s.headDim;
  const buckets = biased ? 32 : 0;
  const dims = { batch: s.batch, heads: s.heads, queryLength, keyLength, headDim: s.headDim, buckets, causal };
  const bucketOfDistance = relativeBuckets(queryLength, keyLength, {
    buckets: 32,
    maxDistance: 128,
    bidirectional: !causal,
  });
  let built: Layer | undefined;
  return {
    name,
    products: true,
    build(b: LayerBuild): Layer {
      const [q, k, v] = [queryLength, keyLength, keyLength].map((length, i) =>
        b.parameter("qkv"[i], [s.batch * length, width], {}),
      );
      const lengths = { queryLength, keyLength };
      const table = () => b.parameter("bias", [buckets, s.heads], {});
      const distances = b.graph.constant("distances", bucketOfDistance);
      const bias = biased ? positionBias(b.graph, "position_bias", table(), distances, lengths) : undefined;
      const dropout = { rate: 0, step: b.step };
      const options = { ...dims, kvHeads: s.heads, scale: 1, bias, dropout };
      built = { output: attention(b.graph, name, q, k, v, options) };
      return built;
    },
    error: (layer: RecordedLayer) => attentionError(layer, built!.output!, dims, biased ? bucketOfDistance : undefined),
  };
}

function cases(s: Sizes): Case[] {
  const width = s.heads * s.headDim;
  const tokens = s.batch * s.input;
  const targets = s.batch * s.target;
  const ids = (count: number): Uint32Array<ArrayBuffer> =>
    Uint32Array.from({ length: count }, (_, i) => Math.floor(((noiseAt({}, i) + 1) / 2) * s.vocabulary));
  let normed: Layer | undefined;
  return [
    attentionCase("encoder attention", s, s.input, s.input, true, false),
    attentionCase("decoder attention", s, s.target, s.target, true, true),
    attentionCase("cross-attention", s, s.target, s.input, false, false),
    {
      name: "norm",
      build(b) {
        const weight = b.parameter("weight", [width], {});
        normed = { output: rmsNorm(b.graph, "norm", b.input("x", [tokens, width]), weight, 1e-6) };
        return normed;
      },
      async error(layer) {
        const values = (name: string) =>
          Float64Array.from({ length: width }, (_, i) => noiseAt(layer.noise.get(name)!, i));
        const dims = { rows: 1, columns: width, epsilon: 1e-6 };
        const { out } = rmsNormReference(values("x"), values("weight"), dims);
        const actual = await layer.readF32(normed!.output!);
        const sum = squares();
        out.forEach((value, i) => void sum.add(actual[i], value));
        return sum.relative();
      },
    },
    {
      name: "residual",
      build: (b) => {
        const [base, x] = ["base", "x"].map((name) => b.input(name, [tokens, width]));
        return { output: residual(b.graph, "residual", base, x, { rate: 0, step: b.step }) };
      },
    },
    {
      name: "geglu",
      build: (b) => {
        const [gate, up] = ["gate", "up"].map((name) => b.input(name, [tokens, s.dFf]));
        return { output: gatedGelu(b.graph, "hidden", gate, up) };
      },
    },
    {
      name: "embedding",
      build: (b) => {
        const table = b.parameter("table", [s.vocabulary, width], {});
        const given = ids(tokens);
        const { tokenOrder, rowStart } = sortTokens(given, s.vocabulary);
        const lookup = {
          ids: b.given("ids", [tokens], given),
          order: b.given("order", [tokens], tokenOrder),
          rowStart: b.given("row_start", [s.vocabulary + 1], rowStart),
        };
        return { output: embedding(b.graph, "embedded", table, lookup) };
      },
    },
    {
      name: "vocabulary",
      products: true,
      build: (b) => {
        const hidden = b.input("hidden", [targets, width]);
        const head = b.parameter("head", [s.vocabulary, width], { scale: width ** -0.5 });
        const labels = b.given("labels", [targets], Int32Array.from(ids(targets)));
        const loss = linearCrossEntropy(b.graph, hidden, head, labels, b.step, { alpha: 1, train: true });
        return { kept: [loss.rowLoss] };
      },
    },
    {
      name: "AdamW",
      optimizer: true,
      build: (b) => {
        const weight = b.parameter("weight", [2 * s.dFf * width], {});
        return { output: residual(b.graph, "sum", b.input("x", weight.shape), weight, { rate: 0, step: b.step }) };
      },
    },
  ];
}

/** Operands of up to three products in a row rounded to f16, some 2^-11 each; f32 sums of a few hundred terms otherwise. */
const BOUND = { f32: 1e-4, mixed: 6 * 2 ** -11 } as const;

async function measure(bench: Bench): Promise<void> {
  const device = await bench.device();
  if (!device.capabilities.timestampQuery) throw new Error("this part needs an adapter with timestamp queries");
  for (const precision of ["mixed", "f32"] as const) {
    const products = precision === "f32" ? "f32" : mixedProducts(device.capabilities);
    for (const c of cases(SIZES[bench.scale])) {
      if (precision === "mixed" && !c.products) continue;
      const layer = await recordLayer(device, precision, c.build, c.optimizer);
      const error = await c.error?.(layer);
      const profile = (await layer.profile()).filter(
        (o) => o.seconds > 0 && (o.phase === "optimizer") === (c.optimizer ?? false),
      );
      for (const o of profile) {
        const work = workRate(bench.scale, o.flops, o.seconds);
        bench.report({
          name: `${c.name}: ${o.operation} ${precision}`,
          figures: {
            ms: 1e3 * o.seconds,
            ...(o.flops > 0 ? { [work.rate]: work.value } : {}),
            "GB/s": o.bytes / o.seconds / 1e9,
            ...roofline(bench, products, o),
            ...(error === undefined ? {} : { "error of all": error }),
          },
          wrong: error !== undefined && !(error <= BOUND[precision]),
        });
      }
      layer.destroy();
    }
  }
}

export const kernels: Part = {
  name: "kernels",
  title: "other operations of a step, by timestamps; bytes count each tensor once",
  seconds: { small: 40, gpu: 60 },
  measure,
};
