// Dropout of probabilities in the attention kernels for matrix units: a bit for each of a lane's scores, the same that
// `dropout_factor` decides (attention_wgsl.ts). Philox gives four numbers at a time, of consecutive keys, and takes some 300
// instructions for them. A lane with keys of one query uses all four. One with queries of a key would use one; so where keys
// are owned, the workgroup first makes the tile's bits together.

import { laneScores, type Ownership, THREADS, WALKED } from "./attention_matrix_wgsl.ts";

/** Fours that the keys of a query may lie in, which need not begin with one. */
const foursOf = (o: Ownership): number => o.rows / 4 + 1;

/**
 * WGSL module scope. `kept_bits` is of the row's walked rows from `begin` on, or from
 * `place` on in a tile that `make_kept_tile` has made and a barrier published.
 */
export const keptBits = (o: Ownership): string => /* wgsl */ `
fn first_element(head: u32, i: u32, j: u32) -> u32 { return (head * params.query_length + i) * params.key_length + j; }
fn kept_four(index: u32) -> u32 {
  let words = philox(vec4u(index, step.step, 0u, 0u), vec2u(step.seed, params.dropout_use));
  let uniform_values = vec4f(words >> vec4u(8u)) * ${2 ** -24};
  let bits = select(vec4u(), vec4u(1u, 2u, 4u, 8u), uniform_values >= vec4f(params.dropout_rate));
  return bits.x | bits.y | bits.z | bits.w;
}
${
  o.side === "query"
    ? /* wgsl */ `
fn kept_bits(head: u32, row: u32, begin: u32) -> u32 {
  let element = first_element(head, row, begin);
  let before = element % 4u;
  var bits = 0u;
  for (var x = 0u; x < ${laneScores(o)}u + before; x += 4u) {
    let four = kept_four((element + x) / 4u);
    bits |= select(four << (x - before), four >> before, x == 0u);
  }
  return bits;
}`
    : /* wgsl */ `
var<workgroup> kept_tile: array<u32, ${WALKED * foursOf(o)}>; // [walked queries, fours of keys]
fn make_kept_tile(head: u32, tile: u32, block: u32, lid: u32) {
  for (var x = lid; x < ${WALKED * foursOf(o)}u; x += ${THREADS}u) {
    let element = first_element(head, tile + x / ${foursOf(o)}u, block);
    kept_tile[x] = kept_four(element / 4u + x % ${foursOf(o)}u);
  }
}
fn kept_bits(head: u32, tile: u32, place: u32, block: u32, own: u32) -> u32 {
  var bits = 0u;
  for (var c = 0u; c < ${laneScores(o)}u; c++) {
    let at = first_element(head, tile + place + c, block) % 4u + own;
    bits |= ((kept_tile[(place + c) * ${foursOf(o)}u + at / 4u] >> (at % 4u)) & 1u) << c;
  }
  return bits;
}`
}
`;
