// The frame of an attention kernel for matrix units: its memory, what its threads own, and the walk over the tiles of the
// other side. A tile's rows are fetched into registers while the one before is at work.

import { keptBits } from "./attention_matrix_dropout.ts";
import { SEEN_MEMORY, seenBits, seenWalk } from "./attention_matrix_seen.ts";
import {
  eight,
  laneScores,
  type Ownership,
  ownedSide,
  PATCH_ROW,
  packsOf,
  stagedRow,
  THREADS,
  WALKED,
  walkedSide,
} from "./attention_matrix_wgsl.ts";
import { type AttentionVariant, common, headFloats, repeat, variantName } from "./attention_wgsl.ts";
import { type BufferDeclaration, defineKernel, type Kernel, type ParamType } from "./kernel.ts";
import { MATRIX_ENABLES, MATRIX_TYPES } from "./matrix_tiles.ts";

const memory = (v: AttentionVariant, o: Ownership, stagedAtLeast: number): string => /* wgsl */ `
var<workgroup> scores_patch: array<vec4u, ${o.rows * PATCH_ROW}>;
var<workgroup> staged_a: array<vec4u, ${WALKED * stagedRow(v)}>; // [walked rows, headDim]
var<workgroup> staged_b: array<vec4u, ${Math.max(WALKED * stagedRow(v), stagedAtLeast)}>;
${v.biased ? `var<workgroup> bias_tile: array<f32, ${o.rows + WALKED}>; // of every distance in a tile, times LOG2_E` : ""}
${v.segments ? SEEN_MEMORY : ""}`;

/**
 * A kernel for matrix units; it stores to `results`, which are heads, by `storeRows`, and finds room for so many vec4u in
 * staged_b.
 */
export function matrixKernel<P extends string>(
  name: string,
  v: AttentionVariant,
  o: Ownership,
  params: Record<P, ParamType>,
  buffers: Record<string, BufferDeclaration>,
  results: readonly string[],
  main: string,
  stagedAtLeast = 0,
): Kernel<P, string> {
  const stored = headFloats<string>(v, Object.fromEntries(results.map((result) => [result, "write" as const])));
  return defineKernel<P, string>({
    name: `${name}_${variantName(v)}_matrix`,
    params,
    buffers: { ...buffers, ...stored.buffers },
    enables: MATRIX_ENABLES,
    wgsl: /* wgsl */ `${common(v)}${MATRIX_TYPES}
const LOG2_E = ${Math.LOG2E};
${stored.functions}${memory(v, o, stagedAtLeast)}${seenBits(v, o)}${v.dropout ? keptBits(o) : ""}${main}`,
  });
}

/**
 * Declares b, h (of the owned side's heads) and block, the workgroup's first row; of a thread its lane, its subgroup's first
 * row in the workgroup, the row that it has scores of, in the workgroup (`own`) and in all (`row`), the place of the first
 * of these scores in a tile, and the row's segment; and what {@link seenWalk} declares.
 */
export const entry = (v: AttentionVariant, o: Ownership): string => {
  const { length, segment } = ownedSide(o);
  const heads = o.side === "query" ? "heads" : "kv_heads";
  return /* wgsl */ `
