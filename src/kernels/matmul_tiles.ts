// The inner loops that every matrix product here is made of, as WGSL text: `matmul` gives them dense operands,
// `grouped_matmul` gives them rows that belong to experts.
//
// A product is c[i,j] = Σ_k a(i,k)·b(j,k). Each operand is stored in one of two ways, and that is all a transpose is:
//   "inner": k is the contiguous axis (a stored [m,k], b stored [n,k])
//   "outer": k is the strided axis    (a stored [k,m], b stored [k,n])
//
// `registerTile` is the software loop: a thread owns a tile of results in registers and reads storage directly.
// `workgroupTile` is the hardware loop: the workgroup stages a slab of both operands in workgroup memory.
// Both sum over k in ascending order, one accumulator per result, so a result does not depend on its tile.

import type { Products } from "./capabilities.ts";

export type Layout = "inner" | "outer";

/** What these loops can do with operands; matrix units have a loop of their own, matrix_tiles.ts. */
export type TileProducts = Exclude<Products, "matrix">;

const COMPONENT = ["x", "y", "z", "w"] as const;

/** An operand of {@link registerTile}. Texts are WGSL; indices count array elements: vec4f when vectorised, else f32. */
export interface RegisterOperand {
  /** The storage buffer, and the prefix of the names the loop declares. */
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
  const load = (at: string) => taken(`${x}[${at}]`, products);
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

/** An operand of {@link workgroupTile}, all texts WGSL over f32 arrays. */
export interface WorkgroupOperand {
  readonly array: "a" | "b";
  readonly layout: Layout;
  /** Is entry i of the tile (an expression) inside the matrix? Outside reads as 0. */
  readonly inside: (i: string) => string;
  /** Index of the element at tile entry i and summation index k. */
  readonly element: (i: string, k: string) => string;
}

/** Tile of a workgroup: m×n results, `slab` summation steps staged at a time, perThread×perThread results per thread. */
export interface WorkgroupShape {
  readonly m: number;
  readonly n: number;
  readonly slab: number;
  readonly perThread: 4 | 8;
}

export const threadsOf = (s: WorkgroupShape): number => (s.m / s.perThread) * (s.n / s.perThread);

/** WGSL module scope: the staged slabs. A row is padded by one so that a column is written without bank conflicts. */
export const workgroupTileMemory = (s: WorkgroupShape): string => /* wgsl */ `
var<workgroup> tile_a: array<f32, ${s.slab * (s.m + 1)}>; // [slab, m + 1]
var<workgroup> tile_b: array<f32, ${s.slab * (s.n + 1)}>; // [slab, n + 1]
`;

// Threads own every (m / perThread)-th row and every (n / perThread)-th column of the tile, so that neighbours read and
// write neighbouring addresses.
const rowOfThread = (s: WorkgroupShape, i: number): string => `(thread_row + ${i * (s.m / s.perThread)})`;
const columnOfThread = (s: WorkgroupShape, j: number): string => `(thread_column + ${j * (s.n / s.perThread)})`;

/**
 * The hardware loop: sums k from `kBegin` to `kEnd` (both uniform over the workgroup) into `c{i}_{j}: f32`, the
 * thread's i-th row and j-th column. Needs `lid`, the local invocation index.
 */
export function workgroupTile(
  a: WorkgroupOperand,
  b: WorkgroupOperand,
  s: WorkgroupShape,
  kBegin: string,
  kEnd: string,
  products: TileProducts,
): string {
  const stage = (operand: WorkgroupOperand, tile: number): string => {
    const [i, k] = operand.layout === "inner" ? [`t / ${s.slab}`, `t % ${s.slab}`] : [`t % ${tile}`, `t / ${tile}`];
    return `for (var t = lid; t < ${tile * s.slab}; t += ${threadsOf(s)}u) {
      let i = ${i};
      let slab_k = ${k};
      let k = slab + slab_k;
      var value = 0.0;
      if (k < ${kEnd} && ${operand.inside("i")}) { value = ${taken(`${operand.array}[${operand.element("i", "k")}]`, products)}; }
      tile_${operand.array}[slab_k * ${tile + 1} + i] = value;
    }`;
  };
  const each = Array.from({ length: s.perThread }, (_, i) => i);
  const sums = each.flatMap((i) => each.map((j) => `var c${i}_${j} = 0.0;`));
  const loads = each.flatMap((i) => [
    `let a${i} = tile_a[k * ${s.m + 1} + ${rowOfThread(s, i)}];`,
    `let b${i} = tile_b[k * ${s.n + 1} + ${columnOfThread(s, i)}];`,
  ]);
  const adds = each.flatMap((i) => each.map((j) => `c${i}_${j} += a${i} * b${j};`));
  return `let thread_row = lid / ${s.n / s.perThread};
  let thread_column = lid % ${s.n / s.perThread};
  ${sums.join(" ")}
  for (var slab = ${kBegin}; slab < ${kEnd}; slab += ${s.slab}u) {
    ${stage(a, s.m)}
    ${stage(b, s.n)}
    workgroupBarrier();
    for (var k = 0u; k < ${s.slab}; k++) {
      ${loads.join("\n      ")}
      ${adds.join("\n      ")}
    }
    workgroupBarrier();
  }`;
}

/** Stores what {@link workgroupTile} summed. */
export function workgroupStores(s: WorkgroupShape, store: Store): string {
  const each = Array.from({ length: s.perThread }, (_, i) => i);
  const lines = each.flatMap((i) => each.map((j) => store(rowOfThread(s, i), columnOfThread(s, j), `c${i}_${j}`)));
  return lines.join("\n  ");
}
