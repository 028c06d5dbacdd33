// The tokens of one layer's slice that one subscriber asked for. The GPU process sends what anybody wants; this narrows it
// to what one wants, on the packed bytes.

import { create } from "@bufbuild/protobuf";
import {
  type AssignmentSlice,
  AssignmentSliceSchema,
  type RouteFilter,
} from "../../../proto/gen/thaw/v1/routing_pb.ts";
import { samples } from "../worker/route_filter.ts";

export interface RouteRequest {
  readonly filter?: RouteFilter;
  readonly includeTokenIds: boolean;
  readonly includeGates: boolean;
}

const NOTHING = new Uint8Array(0);

const isIn = <T>(list: readonly T[] | undefined, value: T): boolean => !list?.length || list.includes(value);

/** The part of a slice that a request asks for; undefined when there is none. */
export function narrowSlice(slice: AssignmentSlice, request: RouteRequest): AssignmentSlice | undefined {
  const { filter } = request;
  if (!isIn(filter?.sources, slice.source) || !isIn(filter?.stacks, slice.stack)) return undefined;
  if (!isIn(filter?.layers, slice.layer)) return undefined;
  const dressed = {
    ...slice,
    tokenIds: request.includeTokenIds ? slice.tokenIds : NOTHING,
    gates: request.includeGates ? slice.gates : NOTHING,
  };
  const tokens = chosenTokens(slice, filter);
  if (tokens.length === 0) return undefined;
  if (tokens.length === Number(slice.tokenCount)) return create(AssignmentSliceSchema, dressed);
  const { topK, expertIdBytes } = slice;
  return create(AssignmentSliceSchema, {
    ...dressed,
    tokenCount: BigInt(tokens.length),
    exampleIds: gather(slice.exampleIds, tokens, 4),
    positions: gather(slice.positions, tokens, 4),
    tokenIds: gather(dressed.tokenIds, tokens, 4),
    expertIds: gather(slice.expertIds, tokens, topK * expertIdBytes),
    gates: gather(dressed.gates, tokens, topK * 2),
    keptBits: gatherBits(slice.keptBits, tokens, topK),
  });
}

/** Indices of the tokens that pass, ascending. */
function chosenTokens(slice: AssignmentSlice, filter: RouteFilter | undefined): number[] {
  const all = Array.from({ length: Number(slice.tokenCount) }, (_, token) => token);
  const rate = filter?.samplingRate ?? 1;
  const examples = new Set(filter?.exampleIds.map(Number));
  const experts = new Set(filter?.experts);
  if (rate >= 1 && examples.size === 0 && experts.size === 0) return all;
  const { exampleIds, expertIds, expertIdBytes, expertCount, topK } = slice;
  const ids = new DataView(exampleIds.buffer, exampleIds.byteOffset, exampleIds.byteLength);
  const chosen = new DataView(expertIds.buffer, expertIds.byteOffset, expertIds.byteLength);
  const expertAt = (i: number): number => (expertIdBytes === 1 ? chosen.getUint8(i) : chosen.getUint16(2 * i, true));
  const choosesOne = (token: number): boolean => {
    const choices = Array.from({ length: topK }, (_, k) => expertAt(token * topK + k));
    return choices.some((expert) => expert < expertCount && experts.has(expert));
  };
  return all.filter((token) => {
    const example = ids.getUint32(4 * token, true);
    if (examples.size > 0 && !examples.has(example)) return false;
    return samples(Number(slice.step), example, rate) && (experts.size === 0 || choosesOne(token));
  });
}

/** Rows of `width` bytes; nothing of an array that was left out. */
function gather(bytes: Uint8Array, tokens: readonly number[], width: number): Uint8Array<ArrayBuffer> {
  if (bytes.length === 0) return NOTHING;
  const rows = new Uint8Array(tokens.length * width);
  tokens.forEach((token, row) => void rows.set(bytes.subarray(token * width, (token + 1) * width), row * width));
  return rows;
}

/** Rows of `width` bits, least significant first. */
function gatherBits(bits: Uint8Array, tokens: readonly number[], width: number): Uint8Array<ArrayBuffer> {
  const packed = new Uint8Array(Math.ceil((tokens.length * width) / 8));
  tokens.forEach((token, row) => {
    for (let k = 0; k < width; k++) {
      const from = token * width + k;
      const to = row * width + k;
      packed[to >> 3] |= ((bits[from >> 3] >> (from & 7)) & 1) << (to & 7);
    }
  });
  return packed;
}

/** What at least one of the requests wants: a filter that lets everything of theirs through. */
export function unionOf(requests: readonly RouteRequest[]) {
  const filters = requests.map(({ filter }) => filter);
  /** The values all filters name; empty, which means everything, when one of them names none. */
  const union = <T>(list: (filter: RouteFilter) => readonly T[]): T[] => {
    const lists = filters.map((filter) => (filter ? list(filter) : []));
    return lists.some((values) => values.length === 0) ? [] : [...new Set(lists.flat())];
  };
  return {
    filter: {
      stacks: union((filter) => filter.stacks),
      layers: union((filter) => filter.layers),
      experts: union((filter) => filter.experts),
      exampleIds: union((filter) => filter.exampleIds),
      sources: union((filter) => filter.sources),
      samplingRate: Math.max(...filters.map((filter) => filter?.samplingRate ?? 1)),
    },
    includeTokenIds: requests.some((request) => request.includeTokenIds),
    includeGates: requests.some((request) => request.includeGates),
  };
}
