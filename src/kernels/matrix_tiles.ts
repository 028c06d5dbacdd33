// The inner loop of matrix products on a GPU's matrix units (WGSL subgroup matrices, 16×16×16, f16 · f16 summed in f32), as
// text for `matmul` and `grouped_matmul`: what `workgroupTile` is without them. An operand lies in memory as f16, or as f32
// that is rounded on its way into workgroup memory; sums are f32.
//
// A workgroup computes m×n results, each of its subgroups `own` of them, which stay in its registers as 16×16 fragments. Slabs of `slab` summation steps are staged packed, eight f16 to a vec4u; the next slab is fetched while one is
// multiplied. Fragments are opaque, so the end of a product goes through a patch of workgroup memory, where it is an f32
// array again.
//
// All depends on loads that are issued before the products of a slab and first looked at behind them: a branch, a select or
// a rounding right behind a load waits for it (one H100, driver 580.159.04, 2026-11-24, 4096³: 46 to 124 TFLOP/s instead of
// 240), and a load from a read-only binding is moved down to the next slab's beginning (240 instead of 290; see `prefetched`).
// And on enough of them: all workgroups of a processor have 48 KiB of workgroup memory together there (22.5 KiB each: 282
// TFLOP/s; 24.5 KiB: 171), so a product's end takes none of its own, and no tile more than 22 KiB.
//
// What lies outside a matrix is read from inside, where every address is computed without a branch, and made 0 when it is
// staged; in a only, for columns too many of b give results that nobody stores.
//
// An operand's contiguous axis must be a multiple of 8 elements, and begin at one: {@link matrixFits}.

import { type BufferDeclaration, prefetched } from "./kernel.ts";
import type { Layout, Store } from "./matmul_tiles.ts";
import type { Halves } from "./storage.ts";

/** An operand of {@link matrixTile}; texts are WGSL. */
export interface MatrixOperand {
  readonly array: "a" | "b";
  readonly layout: Layout;
  /** Is entry i of the tile inside the matrix? Asked for the first of eight where i is the contiguous axis. */
  readonly inside: (i: string) => string;
  /** Index of the element at tile entry i and summation index k; may be evaluated where i is outside. */
  readonly element: (i: string, k: string) => string;
}

export interface MatrixTileShape {
  readonly m: number;
  readonly n: number;
  readonly slab: number;
  /** Results of a subgroup. */
  readonly own: { readonly m: number; readonly n: number };
}

const FRAGMENT = 16;
const SUBGROUP = 32;
/** f16 in a vec4u. */
const PACK = 8;

const subgroupsOf = (s: MatrixTileShape): number => (s.m / s.own.m) * (s.n / s.own.n);
export const matrixThreads = (s: MatrixTileShape): number => subgroupsOf(s) * SUBGROUP;

/** Whether every contiguous axis and offset, in elements, can be read eight at a time. */
export const matrixFits = (...elements: readonly number[]): boolean => elements.every((x) => x % PACK === 0);

export const MATRIX_ENABLES = /* wgsl */ `diagnostic(off, chromium.subgroup_matrix_uniformity);
enable f16;
enable subgroups;
enable chromium_experimental_subgroup_matrix;
`;

/** vec4u of a staged row, one more than it holds so that columns of fragments lie in different banks. */
const rowOf = (layout: Layout, tile: number, s: MatrixTileShape): number =>
  (layout === "inner" ? s.slab : tile) / PACK + 1;
const stagedRows = (layout: Layout, tile: number, s: MatrixTileShape): number => (layout === "inner" ? tile : s.slab);

/** WGSL module scope: the types of fragments, and how eight numbers become a vec4u. */
export const MATRIX_TYPES = /* wgsl */ `
alias Left = subgroup_matrix_left<f16, ${FRAGMENT}, ${FRAGMENT}>;
alias Right = subgroup_matrix_right<f16, ${FRAGMENT}, ${FRAGMENT}>;
alias Sums = subgroup_matrix_result<f32, ${FRAGMENT}, ${FRAGMENT}>;
fn packed(low: vec4f, high: vec4f) -> vec4u {
  return vec4u(pack2x16float(low.xy), pack2x16float(low.zw), pack2x16float(high.xy), pack2x16float(high.zw));
}
`;

/**
 * The operands of a kernel, those in `halves` as f16. `functions` is WGSL of module scope: `eight_a(at)` gives the eight
 * elements from `at` on, a multiple of 8, as they are stored, an `Eight_a`; `packed_a` makes them f16; and the same for b.
 * It needs {@link MATRIX_TYPES}.
 */
