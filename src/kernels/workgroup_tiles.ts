// The hardware loop of matrix products without matrix units, as WGSL text for `matmul` and `grouped_matmul`: a workgroup
// computes m×n results, each thread 4×4 or 8×8 of them, from slabs of both operands staged in workgroup memory as f32.
//
// What keeps a GPU at multiplying:
// - 64 multiply-adds of a thread of 8×8 read 4 vec4f, whichever axis of an operand is contiguous: "outer" is staged
//   [slab, tile] with vec4f along the tile, "inner" [slab / 4, tile] with vec4f along k. Nothing is transposed on the way.
// - Workgroup memory holds two slabs. While one is multiplied the next is loaded, without a branch, into registers, which
//   are then written to the other half: one barrier per slab.
// - A thread owns groups of four neighbouring rows and columns, so that it can store vec4f; the groups of one thread are as
//   far apart as those of all threads are long.
//
// Memory of a workgroup has 32 banks of one f32: eight vec4f whose indices differ modulo 8 are free of conflicts. Threads
// with neighbouring columns therefore read neighbouring vec4f. "outer" is so by itself; "inner" stages its entries in the
// order of `entryAt`: the first column of every thread, the second of every thread, and so on. Eight neighbours that stage
// have the chunks (four k) of a few entries, whose places agree modulo 8 until `swizzle` parts them. Pairs of threads share
// their columns, every other pair of pairs its rows: NVIDIA serves that twice as fast, so that 8 steps of k take a
// processor's four schedulers 512 cycles of multiplying and 256 of reading per four warps.

import type { Layout, Store, TileProducts } from "./matmul_tiles.ts";

/** An operand of {@link workgroupTile}, all texts WGSL; indices count elements, whatever they are stored as. */
export interface WorkgroupOperand {
  readonly array: "a" | "b";
  readonly layout: Layout;
  /** Is entry i of the tile (an expression) inside the matrix? Outside reads as 0. */
  readonly inside: (i: string) => string;
  /** Index of the element at tile entry i and summation index k; may be evaluated where these are outside. */
  readonly element: (i: string, k: string) => string;
}

/** Tile of a workgroup: m×n results, `slab` summation steps staged at a time, perThread×perThread results per thread. */
export interface WorkgroupShape {
  readonly m: number;
  readonly n: number;
  readonly slab: 8 | 16;
  readonly perThread: 4 | 8;
}

export const threadsOf = (s: WorkgroupShape): number => (s.m / s.perThread) * (s.n / s.perThread);

/** What a loop knows of an operand. */
interface Staged extends WorkgroupOperand {
  /** Entries of the tile. */
  readonly tile: number;
  /** Threads along them. */
  readonly along: number;
  /** vec4f of a slab, and of a slab that a thread stages. */
  readonly size: number;
  readonly loads: readonly number[];
  /** Chunks of four k in a slab. */
  readonly chunks: number;
}

const range = (count: number): number[] => Array.from({ length: count }, (_, i) => i);
const lines = (texts: readonly string[]): string => texts.join("\n    ");
const COMPONENTS = ["x", "y", "z", "w"] as const;
const FOUR = [0, 1, 2, 3] as const;

const sizeOf = (tile: number, s: WorkgroupShape): number => (tile * s.slab) / 4;

const stagedOf = (o: WorkgroupOperand, tile: number, s: WorkgroupShape): Staged => {
  const size = sizeOf(tile, s);
  return { ...o, tile, along: tile / s.perThread, size, loads: range(size / threadsOf(s)), chunks: s.slab / 4 };
};

/** WGSL module scope: two staged slabs of each operand. */
export const workgroupTileMemory = (s: WorkgroupShape): string => /* wgsl */ `
var<workgroup> tile_a: array<vec4f, ${2 * sizeOf(s.m, s)}>;
var<workgroup> tile_b: array<vec4f, ${2 * sizeOf(s.n, s)}>;
`;

/** "inner": the entry that lies at a position of the staged order. */
const entryAt = ({ along }: Staged, position: string): string =>
  `${position} / ${4 * along}u * ${4 * along}u + ${position} % ${along}u * 4 + ${position} / ${along}u % 4`;

/** "inner": what chunk q flips in the position of its entries, within the threads along the tile. */
const swizzle = ({ along, chunks }: Staged, q: string): string => `(${q} * ${8 / chunks} % ${along})`;

