// One head of one row of a batch, and its gradients, in float64.

import { attentionGradientsReference, attentionReference } from "../src/kernels/attention.reference.ts";
import type { AttentionDims } from "../src/kernels/attention.ts";
import type { Tensor } from "../src/trainer/graph/graph.ts";
import { squares } from "./moe_layer.ts";
import { type Noise, noiseAt } from "./noise.ts";
import type { RecordedLayer } from "./recorded_graph.ts";

/**
 * ‖actual - exact‖ / ‖exact‖ of the last head's output and gradients in the first row; `bucketOfDistance` where it is
 * biased.
 */
export async function attentionError(
  layer: RecordedLayer,
  output: Tensor,
  dims: Omit<AttentionDims, "kvHeads" | "scale" | "dropout">,
  bucketOfDistance?: Uint32Array,
): Promise<number> {
  const { heads, queryLength, keyLength, headDim, buckets, causal } = dims;
  const width = heads * headDim;
  const h = heads - 1;
  const noise = (name: string): Noise => layer.noise.get(name)!;
  const head = (length: number, at: (index: number) => number): Float64Array =>
    Float64Array.from({ length: length * headDim }, (_, i) =>
      at(Math.floor(i / headDim) * width + h * headDim + (i % headDim)),
    );
  const [q, dOut] = ["q", "d_output"].map((name) => head(queryLength, (i) => noiseAt(noise(name), i)));
  const [k, v] = ["k", "v"].map((name) => head(keyLength, (i) => noiseAt(noise(name), i)));
  const bias =
    bucketOfDistance && Float64Array.from({ length: buckets }, (_, b) => noiseAt(noise("bias"), b * heads + h));
  const single = { batch: 1, heads: 1, kvHeads: 1, queryLength, keyLength, headDim, scale: 1, causal, buckets };
  const inputs = { q, k, v, bias, bucketOfDistance };
  const forward = attentionReference(inputs, single);
  const gradients = attentionGradientsReference(inputs, forward, dOut, single);
  const compare = (actual: Float32Array, length: number, exact: Float64Array): number => {
    const sum = squares();
    const own = head(length, (i) => actual[i]);
    exact.forEach((value, i) => void sum.add(own[i], value));
    return sum.relative();
  };
  return Math.max(
    compare(await layer.readF32(output), queryLength, forward.out),
    compare(await layer.gradient("q"), queryLength, gradients.dQ),
    compare(await layer.gradient("k"), keyLength, gradients.dK),
    compare(await layer.gradient("v"), keyLength, gradients.dV),
  );
}
