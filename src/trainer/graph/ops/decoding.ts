// Operations of incremental decoding, one position at a time; forward only.

import { argmaxRows } from "../../../kernels/cross_entropy.ts";
import { DTYPE_BYTES } from "../../../kernels/kernel.ts";
import { kvCacheAppend, kvCacheReorder } from "../../../kernels/kv_cache.ts";
import { matmul } from "../../../kernels/matmul.ts";
import type { Graph, Tensor } from "../graph.ts";

/** Words of a position of a cache. */
const wordsOf = ({ shape, dtype }: Tensor): number => (shape[2] * DTYPE_BYTES[dtype]) / 4;

/** Appends x [rows, width] to cache [rows, length, width] at position [1] u32. */
export function appendToCache(g: Graph, x: Tensor, cache: Tensor, position: Tensor): void {
  const [rows, length] = cache.shape;
  const width = wordsOf(cache);
  g.add({
    name: "kv_cache_append",
    reads: [x, position, cache],
    writes: [cache],
    lower: () => kvCacheAppend({ x, position, cache }, { rows, length, width }),
  });
}

/** Row r of cache [rows, length, width] becomes what row parents[r] was. */
export function reorderCache(g: Graph, cache: Tensor, parents: Tensor): void {
  const [rows, length] = cache.shape;
  const width = wordsOf(cache);
  const scratch = g.indices("kv_cache_scratch", [rows, length, width]);
  g.add({
    name: "kv_cache_reorder",
    reads: [cache, parents],
    writes: [cache],
    scratch: [scratch],
    lower: () => kvCacheReorder({ cache, parents, scratch }, { rows, length, width }),
  });
}

/** Logits [rows, vocabulary] = alpha · hidden · weightᵀ, and the index of each row's largest, ties to the lower. */
export function nextTokens(
  g: Graph,
  hidden: Tensor,
  weight: Tensor,
  alpha: number,
): { logits: Tensor; predicted: Tensor } {
  const [rows, width] = hidden.shape;
  const vocabulary = weight.shape[0];
  const logits = g.activation("next_logits", [rows, vocabulary]);
  const predicted = g.indices("next_token", [rows]);
  g.add({
    name: "next_tokens",
    reads: [hidden, weight],
    writes: [logits, predicted],
    flops: 2 * rows * vocabulary * width,
    lower: (target) => [
      ...matmul(
        { a: hidden, b: weight, out: logits },
        { m: rows, n: vocabulary, k: width, transposeA: false, transposeB: true, alpha, products: g.products },
        target,
      ),
      ...argmaxRows({ logits, out: predicted }, { rows, vocabulary, rowOffset: 0 }),
    ],
  });
  g.keep(logits, predicted);
  return { logits, predicted };
}
