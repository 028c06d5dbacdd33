// The inner loop of matrix products on a GPU's matrix units (WGSL subgroup matrices, 16×16×16, f16 · f16 summed in f32), as
// text for `matmul` and `grouped_matmul`: what `workgroupTile` is without them. An operand lies in memory as f16, or as f32
// that is rounded on its way into workgroup memory; sums are f32.
//
// A workgroup computes m×n results, each of its subgroups `own`×`own` of them, which stay in its registers as 16×16
// fragments. Slabs of `slab` summation steps are staged packed, eight f16 to a vec4u; the next slab is fetched while one is
// multiplied. What does not exist is read from the array's beginning and replaced by 0: a load behind a branch waits for the
// one before it (one H100, driver 580.159.04, 2026-11-24: 85 TFLOP/s at 4096³ with branches, 168 without). Fragments are
// opaque, so the end of a product goes through a patch of workgroup memory, where it is an f32 array again.
//
// An operand's contiguous axis must be a multiple of 8 elements, and begin at one: {@link matrixFits}.

import { type BufferDeclaration, read } from "./kernel.ts";
import type { Layout, Store } from "./matmul_tiles.ts";
import type { Halves } from "./storage.ts";

/** An operand of {@link matrixTile}; texts are WGSL. */
export interface MatrixOperand {
  readonly array: "a" | "b";
  readonly layout: Layout;
  /** Is entry i of the tile inside the matrix? Asked for the first of eight where i is the contiguous axis. */
  readonly inside: (i: string) => string;
  /** Index of the element at tile entry i and summation index k. */
  readonly element: (i: string, k: string) => string;
}

export interface MatrixTileShape {
  readonly m: number;
  readonly n: number;
  readonly slab: number;
  /** Rows and columns of a subgroup. */
  readonly own: number;
}

const FRAGMENT = 16;
const SUBGROUP = 32;
/** f16 in a vec4u. */
const PACK = 8;

const subgroupsOf = (s: MatrixTileShape): number => (s.m / s.own) * (s.n / s.own);
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
 * The operands of a kernel, those in `halves` as f16. `functions` is WGSL of module scope: `eight_a(at)` and `eight_b(at)`
 * give the eight elements from `at` on as f16, `at` a multiple of 8. It needs {@link MATRIX_TYPES}.
 */
export function matrixOperands(halves: Halves): { buffers: Record<"a" | "b", BufferDeclaration>; functions: string } {
  const each = (name: "a" | "b") =>
    halves.includes(name) ? `return ${name}[at / 8];` : `return packed(${name}[at / 4], ${name}[at / 4 + 1]);`;
  const type = (name: "a" | "b") => read(halves.includes(name) ? "vec4u" : "vec4f");
  const functions = (["a", "b"] as const).map((name) => `fn eight_${name}(at: u32) -> vec4u { ${each(name)} }\n`);
  return { buffers: { a: type("a"), b: type("b") }, functions: functions.join("") };
}

/** WGSL module scope: types, the staged slabs and the patches. */
export const matrixTileMemory = (
  layouts: readonly [Layout, Layout],
  s: MatrixTileShape,
): string => /* wgsl */ `${MATRIX_TYPES}
var<workgroup> staged_a: array<vec4u, ${stagedRows(layouts[0], s.m, s) * rowOf(layouts[0], s.m, s)}>;
var<workgroup> staged_b: array<vec4u, ${stagedRows(layouts[1], s.n, s) * rowOf(layouts[1], s.n, s)}>;
var<workgroup> sums_patch: array<f32, ${subgroupsOf(s) * FRAGMENT * s.own}>; // [subgroups, 16, own]
`;

const lines = (count: number, text: (i: number) => string): string =>
  Array.from({ length: count }, (_, i) => text(i)).join("\n    ");

