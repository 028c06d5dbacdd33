// T5's relative position buckets: half of them for exact small distances, the rest spaced by logarithm up to
// `maxDistance`, everything farther in the last (Hugging Face T5 `_relative_position_bucket`, mesh TensorFlow).
//
// The bucket depends on the distance alone, so the host tabulates it once per pair of lengths; no kernel takes a
// logarithm that could round a boundary distance into the wrong bucket.

import { embeddingForward } from "./embedding.ts";
import type { Command } from "./kernel.ts";

export interface RelativeBucketOptions {
  readonly buckets: number;
  readonly maxDistance: number;
  /** Encoder: half of the buckets for keys after the query. Decoder: such keys share bucket 0. */
  readonly bidirectional: boolean;
}

/** The bucket of key position − query position, in the f32 arithmetic of the reference. */
function relativeBucket(relative: number, { buckets, maxDistance, bidirectional }: RelativeBucketOptions): number {
  const side = bidirectional ? buckets >> 1 : buckets;
  const offset = bidirectional && relative > 0 ? side : 0;
  const distance = bidirectional ? Math.abs(relative) : Math.max(-relative, 0);
  const exact = side >> 1;
  if (distance < exact) return offset + distance;
  const logarithm = Math.fround(Math.log(Math.fround(distance / exact)));
  const share = Math.fround(logarithm / Math.fround(Math.log(maxDistance / exact)));
  return offset + Math.min(exact + Math.trunc(Math.fround(share * (side - exact))), side - 1);
}

/**
 * The bucket of each distance, u32 [queryLength + keyLength - 1], at index
 * key - query + queryLength - 1. Both positions count from 0.
 */
export const relativeBuckets = (
  queryLength: number,
  keyLength: number,
  options: RelativeBucketOptions,
): Uint32Array<ArrayBuffer> =>
  Uint32Array.from({ length: queryLength + keyLength - 1 }, (_, i) => relativeBucket(i - queryLength + 1, options));

/**
 * What the attention kernels add to a score, by distance: out [queryLength + keyLength - 1, heads] f32 from the bias
 * table [buckets, heads] and `bucketOfDistance` u32 (an embedding of distances).
 */
export function distanceBias<T>(
  buffers: { table: T; bucketOfDistance: T; out: T },
  dims: { queryLength: number; keyLength: number; heads: number; buckets: number },
): Command<T>[] {
  const { table, bucketOfDistance, out } = buffers;
  const tokens = dims.queryLength + dims.keyLength - 1;
  return embeddingForward(
    { table, ids: bucketOfDistance, out },
    { tokens, width: dims.heads, vocabulary: dims.buckets },
  );
}
