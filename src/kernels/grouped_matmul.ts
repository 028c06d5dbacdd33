// Matrix products whose rows belong to experts. The dispatch kernels have sorted the assignments by expert and padded
// each expert's rows to a multiple of `rowTile`, so a block of rowTile rows has one weight matrix:
//
//   rows     | expert 0 ....... pad | expert 1 ... pad | expert 3 .. pad | unused ... |      (expert 2 got nothing)
//   blocks   |   0   |   0   |  0   |   1   |    1     |   3    |   3    |  E |  E    |      expertOfBlock
//
// How many blocks are used is known on the GPU only: a constant bound is dispatched and unused blocks return early.
// The up-projection reads its rows through the index (`gatherTopK`), so the sorted copy of the tokens never exists.
//
// Padding rows of used blocks come out as 0: through the index they are told from real rows, without it the row read
// must itself be 0, which is what these kernels and the combine gradient write there. Rows of unused blocks keep what
// they held. The weight gradient reads real rows only, and is parallel over its outputs: a row is summed in order.
//
// Hardware: up to 64×64 results per workgroup. Where there are enough of them for a GPU, 64×128 (forward, f32) and 128×128
// (weight gradient), of which a thread has 8×8 and reads half as much of workgroup memory for a multiplication; on matrix
// units 64×192 and 128×128, of which two fit into the 48 KiB that the workgroups of a processor share (see matrix_tiles.ts).

import type { KernelTarget, Products } from "./capabilities.ts";
import {
  type BufferDeclaration,
  type Command,
  call,
  defineKernel,
  type Kernel,
  LINEAR_INDEX,
  prefetched,
  read,
  spread,
} from "./kernel.ts";
import {
  LARGE_FROM_TILES,
  type Layout,
  registerStores,
  registerTile,
  type Store,
  type TileProducts,
} from "./matmul_tiles.ts";
import {
  MATRIX_ENABLES,
  type MatrixTileShape,
  matrixFits,
  matrixOperands,
  matrixStores,
  matrixThreads,
  matrixTile,
  matrixTileMemory,
} from "./matrix_tiles.ts";
import { floats, type Halves, kernelFor, type Value } from "./storage.ts";
import {
  threadsOf,
  type WorkgroupOperand,
  type WorkgroupShape,
  workgroupStores,
  workgroupTile,
  workgroupTileMemory,
} from "./workgroup_tiles.ts";

/** `sourceOfRow` of a row that holds no assignment. */
export const PADDING_ROW = 0xffffffff;

const SOFTWARE_THREADS = 16;

/** What changes a kernel's text. */
interface Variant {
  readonly target: KernelTarget;
  /** Rows (of out) and columns a software thread or a hardware workgroup computes. */
  readonly tile: { readonly m: number; readonly n: number };
  readonly vector: boolean;
  readonly gather: boolean;
  /** Whether results are 0 where a mask is not positive. */
  readonly masked: boolean;
  /** `matrix` on hardware only. */
  readonly products: Products;
  /** Of a, b, out and mask. */
  readonly halves: Halves;
}

const nameOf = (v: Variant): string =>
  `${v.target}_${v.tile.m}x${v.tile.n}${v.vector ? "_vec4" : ""}${v.gather ? "_gather" : ""}${v.masked ? "_masked" : ""}${v.products === "f32" ? "" : `_${v.products}`}`;

/** The binding of the row index, in kernels that gather. */
const rowIndex = ({ gather, products }: Variant): Record<string, BufferDeclaration> =>
  gather ? { sourceOfRow: (products === "matrix" ? prefetched : read)("u32") } : {};

/** WGSL: the row of x that a sorted row reads, PADDING for none, of any row; `readable` is one that exists in any case. */
const sourceOf = (gather: boolean): string => /* wgsl */ `
const PADDING = 0xffffffffu;
fn source_of(row: u32) -> u32 {
  ${gather ? "let assignment = sourceOfRow[min(row, arrayLength(&sourceOfRow) - 1)]; return select(assignment / params.top_k, PADDING, assignment == PADDING);" : "return row;"}
}
fn readable(source: u32) -> u32 { return select(source, 0, source == PADDING); }
`;

