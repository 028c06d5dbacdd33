// What the inner loops of every matrix product here have in common, and the software loop, as WGSL text: `matmul` gives
// loops dense operands, `grouped_matmul` gives them rows that belong to experts.
//
// A product is c[i,j] = Σ_k a(i,k)·b(j,k). Each operand is stored in one of two ways, and that is all a transpose is:
//   "inner": k is the contiguous axis (a stored [m,k], b stored [n,k])
//   "outer": k is the strided axis    (a stored [k,m], b stored [k,n])
//
// `registerTile` is the software loop: a thread owns a tile of results in registers and reads storage directly.
// `workgroupTile` of workgroup_tiles.ts is the hardware loop, `matrixTile` of matrix_tiles.ts that of matrix units.
// The first two sum over k in ascending order, one accumulator per result, so a result does not depend on its tile.

import type { Products } from "./capabilities.ts";

export type Layout = "inner" | "outer";

/** From this many large tiles on, they keep a GPU's processors busy. */
export const LARGE_FROM_TILES = 128;

/** What the first two loops can do with operands. */
export type TileProducts = Exclude<Products, "matrix">;

const COMPONENT = ["x", "y", "z", "w"] as const;

/** An operand of {@link registerTile}. Texts are WGSL; indices count values: vec4f when vectorised, else f32. */
export interface RegisterOperand {
  /** The storage buffer, read by `load_a` or `load_b` (storage.ts), and the prefix of the names the loop declares. */
  readonly array: "a" | "b";
  readonly layout: Layout;
  /** Rows (of a) or columns (of b) in the tile; columns a multiple of 4. */
  readonly tile: number;
  /** Index of the operand's first element. */
  readonly base: string;
  /** Distance between neighbours along the strided axis. */
  readonly stride: string;
  /** "inner": stored row of tile entry i. "outer": stored column of entry i, or of the i-th vec4f when vectorised. */
  readonly entry: (i: number) => string;
  /** "outer": the stored row for a summation index; the index itself when absent. */
  readonly row?: (k: string) => string;
}

interface Loads {
  readonly setup: string[];
  readonly loads: string[];
  /** The loaded value of entry i at sub-step q. */
  readonly at: (i: number, q: number) => string;
}

/** WGSL: `value`, rounded to f16 where a product takes its operands so. */
const taken = (value: string, products: TileProducts): string =>
  products === "f16" ? `quantizeToF16(${value})` : value;

function operandLoads(operand: RegisterOperand, vector: boolean, steps: number, products: TileProducts): Loads {
  const { array: x, layout, tile, base, stride, entry, row = (k) => k } = operand;
  const load = (at: string) => taken(`load_${x}(${at})`, products);
  const setup: string[] = [];
  const loads: string[] = [];
  if (layout === "inner") {
    for (let i = 0; i < tile; i++) setup.push(`let ${x}_start${i} = ${base} + ${entry(i)} * ${stride};`);
    for (let i = 0; i < tile; i++) loads.push(`let ${x}${i} = ${load(`${x}_start${i} + ${vector ? "k / 4" : "k"}`)};`);
    return { setup, loads, at: (i, q) => (vector ? `${x}${i}.${COMPONENT[q]}` : `${x}${i}`) };
  }
  const width = vector ? 4 : 1;
  for (let i = 0; i < tile / width; i++) setup.push(`let ${x}_start${i} = ${base} + ${entry(i)};`);
  for (let q = 0; q < steps; q++) {
    loads.push(`let ${x}_row${q} = ${row(q ? `(k + ${q})` : "k")} * ${stride};`);
    for (let i = 0; i < tile / width; i++) loads.push(`let ${x}${q}_${i} = ${load(`${x}_start${i} + ${x}_row${q}`)};`);
  }
  return { setup, loads, at: (i, q) => (vector ? `${x}${q}_${i >> 2}.${COMPONENT[i & 3]}` : `${x}${q}_${i}`) };
}

/**
 * The software loop: sums k from `kBegin` to `kEnd` into `c{i}_{j}: vec4f`, which holds row i, columns 4j to 4j+3 of
 * the tile. `vector` loads vec4f: then an "inner" operand needs k, base and stride to be multiples of 4 elements, an
 * "outer" one its width. `entry` must stay inside the buffer for every i: the caller clamps it and guards its stores.
 */
export function registerTile(
  a: RegisterOperand,
  b: RegisterOperand,
  vector: boolean,
  kBegin: string,
  kEnd: string,
  products: TileProducts,
): string {
  const steps = vector && (a.layout === "inner" || b.layout === "inner") ? 4 : 1;
  const fromA = operandLoads(a, vector, steps, products);
  const fromB = operandLoads(b, vector, steps, products);
  const sums: string[] = [];
  const body = [...fromA.loads, ...fromB.loads];
  for (let j = 0; j < b.tile / 4; j++)
    for (let q = 0; q < steps; q++)
      body.push(`let w${q}_${j} = vec4f(${[0, 1, 2, 3].map((d) => fromB.at(4 * j + d, q)).join(", ")});`);
  for (let i = 0; i < a.tile; i++)
    for (let j = 0; j < b.tile / 4; j++) {
      sums.push(`var c${i}_${j} = vec4f();`);
      const terms = Array.from({ length: steps }, (_, q) => ` + ${fromA.at(i, q)} * w${q}_${j}`);
      body.push(`c${i}_${j} = c${i}_${j}${terms.join("")};`);
    }
  return [
    ...fromA.setup,
    ...fromB.setup,
    ...sums,
    `for (var k = ${kBegin}; k < ${kEnd}; k += ${steps}u) {`,
    ...body.map((line) => `  ${line}`),
    "}",
  ].join("\n  ");
}

/** Text that stores the result at tile row i, column j: `value` is vec4f (columns j to j+3) when vectorised, else f32. */
export type Store = (i: string, j: string, value: string) => string;

/** Stores what {@link registerTile} summed. A loop: unrolled, its text would take longer to compile than to run. */
export function registerStores(tile: { m: number; n: number }, vector: boolean, store: Store): string {
  const columns = tile.n / 4;
  const sums = Array.from({ length: tile.m * columns }, (_, e) => `c${Math.floor(e / columns)}_${e % columns}`);
  const each = vector
    ? store("i", "j", "sums[e]")
    : `for (var d = 0u; d < 4; d++) { ${store("i", "(j + d)", "sums[e][d]")} }`;
  return `var sums = array<vec4f, ${sums.length}>(${sums.join(", ")});
  for (var e = 0u; e < ${sums.length}; e++) {
    let i = e / ${columns};
    let j = e % ${columns} * 4;
    ${each}
  }`;
}