/**
 * Sums k from `kBegin` to `kEnd`, both uniform over the workgroup and multiples of 8 where an operand is "inner", into
 * fragments `c{i}_{j}`. Needs `lid`, the local invocation index, `subgroup`, the subgroup's, and {@link matrixOperands}.
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
    { ...a, tile: s.m },
    { ...b, tile: s.n },
  ].map((o) => {
    const packs = (o.tile * s.slab) / PACK / threads;
    const perRow = rowOf(o.layout, o.tile, s) - 1;
    const place = (p: number) => `(lid + ${p * threads}u)`;
    const [i, k] =
      o.layout === "inner"
        ? [(p: number) => `${place(p)} / ${perRow}u`, (p: number) => `${place(p)} % ${perRow}u * ${PACK}u`]
        : [(p: number) => `${place(p)} % ${perRow}u * ${PACK}u`, (p: number) => `${place(p)} / ${perRow}u`];
    const x = o.array;
    return {
      declare: lines(packs, (p) => `var next_${x}${p}: vec4u;`),
      fetch: (slab: string) =>
        lines(
          packs,
          (p) => `{
      let i = ${i(p)};
      let k = ${slab} + ${k(p)};
      let exists = k < ${kEnd} && ${o.inside("i")};
      let eight = eight_${x}(select(0u, ${o.element("i", "k")}, exists));
      next_${x}${p} = select(vec4u(), eight, vec4<bool>(exists));
    }`,
        ),
      stage: lines(
        packs,
        (p) => `staged_${x}[${place(p)} / ${perRow}u * ${perRow + 1}u + ${place(p)} % ${perRow}u] = next_${x}${p};`,
      ),
      /** The fragment whose entries begin at tile entry `first`, at step `step` of the slab. */
      fragment: (type: string, natural: Layout, first: string, step: number) => {
        const row = perRow + 1;
        const at =
          o.layout === "inner" ? `(${first}) * ${row}u + ${step / PACK}u` : `${step * row}u + (${first}) / ${PACK}u`;
        return `subgroupMatrixLoad<${type}, ${o.layout === natural ? "row_major" : "col_major"}>(&staged_${x}, ${at}, ${row}u)`;
      },
    };
  });
  const [left, right] = operands;
  const fragments = s.own / FRAGMENT;
  const steps = Array.from({ length: s.slab / FRAGMENT }, (_, q) => q * FRAGMENT);
  const multiply = steps
    .map(
      (step) => `{
    ${lines(fragments, (i) => `let a${i} = ${left.fragment("Left", "inner", `own_row + ${i * FRAGMENT}u`, step)};`)}
    ${lines(fragments, (j) => `let b${j} = ${right.fragment("Right", "outer", `own_column + ${j * FRAGMENT}u`, step)};`)}
    ${lines(fragments * fragments, (x) => {
      const [i, j] = [Math.floor(x / fragments), x % fragments];
      return `c${i}_${j} = subgroupMatrixMultiplyAccumulate(a${i}, b${j}, c${i}_${j});`;
    })}
    }`,
    )
    .join("\n    ");
  return `let own_row = subgroup / ${s.n / s.own}u * ${s.own}u;
  let own_column = subgroup % ${s.n / s.own}u * ${s.own}u;
  ${lines(fragments * fragments, (x) => `var c${Math.floor(x / fragments)}_${x % fragments} = Sums();`)}
  ${operands.map((o) => o.declare).join("\n  ")}
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

/** Stores what {@link matrixTile} summed, a vec4f at a time, through the subgroup's patch. */
export function matrixStores(s: MatrixTileShape, store: Store): string {
  const fragments = s.own / FRAGMENT;
  const size = FRAGMENT * s.own;
  return `let patch_start = subgroup * ${size}u;
  let lane = lid % ${SUBGROUP}u;
  ${lines(
    fragments,
    (i) => `${lines(
      fragments,
      (j) => `subgroupMatrixStore<row_major>(&sums_patch, patch_start + ${j * FRAGMENT}u, c${i}_${j}, ${s.own}u);`,
    )}
  workgroupBarrier();
  for (var e = lane * 4; e < ${size}u; e += ${4 * SUBGROUP}u) {
    let i = own_row + ${i * FRAGMENT}u + e / ${s.own}u;
    let j = own_column + e % ${s.own}u;
    let at = patch_start + e;
    ${store("i", "j", "vec4f(sums_patch[at], sums_patch[at + 1], sums_patch[at + 2], sums_patch[at + 3])")}
  }
  workgroupBarrier();`,
  )}`;
}