const sharedShape = (v: Variant): WorkgroupShape =>
  v.tile.n === 128 ? { ...v.tile, slab: 8, perThread: 8 } : { ...v.tile, slab: 16, perThread: 4 };
/** A subgroup has a quarter: half of the rows and columns, or all rows where a tile is wide. */
const matrixShape = ({ tile }: Variant): MatrixTileShape => {
  const [m, n] = tile.m === tile.n ? [tile.m / 2, tile.n / 2] : [tile.m, tile.n / 4];
  return { ...tile, slab: 32, own: { m, n } };
};
const roundedTo = (v: Variant): TileProducts => (v.products === "f32" ? "f32" : "f16");

const threadsOfVariant = (v: Variant): number => {
  if (v.target === "software") return SOFTWARE_THREADS;
  return v.products === "matrix" ? matrixThreads(matrixShape(v)) : threadsOf(sharedShape(v));
};

/** WGSL: the workgroup and thread indices; `index` numbers the tiles. */
const mainOf = (v: Variant): string => /* wgsl */ `
@compute @workgroup_size(${threadsOfVariant(v)})
fn main(
  @builtin(workgroup_id) wid: vec3u,
  @builtin(num_workgroups) num: vec3u,
  @builtin(local_invocation_index) lid: u32,${v.products === "matrix" ? "\n  @builtin(subgroup_id) subgroup: u32," : ""}
) {
  let index = linear_index(wid, num)${v.target === "hardware" ? "" : ` * ${SOFTWARE_THREADS} + lid`};
`;

/** What is read at a time, but for matrix units, and what is written. */
const readOf = (v: Variant): Value => (v.vector ? "vec4f" : "f32");
const writtenOf = (v: Variant): Value => (v.vector || v.products === "matrix" ? "vec4f" : "f32");

/** The bindings of a, b, out and the mask, and the WGSL that accesses them. */
function floatsOf(v: Variant): ReturnType<typeof floats> {
  const operands =
    v.products === "matrix" ? matrixOperands(v.halves) : floats(readOf(v), { a: "read", b: "read" }, v.halves);
  const out = { out: "write" } as const;
  const results = floats<string>(writtenOf(v), v.masked ? { ...out, mask: "read" } : out, v.halves);
  return {
    buffers: { ...operands.buffers, ...results.buffers },
    functions: `${operands.functions}${results.functions}`,
  };
}

/** Elements in an entry of b's binding. */
function elementsOfEntry(v: Variant): number {
  const half = v.halves.includes("b");
  if (v.products === "matrix") return half ? 8 : 4;
  if (v.vector) return 4;
  return half ? 2 : 1;
}

const memoryOf = (v: Variant, layouts: readonly [Layout, Layout]): string => {
  if (v.target === "software") return "";
  return v.products === "matrix" ? matrixTileMemory(layouts, matrixShape(v)) : workgroupTileMemory(sharedShape(v));
};

/** The loop of a hardware workgroup. */
const workgroupLoop = (v: Variant, a: WorkgroupOperand, b: WorkgroupOperand, kBegin: string, kEnd: string): string =>
  v.products === "matrix"
    ? matrixTile(a, b, matrixShape(v), kBegin, kEnd)
    : workgroupTile(a, b, sharedShape(v), v.vector, kBegin, kEnd, v.products);

const storesOf = (v: Variant, layouts: readonly [Layout, Layout], store: Store): string => {
  if (v.target === "software") return registerStores(v.tile, v.vector, store);
  return v.products === "matrix"
    ? matrixStores(layouts, matrixShape(v), store)
    : workgroupStores(sharedShape(v), v.vector, store);
};

const enablesOf = (v: Variant): string | undefined => (v.products === "matrix" ? MATRIX_ENABLES : undefined);

const FORWARD_PARAMS = { max_rows: "u32", row_tile: "u32", n: "u32", k: "u32", top_k: "u32", relu: "u32" } as const;

