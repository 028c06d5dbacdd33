// One layer's routing of one batch as packed little-endian bytes. Protobuf's `repeated` would cost ten times as much to
// encode. Typed arrays are little-endian on every platform that has WebGPU, so their memory is the wire format.

import { create } from "@bufbuild/protobuf";
import { type AssignmentSlice, AssignmentSliceSchema } from "../../../../proto/gen/thaw/v1/routing_pb.ts";
import type { RouteBatch } from "../../../trainer/types.ts";
import * as enums from "./enums.ts";
import { float16Bits } from "./float16.ts";
import { count } from "./scalars.ts";

export interface RouteFields {
  readonly tokenIds: boolean;
  readonly gates: boolean;
}

/** An expert id, and the number of experts that stands for none, fit one byte up to this many experts. */
const ONE_BYTE_EXPERTS = 255;

/**
 * The slice of `tokens`, indices into the batch, ascending; all of them when absent. Its arrays may share the batch's
 * memory: encode it before the batch changes.
 */
export function routesToProto(batch: RouteBatch, fields: RouteFields, tokens?: Uint32Array): AssignmentSlice {
  const { topK } = batch;
  const perToken = <A extends Uint32Array>(array: A) => (tokens ? gather(array, tokens, 1) : array);
  const perChoice = <A extends Packed>(array: A): A => (tokens ? gather(array, tokens, topK) : array);
  const experts = perChoice(batch.expertIds);
  const narrow = batch.experts <= ONE_BYTE_EXPERTS;
  return create(AssignmentSliceSchema, {
    source: enums.routeSource.toProto(batch.source),
    step: count(batch.step),
    stack: enums.stack.toProto(batch.stack),
    layer: batch.layer,
    expertCount: batch.experts,
    topK,
    tokenCount: count(tokens ? tokens.length : batch.exampleIds.length),
    exampleIds: bytesOf(perToken(batch.exampleIds)),
    positions: bytesOf(perToken(batch.positions)),
    tokenIds: fields.tokenIds ? bytesOf(perToken(batch.tokenIds)) : undefined,
    expertIdBytes: narrow ? 1 : 2,
    expertIds: narrow ? Uint8Array.from(experts) : bytesOf(experts),
    gates: fields.gates ? bytesOf(Uint16Array.from(perChoice(batch.gates), float16Bits)) : undefined,
    keptBits: packBits(perChoice(batch.kept)),
  });
}

type Packed = Uint8Array | Uint16Array | Uint32Array | Float32Array;

/** Rows `indices` of array [n, width]. */
function gather<A extends Packed>(array: A, indices: Uint32Array, width: number): A {
  const rows = new (array.constructor as new (length: number) => A)(indices.length * width);
  for (let i = 0; i < indices.length; i++) {
    for (let j = 0; j < width; j++) rows[i * width + j] = array[indices[i] * width + j];
  }
  return rows;
}

const bytesOf = (array: ArrayBufferView): Uint8Array<ArrayBuffer> =>
  new Uint8Array(array.buffer as ArrayBuffer, array.byteOffset, array.byteLength);

/** flags: [n] of 0 or 1 → [ceil(n / 8)] bytes, least significant bit first. */
function packBits(flags: Uint8Array): Uint8Array<ArrayBuffer> {
  const packed = new Uint8Array(Math.ceil(flags.length / 8));
  for (let i = 0; i < flags.length; i++) if (flags[i]) packed[i >> 3] |= 1 << (i & 7);
  return packed;
}