/** Before the loop: where each load of the thread begins (`start`), how far in the slab (`k`), and where it is staged. */
function setup(o: Staged, s: WorkgroupShape, vector: boolean, kBegin: string): string {
  const { array: x, tile, chunks } = o;
  const inner = (p: number): string => `let chunk_${x}${p} = (lid + ${p * threadsOf(s)}) % ${chunks};
    let position_${x}${p} = (lid + ${p * threadsOf(s)}) / ${chunks};
    let entry_${x}${p} = ${entryAt(o, `position_${x}${p}`)};
    let k_${x}${p} = chunk_${x}${p} * 4;
    let place_${x}${p} = chunk_${x}${p} * ${tile} + (position_${x}${p} ^ ${swizzle(o, `chunk_${x}${p}`)});
    let inside_${x}${p} = ${o.inside(`entry_${x}${p}`)};
    let start_${x}${p} = ${o.element(`entry_${x}${p}`, "0u")};`;
  const outer = (p: number): string => {
    const inside = FOUR.map((d) => o.inside(`entry_${x}${p} + ${d}`));
    return `let place_${x}${p} = lid + ${p * threadsOf(s)};
    let entry_${x}${p} = place_${x}${p} % ${tile / 4} * 4;
    let k_${x}${p} = place_${x}${p} / ${tile / 4};
    let inside_${x}${p} = ${vector ? inside[0] : `vec4<bool>(${inside.join(", ")})`};
    var start_${x}${p} = ${o.element(`entry_${x}${p}`, `(${kBegin} + k_${x}${p})`)};`;
  };
  return lines(o.loads.map((p) => `${o.layout === "inner" ? inner(p) : outer(p)}\n    var next_${x}${p}: vec4f;`));
}

/** Whether what load p of the slab at `slab` takes exists: one answer, or four when not vectorised. */
function exists({ array: x, layout }: Staged, p: number, vector: boolean, slab: string, kEnd: string): string {
  const k = `${slab} + k_${x}${p}`;
  if (vector) return `${k} < ${kEnd} && inside_${x}${p}`;
  return layout === "inner"
    ? `(vec4u(${k}) + vec4u(0, 1, 2, 3) < vec4u(${kEnd})) & vec4<bool>(inside_${x}${p})`
    : `vec4<bool>(${k} < ${kEnd}) & inside_${x}${p}`;
}

/** Loads the thread's part of the slab at `slab`; nothing waits for it before {@link stage} does. */
function fetch(o: Staged, s: WorkgroupShape, vector: boolean, slab: string, kEnd: string): string {
  const { array: x } = o;
  const load = (at: string): string =>
    vector
      ? `load_${x}(select(0u, (${at}) / 4, exists))`
      : `vec4f(${FOUR.map((d) => `load_${x}(select(0u, ${at} + ${d}, exists.${COMPONENTS[d]}))`).join(", ")})`;
  // The row of an "outer" operand may itself be looked up: that of the slab after is looked up now.
  const each = (p: number): string =>
    o.layout === "inner"
      ? `next_${x}${p} = ${load(`start_${x}${p} + ${slab} + k_${x}${p}`)};`
      : `next_${x}${p} = ${load(`start_${x}${p}`)};
      start_${x}${p} = ${o.element(`entry_${x}${p}`, `(${slab} + ${s.slab} + k_${x}${p})`)};`;
  return lines(
    o.loads.map(
      (p) => `{
      let exists = ${exists(o, p, vector, slab, kEnd)};
      ${each(p)}
    }`,
    ),
  );
}

/** Writes what was loaded for the slab at `slab` into workgroup memory. */
function stage(o: Staged, vector: boolean, kEnd: string, products: TileProducts): string {
  const { array: x } = o;
  const value = (p: number): string => `select(vec4f(), next_${x}${p}, ${exists(o, p, vector, "slab", kEnd)})`;
  const taken = (p: number): string => (products === "f16" ? `quantizeToF16(${value(p)})` : value(p));
  return lines(o.loads.map((p) => `tile_${x}[half_${x} + place_${x}${p}] = ${taken(p)};`));
}

/** "inner": steps 4q to 4q+3 of the thread's entry e. */
const readEntry = (o: Staged, q: number, e: number): string =>
  `tile_${o.array}[half_${o.array} + ${q * o.tile + e * o.along} + (thread_${o.array} ^ ${swizzle(o, `${q}u`)})]`;

/** "outer": the thread's entries 4g to 4g+3 at step k of the slab. */
const readGroup = (o: Staged, k: number, g: number): string =>
  `tile_${o.array}[half_${o.array} + ${(k * o.tile) / 4 + g * o.along} + thread_${o.array}]`;