function forwardKernel(name: string, v: Variant, transposeWeight: boolean): Kernel {
  const units = (x: string): string => (v.vector ? `(${x} / 4)` : x);
  // The software loop counts values, that of hardware elements, whatever the type behind the bindings.
  const counted = v.target === "software" && v.vector ? 4 : 1;
  const weight = `(params.n * params.k / ${counted})`;
  const weights = `arrayLength(&b) * ${elementsOfEntry(v) / counted}`;
  const { buffers, functions } = floatsOf(v);
  const layout = transposeWeight ? "inner" : "outer";
  const rows = Array.from({ length: v.tile.m }, (_, i) => `let source${i} = readable(source_of(row + ${i}));`);
  const loop =
    v.target === "hardware"
      ? workgroupLoop(
          v,
          {
            array: "a",
            layout: "inner",
            inside: (i) => `source_of(row + ${i}) != PADDING`,
            element: (i, k) => `readable(source_of(row + ${i})) * params.k + ${k}`,
          },
          {
            array: "b",
            layout,
            inside: (j) => `column + ${j} < params.n`,
            element: (j, k) =>
              `weight_base + ${transposeWeight ? `(column + ${j}) * params.k + ${k}` : `${k} * params.n + column + ${j}`}`,
          },
          "0u",
          "params.k",
        )
      : `${rows.join("\n  ")}\n  ${registerTile(
          {
            array: "a",
            layout: "inner",
            tile: v.tile.m,
            base: "0u",
            stride: units("params.k"),
            entry: (i) => `source${i}`,
          },
          {
            array: "b",
            layout,
            tile: v.tile.n,
            base: "weight_base",
            stride: units(transposeWeight ? "params.k" : "params.n"),
            entry: (j) =>
              transposeWeight
                ? `min(column + ${j}, params.n - 1)`
                : `min(${units("column")} + ${j}, ${units("params.n")} - 1)`,
          },
          v.vector,
          "0u",
          "params.k",
          roundedTo(v),
        )}`;
  const written = writtenOf(v);
  return defineKernel<string, string>({
    name,
    params: FORWARD_PARAMS,
    buffers: { ...buffers, expertOfBlock: read("u32"), ...rowIndex(v) },
    enables: enablesOf(v),
    wgsl: /* wgsl */ `${memoryOf(v, ["inner", layout])}${functions}${LINEAR_INDEX}${sourceOf(v.gather)}
fn store(row: u32, column: u32, sum: ${written}) {
  if (column >= params.n) { return; }
  // The hardware loops have read 0 for a padding row.
  var value = ${v.target === "software" ? `select(sum, ${written}(), source_of(row) == PADDING)` : "sum"};
  if (params.relu != 0) { value = max(value, ${written}()); }
  let at = (row * params.n + column)${written === "vec4f" ? " / 4" : ""};
  ${v.masked ? `value = select(${written}(), value, load_mask(at) > ${written}());` : ""}
  store_out(at, value);
}
${mainOf(v)}
  let tile_columns = (params.n + ${v.tile.n - 1}) / ${v.tile.n};
  let row = index / tile_columns * ${v.tile.m};
  let column = index % tile_columns * ${v.tile.n};
  if (row >= params.max_rows) { return; }
  // An unused block carries an expert that the weights do not have.
  let weight_base = expertOfBlock[row / params.row_tile] * ${weight};
  if (weight_base >= ${weights}) { return; }
  ${loop}
  ${storesOf(v, ["inner", layout], (i, j, value) => `store(row + ${i}, column + ${j}, ${value});`)}
}`,
  });
}

const GRADIENT_PARAMS = { slots: "u32", n: "u32", k: "u32", top_k: "u32" } as const;

