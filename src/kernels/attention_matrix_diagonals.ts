// Sums along the diagonals of tiles, for the gradient of the relative position bias: that of a pair depends on its distance
// alone, key minus query. It is part of a kernel whose workgroups own 64 queries and whose lanes have left the gradients of
// a tile's scores in scores_patch.
//
// A tile is 16 × 8 squares of 4 × 4 scores. Thread (w, s, y) of 4 × 4 × 8 reads row s of one square in each of four rows of
// squares, i = w, w + 4, w + 8 and w + 12: of that in column (i + y) % 8, so that nothing depends on where the diagonals end.
// A vector whose i + y turned around the columns t times, at most twice, is of distances 32 t smaller than one that did not,
// and those are what the latter has t tiles earlier. So a thread carries two sums to the next tiles, and completes one in
// each. Four threads, w = 0 … 3, have sums of the same distances; they are added up on the way to the scratch buffer.
//
// Rows s lie askew by one to the next, and stay apart until the end: the scratch buffer has four lines for each workgroup,
// and line s has the sum of distance d = key - (query - block) at d + s + 64. All is added in a fixed order.

import { type Ownership, PATCH_ROW, THREADS, WALKED } from "./attention_matrix_wgsl.ts";
import { repeat } from "./attention_wgsl.ts";

/** Rows, and columns, of a square; and lines of a workgroup. */
export const LINES = 4;
/** Squares next to each other. */
const COLUMNS = WALKED / LINES;
/** Threads that store lines: (s, y). */
const STORING = LINES * COLUMNS;

/** f32 elements of a line. */
export const lineLength = (o: Ownership, keyLength: number): number => Math.ceil(keyLength / WALKED) * WALKED + o.rows;

/** WGSL module scope. */
export const DIAGONALS_MEMORY = /* wgsl */ `
var<workgroup> completed: array<vec4f, ${THREADS}>; // [w, s, y]
`;

/** To `line_at` of the scratch buffer, array<vec4f>, what the tile at `tile` completed. */
const storeCompleted = (tile: string): string => /* wgsl */ `
      scratch[line_at + ${tile} / 4u] = ${repeat(THREADS / STORING, (w) => `completed[lid + ${w * STORING}u]`, " + ")};`;

/** Before the walk: declares what a thread reads and where it stores, and clears what the walk does not come to. */
export const declareDiagonals = (o: Ownership): string => /* wgsl */ `
  let turning = lid / ${STORING}u + lid % ${COLUMNS}u; // w + y
  let even_at = lid / ${COLUMNS}u * ${PATCH_ROW}u + turning % ${COLUMNS}u; // for i = w, and w + 8
  let odd_at = lid / ${COLUMNS}u * ${PATCH_ROW}u + (turning + ${LINES}u) % ${COLUMNS}u; // for i = w + 4, and w + 12
  let even_turned = f32(turning / ${COLUMNS}u); // does i = w make a turn: 0 or 1; w + 8 makes one more
  let odd_turned = f32((turning + ${LINES}u) / ${COLUMNS}u);
  var next_completed = vec4f();
  var last_completed = vec4f(); // by the tile after the next
  let line_vectors = ((params.key_length + ${WALKED - 1}u) / ${WALKED}u * ${WALKED}u + ${o.rows}u) / 4u;
  let lines_at = index * ${LINES}u * line_vectors;
  let line_at = lines_at + lid / ${COLUMNS}u % ${LINES}u * line_vectors + lid % ${COLUMNS}u;
  let walked = walk_begin < walk_end;
  let tiles_end = walk_begin + (walk_end - walk_begin + ${WALKED - 1}u) / ${WALKED}u * ${WALKED}u;
  let stored_end = select(walk_begin, tiles_end + ${o.rows}u, walked); // of what a line gets, from walk_begin on
  for (var t = lid; t < ${LINES}u * line_vectors; t += ${THREADS}u) {
    let in_line = t % line_vectors * 4u;
    if (in_line < walk_begin || in_line >= stored_end) { scratch[lines_at + t] = vec4f(); }
  }`;

/** While a tile's scores are multiplied: stores what the tile before completed. */
export const storeDiagonals = /* wgsl */ `if (lid < ${STORING}u && tile > walk_begin) {${storeCompleted(`(tile - ${WALKED}u)`)}
    }`;

/** When a barrier has published scores_patch. */
export const addDiagonals = /* wgsl */ `{
      ${repeat(4, (x) => `let x${x} = bitcast<vec4f>(scores_patch[${x % 2 ? "odd" : "even"}_at + ${x * 4 * LINES * PATCH_ROW}u]);`, "\n      ")}
      completed[lid] = next_completed + x2 * even_turned + x3 * odd_turned;
      next_completed = last_completed + x0 * even_turned + x1 * odd_turned + x2 * (1.0 - even_turned) + x3 * (1.0 - odd_turned);
      last_completed = x0 * (1.0 - even_turned) + x1 * (1.0 - odd_turned);
    }`;

/** After the walk and a barrier: stores what the last tile completed, and the two after it would. */
export const finishDiagonals = /* wgsl */ `
  for (var turn = 0u; turn < 3u; turn++) {
    if (lid < ${STORING}u && walked) {${storeCompleted(`(stored_end + turn * ${WALKED}u - ${3 * WALKED}u)`)}
    }
    workgroupBarrier();
    completed[lid] = next_completed;
    next_completed = last_completed;
    workgroupBarrier();
  }`;