@compute @workgroup_size(${THREADS})
fn main(
  @builtin(workgroup_id) wid: vec3u,
  @builtin(num_workgroups) num: vec3u,
  @builtin(local_invocation_index) lid: u32,
  @builtin(subgroup_id) subgroup: u32,
) {
  let index = linear_index(wid, num);
  let blocks = (${length} + ${o.rows - 1}u) / ${o.rows}u;
  if (index >= params.batch * params.${heads} * blocks) { return; }
  let block = index % blocks * ${o.rows}u;
  let b = index / blocks / params.${heads};
  let h = index / blocks % params.${heads};
  let lane = lid % 32u;
  let first = subgroup * ${o.rows / 4}u; // of the workgroup's rows
  let own = first + lane % ${o.rows / 4}u;
  let place = lane / ${o.rows / 4}u * ${laneScores(o)}u;
  let row = block + own;
  ${v.segments ? `let segment = owned(${segment(`min(row, ${length} - 1u)`)});` : "let segment = 1u;"}
  ${seenWalk(v, o)}`;
};

/**
 * How the tiles of a walk come into workgroup memory: into registers by `fetch` a while before, and from there by `stage`.
 */
export interface TileLoads {
  readonly declare: string;
  readonly fetch: (tile: string) => string;
  readonly stage: string;
}

/** Of rows of arrays `a` and `b`, of the walked rows' segments and the bias of every distance in the tile. */
export function tileLoads(v: AttentionVariant, o: Ownership, a: string, b: string): TileLoads {
  const { length, segment, at } = walkedSide(o);
  const packs = WALKED * packsOf(v);
  const turns = Math.ceil(packs / THREADS);
  const distances = o.rows + WALKED;
  const biasTurns = v.biased ? Math.ceil(distances / THREADS) : 0;
  // The distance that bias_tile begins with; u32 that wraps around names none.
  const origin =
    o.side === "query"
      ? (tile: string) => `${tile} + params.query_length - block - ${o.rows}u`
      : (tile: string) => `block + params.query_length - ${WALKED}u - ${tile}`;
  const place = (turn: number): string => `(lid + ${turn * THREADS}u)`;
  /** A condition for a turn that not every thread has part in. */
  const within = (turn: number, count: number): string =>
    (turn + 1) * THREADS > count ? `if (${place(turn)} < ${count}u) ` : "";
  const staged = (turn: number): string =>
    `${place(turn)} / ${packsOf(v)}u * ${stagedRow(v)}u + ${place(turn)} % ${packsOf(v)}u`;
  return {
    declare: [
      repeat(turns, (t) => `var next_a${t}: vec4u; var next_b${t}: vec4u; var next_exists${t}: bool;`, "\n  "),
      repeat(biasTurns, (t) => `var next_bias${t}: f32; var next_biased${t}: bool;`, "\n  "),
      v.segments ? "var next_segment: u32; var next_segmented: bool;" : "",
    ].join("\n  "),
    fetch: (tile) =>
      [
        repeat(
          turns,
          (t) => /* wgsl */ `{
      let r = ${tile} + ${place(t)} / ${packsOf(v)}u;
      next_exists${t} = r < ${length};
      let at = select(0u, ${at("r")} + ${place(t)} % ${packsOf(v)}u * 2u, next_exists${t});
      next_a${t} = ${eight(v, a, "at")};
      next_b${t} = ${eight(v, b, "at")};
    }`,
          "\n    ",
        ),
        repeat(
          biasTurns,
          (t) => /* wgsl */ `{
      let distance = ${place(t)} + ${origin(tile)};
      next_biased${t} = distance < params.query_length + params.key_length - 1u;
      next_bias${t} = distance_bias[select(0u, distance, next_biased${t}) * params.heads + query_h];
    }`,
          "\n    ",
        ),
        v.segments
          ? /* wgsl */ `{
      let r = ${tile} + lid % ${WALKED}u;
      next_segmented = r < ${length};
      next_segment = ${segment("select(0u, r, next_segmented)")};
    }`
          : "",
      ].join("\n    "),
    stage: [
      repeat(
        turns,
        (t) => /* wgsl */ `${within(t, packs)}{
      staged_a[${staged(t)}] = select(vec4u(), next_a${t}, vec4<bool>(next_exists${t}));
      staged_b[${staged(t)}] = select(vec4u(), next_b${t}, vec4<bool>(next_exists${t}));
    }`,
        "\n    ",
      ),
      repeat(
        biasTurns,
        (t) =>
          `${within(t, distances)}{ bias_tile[${place(t)}] = select(0.0, next_bias${t} * LOG2_E, next_biased${t}); }`,
        "\n    ",
      ),
      v.segments ? `if (lid < ${WALKED}u) { segment_tile[lid] = select(0u, next_segment, next_segmented); }` : "",
    ].join("\n    "),
  };
}

/**
 * Walks the tiles from walk_begin to walk_end. `scores` multiplies what is staged, into patches; `middle` is what the lanes
 * do there, and ends in a barrier; `products` are those that read what the lanes left. Leaves no barrier pending.
 */
export const walkTiles = (
  loads: TileLoads,
  body: { scores: string; middle: string; products: string },
): string => /* wgsl */ `
  ${loads.declare}
  ${loads.fetch("walk_begin")}
  ${loads.stage}
  workgroupBarrier();
  for (var tile = walk_begin; tile < walk_end; tile += ${WALKED}u) {
    let next_tile = tile + ${WALKED}u;
    ${loads.fetch("next_tile")}
    ${body.scores}
    workgroupBarrier();
    ${body.middle}
    ${body.products}
    workgroupBarrier();
    ${loads.stage}
    workgroupBarrier();
  }`;