/** Steps 4q to 4q+3 of the staged slab. Names: a{i} or a{k}_{group} as stored, b{k}_{group} the thread's columns. */
function multiply(a: Staged, b: Staged, q: number, perThread: number): string {
  const groups = range(perThread / 4);
  const column = (k: number, g: number): string =>
    b.layout === "outer"
      ? readGroup(b, 4 * q + k, g)
      : `vec4f(${FOUR.map((d) => `column${4 * g + d}.${COMPONENTS[k]}`).join(", ")})`;
  const columns = (k: number): string[] => groups.map((g) => `let b${k}_${g} = ${column(k, g)};`);
  const add = (i: number, k: number, value: string): string[] =>
    groups.map((g) => `c${i}_${g} += ${value} * b${k}_${g};`);
  const rows = range(perThread);
  const whole = b.layout === "inner" ? rows.map((j) => `let column${j} = ${readEntry(b, q, j)};`) : [];
  if (a.layout === "inner")
    return lines([
      ...whole,
      ...FOUR.flatMap(columns),
      ...rows.flatMap((i) => [
        `let a${i} = ${readEntry(a, q, i)};`,
        ...FOUR.flatMap((k) => add(i, k, `a${i}.${COMPONENTS[k]}`)),
      ]),
    ]);
  return lines([
    ...whole,
    ...FOUR.flatMap((k) => [
      ...columns(k),
      ...groups.map((g) => `let a${k}_${g} = ${readGroup(a, 4 * q + k, g)};`),
      ...rows.flatMap((i) => add(i, k, `a${k}_${i >> 2}.${COMPONENTS[i & 3]}`)),
    ]),
  ]);
}

/**
 * The hardware loop: sums k from `kBegin` to `kEnd` (both uniform over the workgroup) into `c{i}_{g}: vec4f`, the thread's
 * i-th row and g-th group of columns, in ascending order of k, one accumulator per result. Needs `lid`, the local invocation
 * index, and `load_a`, `load_b` (storage.ts), which give vec4f when `vector`: then the contiguous axis of each must begin at
 * a multiple of 4 elements and have a multiple of 4, and `kBegin` be one where that axis is k.
 */
export function workgroupTile(
  left: WorkgroupOperand,
  right: WorkgroupOperand,
  s: WorkgroupShape,
  vector: boolean,
  kBegin: string,
  kEnd: string,
  products: TileProducts,
): string {
  const [a, b] = [stagedOf(left, s.m, s), stagedOf(right, s.n, s)];
  const both = (text: (o: Staged) => string): string => lines([a, b].map(text));
  const groups = range(s.perThread / 4);
  const paired = Math.min(2, a.along);
  return `let thread_a = lid % ${paired} + lid / ${paired * b.along} * ${paired};
  let thread_b = lid / ${paired} % ${b.along};
  ${range(s.perThread)
    .map((i) => groups.map((g) => `var c${i}_${g} = vec4f();`).join(" "))
    .join(" ")}
    ${both((o) => setup(o, s, vector, kBegin))}
    ${both((o) => fetch(o, s, vector, kBegin, kEnd))}
  var half = 0u;
  for (var slab = ${kBegin}; slab < ${kEnd}; slab += ${s.slab}u) {
    ${both((o) => `let half_${o.array} = half * ${o.size};`)}
    ${both((o) => stage(o, vector, kEnd, products))}
    workgroupBarrier();
    let next_slab = slab + ${s.slab};
    ${both((o) => fetch(o, s, vector, "next_slab", kEnd))}
    ${lines(
      range(s.slab / 4).map(
        (q) => `{
    ${multiply(a, b, q, s.perThread)}
    }`,
      ),
    )}
    half = 1 - half;
  }`;
}

/** Stores what {@link workgroupTile} summed: `store` gets vec4f when `vector`, else each f32. */
export function workgroupStores(s: WorkgroupShape, vector: boolean, store: Store): string {
  const place = (thread: string, tile: number, e: number): string =>
    `${thread} * 4 + ${Math.floor(e / 4) * 4 * (tile / s.perThread) + (e % 4)}`;
  return lines(
    range(s.perThread).flatMap((i) =>
      range(s.perThread / 4).flatMap((g) => {
        const [row, value] = [`(${place("thread_a", s.m, i)})`, `c${i}_${g}`];
        const column = (d: number): string => `(${place("thread_b", s.n, 4 * g + d)})`;
        if (vector) return store(row, column(0), value);
        return FOUR.map((d) => store(row, column(d), `${value}.${COMPONENTS[d]}`));
      }),
    ),
  );
}