/** out[slot] = dyᵀ·x over the rows of one expert: both operands are "outer", the sum runs over the rows. */
function gradientKernel(name: string, v: Variant): Kernel {
  const { buffers, functions } = floatsOf(v);
  const written = writtenOf(v);
  const units = (x: string): string => (v.vector ? `(${x} / 4)` : x);
  const loop =
    v.target === "hardware"
      ? workgroupLoop(
          v,
          {
            array: "a",
            layout: "outer",
            inside: (i) => `row + ${i} < params.n`,
            element: (i, r) => `${r} * params.n + row + ${i}`,
          },
          {
            array: "b",
            layout: "outer",
            inside: (j) => `column + ${j} < params.k`,
            element: (j, r) => `readable(source_of(${r})) * params.k + column + ${j}`,
          },
          "begin",
          "end",
        )
      : registerTile(
          {
            array: "a",
            layout: "outer",
            tile: v.tile.m,
            base: "0u",
            stride: units("params.n"),
            entry: (i) => `min(${units("row")} + ${i}, ${units("params.n")} - 1)`,
          },
          {
            array: "b",
            layout: "outer",
            tile: v.tile.n,
            base: "0u",
            stride: units("params.k"),
            entry: (j) => `min(${units("column")} + ${j}, ${units("params.k")} - 1)`,
            row: (r) => `source_of(${r})`,
          },
          v.vector,
          "begin",
          "end",
          roundedTo(v),
        );
  return defineKernel<string, string>({
    name,
    params: GRADIENT_PARAMS,
    buffers: {
      ...buffers,
      expertOffset: read("u32"),
      expertCount: read("u32"),
      trainableExperts: read("u32"),
      ...rowIndex(v),
    },
    enables: enablesOf(v),
    wgsl: /* wgsl */ `${memoryOf(v, ["outer", "outer"])}${functions}${LINEAR_INDEX}${sourceOf(v.gather)}
fn store(slot: u32, row: u32, column: u32, sum: ${written}) {
  if (row >= params.n || column >= params.k) { return; }
  store_out(((slot * params.n + row) * params.k + column)${written === "vec4f" ? " / 4" : ""}, sum);
}
${mainOf(v)}
  let tile_rows = (params.n + ${v.tile.m - 1}) / ${v.tile.m};
  let tile_columns = (params.k + ${v.tile.n - 1}) / ${v.tile.n};
  let slot = index / (tile_rows * tile_columns);
  let row = index / tile_columns % tile_rows * ${v.tile.m};
  let column = index % tile_columns * ${v.tile.n};
  if (slot >= params.slots) { return; }
  let expert = trainableExperts[slot];
  let begin = expertOffset[expert];
  let end = begin + expertCount[expert];
  ${loop}
  ${storesOf(v, ["outer", "outer"], (i, j, value) => `store(slot, row + ${i}, column + ${j}, ${value});`)}
}`,
  });
}

/** Commands for `tiles` tiles, of which a hardware workgroup does one and a software workgroup one per thread. */
function tiledCall<T>(
  kernel: Kernel,
  params: Record<string, number>,
  buffers: Record<string, T>,
  tiles: number,
  target: KernelTarget,
): Command<T>[] {
  const workgroups = target === "hardware" ? tiles : Math.ceil(tiles / SOFTWARE_THREADS);
  return [call(kernel, params, buffers, spread(workgroups))];
}

/** @param matrix whether matrix units can be used, where they are asked for; the rest is rounded like them */
const variantOf = (
  target: KernelTarget,
  tile: Variant["tile"],
  { n, k, gatherTopK, products = "f32" }: Pick<GroupedMatmulDims, "n" | "k" | "gatherTopK" | "products">,
  matrix: boolean,
  masked: boolean,
  halves: Halves,
): Variant => ({
  target,
  tile,
  vector: !matrix && n % 4 === 0 && k % 4 === 0,
  gather: gatherTopK !== undefined,
  masked,
  products: products === "matrix" && !matrix ? "f16" : products,
  halves,
});

/** `halves` by the names of the bindings. */
const boundHalves = (halves: Halves, names: Readonly<Record<string, string>>): Halves =>
  halves.map((name) => names[name] ?? name);

/** The largest of `heights` that divides an expert's rows. */
const tileHeight = (rowTile: number, heights: readonly number[]): number => heights.find((h) => rowTile % h === 0)!;

