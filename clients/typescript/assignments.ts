// Token assignments as typed arrays. AssignmentSlice packs its arrays as little-endian bytes at any alignment; here they
// are copied out once. Typed arrays use the host's byte order, which is little-endian wherever Node and Deno run.

import type { AssignmentSlice } from "../../proto/gen/thaw/v1/routing_pb.ts";

/** One layer's routing: n tokens, k choices per token, rows of k. */
export interface Assignments {
  readonly tokenCount: number;
  readonly topK: number;
  readonly expertCount: number;
  /** [n] index of each token's example in its split */
  readonly exampleIds: Uint32Array;
  /** [n] position of each token in its sequence */
  readonly positions: Uint32Array;
  /** [n] vocabulary ids; undefined unless they were asked for */
  readonly tokenIds?: Uint32Array;
  /** [n, k] chosen experts, best choice first; `expertCount` is none, where experts choose and fewer took the token */
  readonly expertIds: Uint8Array | Uint16Array;
  /** [n, k] gates, widened from f16; undefined unless they were asked for */
  readonly gates?: Float32Array;
  /** [n, k] 1 when the expert took the token, 0 when it did not: over capacity, left out at random, or no expert */
  readonly kept: Uint8Array;
}

/** Decodes a slice. @throws RangeError when an array has another length than `token_count` and `top_k` say. */
export function decodeAssignments(slice: AssignmentSlice): Assignments {
  const n = Number(slice.tokenCount);
  const choices = n * slice.topK;
  const wide = slice.expertIdBytes === 2;
  const expertIds = copy("expert_ids", slice.expertIds, choices * slice.expertIdBytes);
  return {
    tokenCount: n,
    topK: slice.topK,
    expertCount: slice.expertCount,
    exampleIds: new Uint32Array(copy("example_ids", slice.exampleIds, n * 4)),
    positions: new Uint32Array(copy("positions", slice.positions, n * 4)),
    ...(slice.tokenIds.length > 0 ? { tokenIds: new Uint32Array(copy("token_ids", slice.tokenIds, n * 4)) } : {}),
    expertIds: wide ? new Uint16Array(expertIds) : new Uint8Array(expertIds),
    ...(slice.gates.length > 0 ? { gates: widenHalves(new Uint16Array(copy("gates", slice.gates, choices * 2))) } : {}),
    kept: unpackBits(slice.keptBits, choices),
  };
}

function copy(field: string, packed: Uint8Array, bytes: number): ArrayBuffer {
  if (packed.length !== bytes) throw new RangeError(`${field} holds ${packed.length} bytes, expected ${bytes}`);
  return new Uint8Array(packed).buffer;
}

/** Bit i is bit i % 8 of byte i / 8, least significant first. */
function unpackBits(packed: Uint8Array, count: number): Uint8Array {
  if (packed.length !== Math.ceil(count / 8)) {
    throw new RangeError(`kept_bits holds ${packed.length} bytes, expected ${Math.ceil(count / 8)}`);
  }
  return Uint8Array.from({ length: count }, (_, i) => (packed[i >> 3] >> (i & 7)) & 1);
}

/** IEEE 754 binary16 to binary32; exact, subnormals, infinities and NaN included. */
function widenHalves(halves: Uint16Array): Float32Array {
  return Float32Array.from(halves, (half) => {
    const sign = half & 0x8000 ? -1 : 1;
    const exponent = (half >> 10) & 0x1f;
    const fraction = half & 0x3ff;
    if (exponent === 0x1f) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
    return exponent === 0 ? sign * fraction * 2 ** -24 : sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  });
}
