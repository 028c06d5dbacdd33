// Dispatch: which row of the sorted expert input every assignment gets. Written on the device, never read back.
//
// An assignment is one choice of one token, a = token · topK + choice. The rows of one expert stand together, in the
// order (group, choice, token): all first choices of a group before any second choice, groups one after another. A token
// order given besides (routing_priority.ts) takes the place of the tokens' own. An
// assignment is kept while its rank among those of its (group, expert) is below the capacity, so what is kept of a
// group is a prefix, and the place of a row follows from three sums:
//   row = expert_offset[e] + kept of e in earlier groups + rank of a in (group, e)
// Every expert's rows are padded to `rowTile`, so that a block of a matmul belongs to one expert.
//
// It is a stable counting sort (vLLM `moe_align_block_size`): histograms of chunks of the order, one scan over chunks
// and experts, a ranked scatter. Chunks never straddle groups. Nothing depends on the order of atomics.

import {
  type BufferDeclaration,
  type Command,
  call,
  defineKernel,
  LINEAR_INDEX,
  madeOnce,
  read,
  spread,
  write,
} from "./kernel.ts";
import {
  GROUP_BOUNDS,
  GROUP_CAPACITY,
  type GroupSlots,
  groupCount,
  lastGroupTokens,
  type TokenGroups,
} from "./token_groups.ts";

/** In `rowOfAssignment`: dropped or masked. In `sourceOfRow`: a padding row. */
export const NO_ROW = 0xffffffff;
/** The capacity that drops nothing. */
export const DROPLESS = 0xffffffff;

const WORKGROUP = 64;
/** Assignments that one thread walks. */
const CHUNK = 64;

const CHUNK_PARAMS = { tokens: "u32", tokens_per_group: "u32", top_k: "u32", experts: "u32" } as const;
const SLOT_PARAMS = { capacity: "u32", last_capacity: "u32" } as const;

const HEAD = /* wgsl */ `${LINEAR_INDEX}${GROUP_BOUNDS}
const WORKGROUP = ${WORKGROUP}u;
const CHUNK = ${CHUNK}u;
const NO_ROW = ${NO_ROW}u;

fn groups() -> u32 { return (params.tokens + params.tokens_per_group - 1u) / params.tokens_per_group; }
fn chunks_per_group() -> u32 { return (params.tokens_per_group * params.top_k + CHUNK - 1u) / CHUNK; }
`;

// One thread per (chunk, column): it walks the chunk's assignments and sees those of expert `column`.
const walk = (ordered: boolean) => /* wgsl */ `${HEAD}
// The assignment that stands n-th in a group's order (choice, token).
fn assignment(group: u32, n: u32) -> u32 {
  let tokens = group_end(group) - group_first(group);
  let choice = n / tokens;
  let place = group_first(group) + n % tokens;
  return ${ordered ? "token_order[place]" : "place"} * params.top_k + choice;
}
`;

// token_order: [tokens]
const orderDeclaration = (ordered: boolean): Record<string, BufferDeclaration> =>
  ordered ? { token_order: read("u32") } : {};
const suffix = (ordered: boolean) => (ordered ? "_ordered" : "");

const histogramKernel = (ordered: boolean) =>
  defineKernel<keyof typeof CHUNK_PARAMS, string>({
    name: `moe_dispatch_histogram${suffix(ordered)}`,
    params: CHUNK_PARAMS,
    buffers: {
      expert_ids: read("u32"), // [tokens, top_k]
      ...orderDeclaration(ordered),
      scratch: write("u32"), //   first part: [groups, chunks, experts]
    },
    wgsl: /* wgsl */ `${walk(ordered)}
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lane: u32) {
  let thread = linear_index(wid, num) * WORKGROUP + lane;
  if (thread >= groups() * chunks_per_group() * params.experts) { return; }
  let e = thread % params.experts;
  let chunk = thread / params.experts;
  let group = chunk / chunks_per_group();
  let first = (chunk % chunks_per_group()) * CHUNK;
  let last = min(first + CHUNK, (group_end(group) - group_first(group)) * params.top_k);
  var count = 0u;
  for (var n = first; n < last; n++) { count += u32(expert_ids[assignment(group, n)] == e); }
  scratch[thread] = count;
}
`,
  });