export interface GroupedMatmulDims {
  /** Rows of out: the bound the dispatch was planned for, a multiple of rowTile. */
  maxRows: number;
  /** Rows per block; a multiple of 4. */
  rowTile: number;
  n: number;
  k: number;
  /** The weights are stored [experts, n, k] (as Hugging Face does) instead of [experts, k, n]. */
  transposeWeight: boolean;
  /** Read x through `sourceOfRow`: row r of out reads token floor(sourceOfRow[r] / gatherTopK) of x. */
  gatherTopK?: number;
  /** max(·, 0) of the result. */
  relu?: boolean;
  /** Default: f32. */
  products?: Products;
  /** Which of x, weight, out and mask, or of x and dy, hold f16: with n and k that are multiples of 4. */
  halves?: Halves;
}

/**
 * out[r, 0..n) = x[source(r), 0..k) · W_e for every row r of a used block with expert e.
 * x [tokens, k] with gatherTopK, else [maxRows, k] with zeros in padding rows; out [maxRows, n]; expertOfBlock
 * [maxRows / rowTile] u32 (at least the number of experts = unused); sourceOfRow [maxRows] u32, read with gatherTopK.
 * x, W, out and mask are f32, or f16 where `halves` says so. Given `mask`, laid out as out, results are 0 where it is not
 * positive. The weight binding must end with the last expert: its length is what tells an unused block.
 * @throws RangeError for a rowTile that is no multiple of 4
 */
export function groupedMatmul<T>(
  buffers: Record<"x" | "weight" | "out" | "expertOfBlock", T> & { sourceOfRow?: T; mask?: T },
  dims: GroupedMatmulDims,
  target: KernelTarget,
): Command<T>[] {
  const { maxRows, rowTile, n, k, transposeWeight, gatherTopK, relu = false, products = "f32", halves = [] } = dims;
  const { x, weight, out, expertOfBlock, sourceOfRow, mask } = buffers;
  if (rowTile % 4 !== 0) throw new RangeError(`rowTile is ${rowTile}, not a multiple of 4`);
  const matrix = products === "matrix" && target === "hardware" && rowTile % 64 === 0 && matrixFits(n, k);
  const tile =
    target === "hardware"
      ? { m: tileHeight(rowTile, [64, 32, 16, 8, 4]), n: 64 }
      : { m: tileHeight(rowTile, [8, 4]), n: n <= 4 ? 4 : 8 };
  const wide = matrix ? 192 : 128;
  if (tile.m === 64 && n > wide / 2 && (maxRows / 64) * Math.ceil(n / wide) >= LARGE_FROM_TILES) tile.n = wide;
  const variant = variantOf(
    target,
    tile,
    dims,
    matrix,
    mask !== undefined,
    boundHalves(halves, { x: "a", weight: "b" }),
  );
  const name = `grouped_matmul_${transposeWeight ? "nt" : "nn"}_${nameOf(variant)}`;
  const kernel = kernelFor(name, variant.halves, (full) => forwardKernel(full, variant, transposeWeight));
  const rows = { expertOfBlock, ...gathered(gatherTopK, sourceOfRow) };
  const bindings: Record<string, T> = { a: x, b: weight, out, ...rows, ...(mask === undefined ? {} : { mask }) };
  const params = { max_rows: maxRows, row_tile: rowTile, n, k, top_k: gatherTopK ?? 0, relu: Number(relu) };
  return tiledCall(kernel, params, bindings, (maxRows / tile.m) * Math.ceil(n / tile.n), target);
}

/**
 * out[s, n, k] = Σ of dy[r, n] · x[source(r), k] over the real rows r of expert trainableExperts[s], in order; exactly 0 for
 * an expert without rows; out f32. dy [maxRows, n], f32 or f16; x and sourceOfRow as in {@link groupedMatmul}; expertOffset
 * [experts + 1], expertCount [experts], trainableExperts [slots], all u32.
 */