export function matrixOperands(halves: Halves): { buffers: Record<"a" | "b", BufferDeclaration>; functions: string } {
  const type = (name: "a" | "b") => prefetched(halves.includes(name) ? "vec4u" : "vec4f");
  const functions = (["a", "b"] as const).map((x) =>
    halves.includes(x)
      ? /* wgsl */ `alias Eight_${x} = vec4u;
fn eight_${x}(at: u32) -> Eight_${x} { return ${x}[at / 8]; }
fn packed_${x}(eight: Eight_${x}) -> vec4u { return eight; }
`
      : /* wgsl */ `struct Eight_${x} { low: vec4f, high: vec4f }
fn eight_${x}(at: u32) -> Eight_${x} { return Eight_${x}(${x}[at / 4], ${x}[at / 4 + 1]); }
fn packed_${x}(eight: Eight_${x}) -> vec4u { return packed(eight.low, eight.high); }
`,
  );
  return { buffers: { a: type("a"), b: type("b") }, functions: functions.join("") };
}

const stagedSize = (layout: Layout, tile: number, s: MatrixTileShape): number =>
  stagedRows(layout, tile, s) * rowOf(layout, tile, s);

/** vec4u of a's slab, behind which b's lies, and of both. */
const stagedSizes = ([a, b]: readonly [Layout, Layout], s: MatrixTileShape): readonly [a: number, both: number] => {
  const size = stagedSize(a, s.m, s);
  return [size, size + stagedSize(b, s.n, s)];
};

/** WGSL module scope: types and the staged slabs. */
export const matrixTileMemory = (
  layouts: readonly [Layout, Layout],
  s: MatrixTileShape,
): string => /* wgsl */ `${MATRIX_TYPES}
var<workgroup> staged: array<vec4u, ${stagedSizes(layouts, s)[1]}>;
`;

const lines = (count: number, text: (i: number) => string): string =>
  Array.from({ length: count }, (_, i) => text(i)).join("\n    ");

/**
 * Sums k from `kBegin` to `kEnd`, both uniform over the workgroup and multiples of 8 where an operand is "inner", into
 * fragments `c{i}_{j}`. Needs `lid`, the local invocation index, `subgroup`, the subgroup's, and {@link matrixOperands}, none
 * of them empty.
 */
