// Which pairs see each other, in the attention kernels for matrix units. Three answers, from coarse to fine: the part of the
// other side that any owned row sees, which is all that is walked; whether a tile is visible as a whole, which is asked of
// most tiles and costs a few instructions; and a bit for each of a lane's scores, in the tiles at the edges.

import { laneScores, type Ownership, ownedSide, THREADS, WALKED, walkedSide } from "./attention_matrix_wgsl.ts";
import type { AttentionVariant } from "./attention_wgsl.ts";

/** Workgroup memory of what {@link seenWalk} and {@link seenBits} look at. */
export const SEEN_MEMORY = /* wgsl */ `
var<workgroup> segment_tile: array<u32, ${WALKED}>;
var<workgroup> lowest_segment: atomic<u32>; // of the owned rows
var<workgroup> highest_segment: atomic<u32>;
var<workgroup> owned_padding: atomic<u32>; //  is there any
var<workgroup> first_seen: atomic<u32>; // of the walked rows
var<workgroup> end_seen: atomic<u32>;
var<workgroup> count_seen: atomic<u32>;
var<workgroup> seen: vec3u; //             begin, end, whether all between are seen by all
`;

/**
 * The visible ones of a lane's scores, bit for bit; `begin` is the walked row of the first, `place` its place in the tile.
 */
export const seenBits = (v: AttentionVariant, o: Ownership): string => /* wgsl */ `
fn low_bits(count: u32) -> u32 { return select((1u << (count & 31u)) - 1u, 0xffffffffu, count >= 32u); }
fn rows_between(begin: u32, end: u32) -> u32 { return max(begin, end) - begin; }
fn seen_bits(row: u32, segment: u32, begin: u32, place: u32) -> u32 {
  let causal = params.causal != 0u;
  var bits = low_bits(rows_between(begin, ${walkedSide(o).length}))${
    o.side === "query"
      ? " & low_bits(select(32u, rows_between(begin, row + 1u), causal));"
      : " & ~low_bits(select(0u, rows_between(begin, row), causal));"
  }
  if (row >= ${ownedSide(o).length}) { bits = 0u; }
  ${
    v.segments
      ? /* wgsl */ `for (var c = 0u; c < ${laneScores(o)}u; c++) {
    bits &= ~select(1u << c, 0u, segment_tile[place + c] == segment);
  }`
      : ""
  }
  return bits;
}
fn four_bits(bits: u32) -> vec4<bool> { return (vec4u(bits) & vec4u(1u, 2u, 4u, 8u)) != vec4u(); }
`;

/** Declares walk_begin and walk_end; and seen_begin, seen_end and seen_whole, between which no segment hides anything. */
export function seenWalk(v: AttentionVariant, o: Ownership): string {
  const causal =
    o.side === "query"
      ? /* wgsl */ `let walk_begin = seen_begin / ${WALKED}u * ${WALKED}u;
  let walk_end = select(seen_end, min(seen_end, block + ${o.rows}u), params.causal != 0u);`
      : /* wgsl */ `let walk_begin = select(seen_begin, max(seen_begin, block), params.causal != 0u) / ${WALKED}u * ${WALKED}u;
  let walk_end = seen_end;`;
  const walked = walkedSide(o);
  if (!v.segments)
    return /* wgsl */ `let seen_begin = 0u;
  let seen_end = ${walked.length};
  let seen_whole = true;
  ${causal}`;
  return /* wgsl */ `
  // Between the first and the last row of the other side that is of any segment among ours.
  if (lid == 0u) {
    atomicStore(&lowest_segment, NOBODY);
    atomicStore(&highest_segment, 0u);
    atomicStore(&owned_padding, 0u);
    atomicStore(&first_seen, NOBODY);
    atomicStore(&end_seen, 0u);
    atomicStore(&count_seen, 0u);
  }
  workgroupBarrier();
  let exists = row < ${ownedSide(o).length};
  let lowest_here = subgroupMin(select(NOBODY, segment, exists));
  let highest_here = subgroupMax(select(0u, segment, exists && segment != NOBODY));
  let padding_here = subgroupMax(select(0u, 1u, exists && segment == NOBODY));
  if (subgroupElect()) {
    atomicMin(&lowest_segment, lowest_here);
    atomicMax(&highest_segment, highest_here);
    atomicMax(&owned_padding, padding_here);
  }
  workgroupBarrier();
  let lowest = atomicLoad(&lowest_segment);
  let highest = atomicLoad(&highest_segment);
  var first_mine = NOBODY;
  var end_mine = 0u;
  var count_mine = 0u;
  for (var r = lid; r < ${walked.length}; r += ${THREADS}u) {
    let other = ${walked.segment("r")};
    let ours = other >= lowest && other <= highest;
    first_mine = select(first_mine, min(first_mine, r), ours);
    end_mine = select(end_mine, r + 1u, ours);
    count_mine += select(0u, 1u, ours);
  }
  let first_here = subgroupMin(first_mine);
  let end_here = subgroupMax(end_mine);
  let count_here = subgroupAdd(count_mine);
  if (subgroupElect()) {
    atomicMin(&first_seen, first_here);
    atomicMax(&end_seen, end_here);
    atomicAdd(&count_seen, count_here);
  }
  workgroupBarrier();
  if (lid == 0u) {
    let begin = atomicLoad(&first_seen);
    let end = atomicLoad(&end_seen);
    let one_segment = lowest == highest && atomicLoad(&owned_padding) == 0u;
    seen = vec3u(begin, end, select(0u, 1u, one_segment && atomicLoad(&count_seen) == end - begin));
  }
  let part = workgroupUniformLoad(&seen);
  let seen_begin = part.x;
  let seen_end = part.y;
  let seen_whole = part.z != 0u;
  ${causal}`;
}
/** Declares `full`: whether every owned row sees every row of the tile. */
export const fullTile = (
  o: Ownership,
): string => /* wgsl */ `let full = seen_whole && tile >= seen_begin && tile + ${WALKED}u <= seen_end
      && block + ${o.rows}u <= ${ownedSide(o).length}
      && (params.causal == 0u || ${o.side === "query" ? `tile + ${WALKED - 1}u <= block` : `tile >= block + ${o.rows - 1}u`});`;