export function groupedWeightGradient<T>(
  buffers: Record<"x" | "dy" | "out" | "expertOffset" | "expertCount" | "trainableExperts", T> & { sourceOfRow?: T },
  dims: { slots: number } & Pick<GroupedMatmulDims, "n" | "k" | "gatherTopK" | "products" | "halves">,
  target: KernelTarget,
): Command<T>[] {
  const { slots, n, k, gatherTopK, products = "f32", halves = [] } = dims;
  if (slots === 0) return [];
  const matrix = products === "matrix" && target === "hardware" && matrixFits(n, k);
  const large = Math.min(n, k) > 64 && slots * Math.ceil(n / 128) * Math.ceil(k / 128) >= LARGE_FROM_TILES;
  const side = target === "software" ? 8 : large ? 128 : 64;
  const tile = { m: side, n: side };
  const variant = variantOf(target, tile, dims, matrix, false, boundHalves(halves, { x: "b", dy: "a" }));
  const name = `grouped_weight_gradient_${nameOf(variant)}`;
  const kernel = kernelFor(name, variant.halves, (full) => gradientKernel(full, variant));
  const { x, dy, out, expertOffset, expertCount, trainableExperts, sourceOfRow } = buffers;
  const rows = { expertOffset, expertCount, trainableExperts, ...gathered(gatherTopK, sourceOfRow) };
  const params = { slots, n, k, top_k: gatherTopK ?? 0 };
  const tiles = slots * Math.ceil(n / tile.m) * Math.ceil(k / tile.n);
  return tiledCall(kernel, params, { a: dy, b: x, out, ...rows }, tiles, target);
}

/** The row index as a binding, where x is read through it. */
function gathered<T>(gatherTopK: number | undefined, sourceOfRow: T | undefined): Record<string, T> {
  if (gatherTopK === undefined) return {};
  if (sourceOfRow === undefined) throw new TypeError("gatherTopK needs sourceOfRow");
  return { sourceOfRow };
}

/** Where rows lie, as the dispatch writes it. */
export interface GroupedRows {
  readonly sourceOfRow: ArrayLike<number>;
  readonly expertOffset: ArrayLike<number>;
  readonly expertCount: ArrayLike<number>;
}

/** The product in float64: out [rows used, n] from the real rows, 0 in padding rows. */
export function groupedMatmulReference(
  x: ArrayLike<number>,
  weight: ArrayLike<number>,
  { sourceOfRow, expertOffset, expertCount }: GroupedRows,
  { n, k, transposeWeight, gatherTopK, relu = false }: Omit<GroupedMatmulDims, "maxRows" | "rowTile">,
): Float64Array {
  const experts = expertCount.length;
  const out = new Float64Array(expertOffset[experts] * n);
  for (let e = 0; e < experts; e++)
    for (let r = expertOffset[e]; r < expertOffset[e] + expertCount[e]; r++) {
      const source = gatherTopK === undefined ? r : Math.floor(sourceOfRow[r] / gatherTopK);
      for (let j = 0; j < n; j++) {
        let sum = 0;
        for (let l = 0; l < k; l++)
          sum += x[source * k + l] * weight[e * n * k + (transposeWeight ? j * k + l : l * n + j)];
        out[r * n + j] = relu ? Math.max(sum, 0) : sum;
      }
    }
  return out;
}

/** The weight gradient in float64: [trainableExperts, n, k]. */
export function groupedWeightGradientReference(
  x: ArrayLike<number>,
  dy: ArrayLike<number>,
  { sourceOfRow, expertOffset, expertCount }: GroupedRows,
  trainableExperts: ArrayLike<number>,
  { n, k, gatherTopK }: { n: number; k: number; gatherTopK?: number },
): Float64Array {
  const out = new Float64Array(trainableExperts.length * n * k);
  for (let s = 0; s < trainableExperts.length; s++) {
    const e = trainableExperts[s];
    for (let r = expertOffset[e]; r < expertOffset[e] + expertCount[e]; r++) {
      const source = gatherTopK === undefined ? r : Math.floor(sourceOfRow[r] / gatherTopK);
      for (let i = 0; i < n; i++)
        for (let j = 0; j < k; j++) out[(s * n + i) * k + j] += dy[r * n + i] * x[source * k + j];
    }
  }
  return out;
}