// One workgroup. Turns each chunk's count into the rank its first assignment has in (group, expert), and leaves in the
// second part of the scratch how many rows of the expert earlier groups keep.
const scanKernel = defineKernel({
  name: "moe_dispatch_scan",
  params: { ...CHUNK_PARAMS, ...SLOT_PARAMS, row_tile: "u32" },
  buffers: {
    scratch: write("u32"), //       [groups, chunks, experts] then [groups, experts]
    expert_offset: write("u32"), // [experts + 1]
    expert_count: write("u32"), //  [experts]
    demand: write("u32"), //        [experts]
  },
  wgsl: /* wgsl */ `${HEAD}${GROUP_CAPACITY}
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32) {
  let chunks = chunks_per_group();
  let second = groups() * chunks * params.experts;
  for (var e = lane; e < params.experts; e += WORKGROUP) {
    var wanted = 0u;
    var kept = 0u;
    for (var group = 0u; group < groups(); group++) {
      scratch[second + group * params.experts + e] = kept;
      var rank = 0u;
      for (var chunk = 0u; chunk < chunks; chunk++) {
        let at = (group * chunks + chunk) * params.experts + e;
        let count = scratch[at];
        scratch[at] = rank;
        rank += count;
      }
      wanted += rank;
      kept += min(rank, group_capacity(group));
    }
    demand[e] = wanted;
    expert_count[e] = kept;
  }
  storageBarrier();
  if (lane == 0u) {
    var offset = 0u;
    for (var e = 0u; e < params.experts; e++) {
      expert_offset[e] = offset;
      offset += (expert_count[e] + params.row_tile - 1u) / params.row_tile * params.row_tile;
    }
    expert_offset[params.experts] = offset;
  }
}
`,
});

const fillKernel = defineKernel({
  name: "moe_dispatch_fill",
  params: { experts: "u32", row_tile: "u32", max_rows: "u32" },
  buffers: {
    expert_offset: read("u32"),
    source_of_row: write("u32"), //   [max_rows]
    expert_of_block: write("u32"), // [max_rows / row_tile]
  },
  wgsl: /* wgsl */ `${LINEAR_INDEX}
const WORKGROUP = ${WORKGROUP}u;
const NO_ROW = ${NO_ROW}u;
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lane: u32) {
  let index = linear_index(wid, num) * WORKGROUP + lane;
  if (index >= params.max_rows) { return; }
  source_of_row[index] = NO_ROW;
  if (index >= params.max_rows / params.row_tile) { return; }
  // The first expert whose rows end after this block begins; none (= experts) past the last row.
  let row = index * params.row_tile;
  var low = 0u;
  var high = params.experts;
  while (low < high) {
    let middle = (low + high) / 2u;
    if (expert_offset[middle + 1u] > row) { high = middle; } else { low = middle + 1u; }
  }
  expert_of_block[index] = low;
}
`,
});

const scatterKernel = (ordered: boolean) =>
  defineKernel<keyof typeof CHUNK_PARAMS | keyof typeof SLOT_PARAMS, string>({
    name: `moe_dispatch_scatter${suffix(ordered)}`,
    params: { ...CHUNK_PARAMS, ...SLOT_PARAMS },
    buffers: {
      expert_ids: read("u32"),
      ...orderDeclaration(ordered),
      scratch: read("u32"),
      expert_offset: read("u32"),
      row_of_assignment: write("u32"), // [tokens, top_k]
      source_of_row: write("u32"), //     [max_rows]
    },
    wgsl: /* wgsl */ `${walk(ordered)}${GROUP_CAPACITY}
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lane: u32) {
  // The column after the last expert writes the masked assignments.
  let columns = params.experts + 1u;
  let thread = linear_index(wid, num) * WORKGROUP + lane;
  let chunks = groups() * chunks_per_group();
  if (thread >= chunks * columns) { return; }
  let e = thread % columns;
  let chunk = thread / columns;
  let group = chunk / chunks_per_group();
  let first = (chunk % chunks_per_group()) * CHUNK;
  let last = min(first + CHUNK, (group_end(group) - group_first(group)) * params.top_k);
  if (e == params.experts) {
    for (var n = first; n < last; n++) {
      let a = assignment(group, n);
      if (expert_ids[a] >= params.experts) { row_of_assignment[a] = NO_ROW; }
    }
    return;
  }
  let begin = expert_offset[e] + scratch[(chunks + group) * params.experts + e];
  let capacity = group_capacity(group);
  var rank = scratch[chunk * params.experts + e];
  for (var n = first; n < last; n++) {
    let a = assignment(group, n);
    if (expert_ids[a] != e) { continue; }
    if (rank < capacity) {
      row_of_assignment[a] = begin + rank;
      source_of_row[begin + rank] = a;
    } else {
      row_of_assignment[a] = NO_ROW;
    }
    rank++;
  }
}
`,
  });

const histogram = madeOnce(histogramKernel);
const scatter = madeOnce(scatterKernel);