export function matrixTile(
  a: MatrixOperand,
  b: MatrixOperand,
  s: MatrixTileShape,
  kBegin: string,
  kEnd: string,
): string {
  const threads = matrixThreads(s);
  const operands = [
    { ...a, tile: s.m, from: 0 },
    { ...b, tile: s.n, from: stagedSizes([a.layout, b.layout], s)[0] },
  ].map((o) => {
    const packs = (o.tile * s.slab) / PACK / threads;
    const perRow = rowOf(o.layout, o.tile, s) - 1;
    const place = (p: number) => `(lid + ${p * threads}u)`;
    const x = o.array;
    const inner = o.layout === "inner";
    const [along, across] = [
      (p: number) => `${place(p)} / ${perRow}u`,
      (p: number) => `${place(p)} % ${perRow}u * ${PACK}u`,
    ];
    const step = inner ? across : along;
    /** The k to read for step p of a slab, which exists where there is any. */
    const readable = (slab: string, p: number) => `min(${slab} + ${step(p)}, last_${x})`;
    const start = (p: number, k: string) => `select(0u, ${o.element(`entry_${x}${p}`, k)}, inside_${x}${p})`;
    return {
      declare: lines(
        packs,
        (p) => `let entry_${x}${p} = ${inner ? along(p) : across(p)};
    let inside_${x}${p} = ${o.inside(`entry_${x}${p}`)};
    var start_${x}${p} = ${inner ? start(p, "0u") : start(p, readable(kBegin, p))};
    var next_${x}${p}: Eight_${x};`,
      ),
      /** The last k that can be read; none exists where kBegin is kEnd, and something is read all the same. */
      last: `let last_${x} = max(${kEnd}, ${inner ? PACK : 1}u) - ${inner ? PACK : 1}u;`,
      // The row of an "outer" operand may itself be looked up: that of the slab after is looked up now.
      fetch: (slab: string) =>
        lines(packs, (p) =>
          inner
            ? `next_${x}${p} = eight_${x}(start_${x}${p} + ${readable(slab, p)});`
            : `next_${x}${p} = eight_${x}(start_${x}${p});
    start_${x}${p} = ${start(p, readable(`${slab} + ${s.slab}u`, p))};`,
        ),
      stage: lines(packs, (p) => {
        const eight = `packed_${x}(next_${x}${p})`;
        const exists = `inside_a${p} && slab + ${step(p)} < ${kEnd}`;
        const value = x === "a" ? `select(vec4u(), ${eight}, vec4<bool>(${exists}))` : eight;
        return `staged[${o.from}u + ${place(p)} / ${perRow}u * ${perRow + 1}u + ${place(p)} % ${perRow}u] = ${value};`;
      }),
      /** The fragment whose entries begin at tile entry `first`, at step `step` of the slab. */
      fragment: (type: string, natural: Layout, first: string, step: number) => {
        const row = perRow + 1;
        const at =
          o.layout === "inner"
            ? `${o.from + step / PACK}u + (${first}) * ${row}u`
            : `${o.from + step * row}u + (${first}) / ${PACK}u`;
        return `subgroupMatrixLoad<${type}, ${o.layout === natural ? "row_major" : "col_major"}>(&staged, ${at}, ${row}u)`;
      },
    };
  });
  const [left, right] = operands;
  const [rows, columns] = [s.own.m / FRAGMENT, s.own.n / FRAGMENT];
  const steps = Array.from({ length: s.slab / FRAGMENT }, (_, q) => q * FRAGMENT);
  const each = (text: (i: number, j: number) => string): string =>
    lines(rows * columns, (x) => text(Math.floor(x / columns), x % columns));
  const multiply = steps
    .map(
      (step) => `{
    ${lines(rows, (i) => `let a${i} = ${left.fragment("Left", "inner", `own_row + ${i * FRAGMENT}u`, step)};`)}
    ${lines(columns, (j) => `let b${j} = ${right.fragment("Right", "outer", `own_column + ${j * FRAGMENT}u`, step)};`)}
    ${each((i, j) => `c${i}_${j} = subgroupMatrixMultiplyAccumulate(a${i}, b${j}, c${i}_${j});`)}
    }`,
    )
    .join("\n    ");
  return `let own_row = subgroup / ${s.n / s.own.n}u * ${s.own.m}u;
  let own_column = subgroup % ${s.n / s.own.n}u * ${s.own.n}u;
  ${each((i, j) => `var c${i}_${j} = Sums();`)}
  ${operands.map((o) => `${o.last}\n  ${o.declare}`).join("\n  ")}
  ${operands.map((o) => o.fetch(kBegin)).join("\n    ")}
  for (var slab = ${kBegin}; slab < ${kEnd}; slab += ${s.slab}u) {
    ${operands.map((o) => o.stage).join("\n    ")}
    workgroupBarrier();
    let next_slab = slab + ${s.slab}u;
    ${operands.map((o) => o.fetch("next_slab")).join("\n    ")}
    ${multiply}
    workgroupBarrier();
  }`;
}

/**
 * Stores what {@link matrixTile} summed, a vec4f at a time, by way of the memory of the slabs: a part of it for each subgroup,
 * for as many fragments of a row as fit. Rows are a vec4u apart, as a store of a fragment is to eight of them at once.
 */
export function matrixStores(layouts: readonly [Layout, Layout], s: MatrixTileShape, store: Store): string {
  const [rows, columns] = [s.own.m / FRAGMENT, s.own.n / FRAGMENT];
  const room = Math.floor(stagedSizes(layouts, s)[1] / subgroupsOf(s));
  const vectors = (width: number) => (width * FRAGMENT) / 4;
  const fits = (width: number) => FRAGMENT * (vectors(width) + 1) <= room;
  const width = [columns, columns / 2].find((w) => Number.isInteger(w) && fits(w)) ?? 1;
  const row = vectors(width) + 1;
  const turns = Array.from({ length: (rows * columns) / width }, (_, t) => {
    const [i, first] = [Math.floor((t * width) / columns), (t * width) % columns];
    return `${lines(
      width,
      (j) => `subgroupMatrixStore<row_major>(&staged, patch_start + ${j * 4}u, c${i}_${first + j}, ${row}u);`,
    )}
  workgroupBarrier();
  for (var e = lane; e < ${FRAGMENT * vectors(width)}u; e += ${SUBGROUP}u) {
    let i = own_row + ${i * FRAGMENT}u + e / ${vectors(width)}u;
    let j = own_column + ${first * FRAGMENT}u + e % ${vectors(width)}u * 4;
    let at = patch_start + e / ${vectors(width)}u * ${row}u + e % ${vectors(width)}u;
    ${store("i", "j", "bitcast<vec4f>(staged[at])")}
  }
  workgroupBarrier();`;
  });
  return `let patch_start = subgroup * ${room}u;
  let lane = lid % ${SUBGROUP}u;
  ${turns.join("\n  ")}`;
}