/** Slots are per group; {@link DROPLESS} for no limit. */
export interface DispatchDims extends TokenGroups, GroupSlots {
  readonly topK: number;
  readonly experts: number;
  /** Height of a matmul block: every expert's rows are padded to a multiple of it. */
  readonly rowTile: number;
}

const chunkCount = (dims: TokenGroups & { topK: number }): number =>
  groupCount(dims) * Math.ceil((dims.tokensPerGroup * dims.topK) / CHUNK);

/** Elements (u32) of the scratch buffer of {@link moeDispatch}. */
export const moeDispatchScratch = (dims: TokenGroups & { topK: number; experts: number }): number =>
  (chunkCount(dims) + groupCount(dims)) * dims.experts;

/**
 * The most rows a dispatch can need, padding included: a multiple of `rowTile`. A token's
 * choices are distinct experts, so one expert keeps at most as many rows as a group has tokens or slots, in every group.
 */
export function moeMaxRows(dims: DispatchDims): number {
  const { tokens, tokensPerGroup, topK, experts, capacity, lastCapacity = capacity, rowTile } = dims;
  const perExpert =
    (groupCount(dims) - 1) * Math.min(tokensPerGroup, capacity) + Math.min(lastGroupTokens(dims), lastCapacity);
  const kept = Math.min(tokens * topK, perExpert * experts);
  const occupied = Math.min(experts, kept);
  const blocks = Math.floor((kept + occupied * (rowTile - 1)) / rowTile);
  return Math.min(blocks, experts * Math.ceil(perExpert / rowTile)) * rowTile;
}

/**
 * Sorts the assignments in expertIds [tokens, topK] u32 (an id ≥ experts = masked: takes no slot) into rows. All u32:
 * rowOfAssignment [tokens, topK] ({@link NO_ROW} = dropped or masked), sourceOfRow [maxRows] = assignment index
 * ({@link NO_ROW} = padding), expertOfBlock [maxRows / rowTile] (`experts` = unused), expertOffset [experts + 1] first
 * row of each expert, expertCount [experts] rows kept, demand [experts] assignments before drops. A token's ids must
 * be distinct. tokenOrder [tokens], optional: each group's token indices in the order in which they take slots. scratch:
 * {@link moeDispatchScratch} elements.
 * @throws RangeError when maxRows is below {@link moeMaxRows} or no multiple of rowTile.
 */
export function moeDispatch<T>(
  buffers: {
    expertIds: T;
    tokenOrder?: T;
    scratch: T;
    rowOfAssignment: T;
    sourceOfRow: T;
    expertOfBlock: T;
    expertOffset: T;
    expertCount: T;
    demand: T;
  },
  dims: DispatchDims & { maxRows: number },
): Command<T>[] {
  const { tokens, tokensPerGroup, topK, experts, capacity, lastCapacity = capacity, rowTile, maxRows } = dims;
  if (maxRows < moeMaxRows(dims) || maxRows % rowTile !== 0)
    throw new RangeError(`max_rows must be a multiple of ${rowTile}, at least ${moeMaxRows(dims)}, got ${maxRows}`);
  const { expertIds, tokenOrder, scratch, sourceOfRow } = buffers;
  const ordered = tokenOrder !== undefined;
  const order: Record<string, T> = ordered ? { token_order: tokenOrder } : {};
  const expert_offset = buffers.expertOffset;
  const sizes = { tokens, tokens_per_group: tokensPerGroup, top_k: topK, experts };
  const slots = { capacity, last_capacity: lastCapacity };
  const chunks = chunkCount(dims);
  return [
    call(
      histogram(ordered),
      sizes,
      { expert_ids: expertIds, ...order, scratch },
      spread(Math.ceil((chunks * experts) / WORKGROUP)),
    ),
    call(
      scanKernel,
      { ...sizes, ...slots, row_tile: rowTile },
      { scratch, expert_offset, expert_count: buffers.expertCount, demand: buffers.demand },
      [1],
    ),
    call(
      fillKernel,
      { experts, row_tile: rowTile, max_rows: maxRows },
      { expert_offset, source_of_row: sourceOfRow, expert_of_block: buffers.expertOfBlock },
      spread(Math.ceil(maxRows / WORKGROUP)),
    ),
    call(
      scatter(ordered),
      { ...sizes, ...slots },
      {
        expert_ids: expertIds,
        ...order,
        scratch,
        expert_offset,
        row_of_assignment: buffers.rowOfAssignment,
        source_of_row: sourceOfRow,
      },
      spread(Math.ceil((chunks * (experts + 1)) / WORKGROUP)),
    ),
  ];
}
