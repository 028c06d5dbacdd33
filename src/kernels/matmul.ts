// Dense matrix product in every transpose: out = alpha · op(a) · op(b), optionally added to out, through ReLU, or masked by
// where a ReLU was positive. Everything is row-major, each buffer f32 or f16 (storage.ts). Sums are f32 in any case, in
// ascending order of k whatever the tile, but for stretches of a split k and for matrix units, which take 16 steps at once.
//
// A weight gradient has few outputs and a long k: too few workgroups to fill a GPU. Given scratch, the hardware kernels
// split k in stretches that are summed apart and then added up in order. (One H100, driver 580.159.04, 2026-11-24: without
// it those products took two thirds of a step of examples/configs/st-moe-mini, at 1 to 2 TFLOP/s beside 12 to 19.)
//
// Not here: batches (a batch of one weight is one taller matrix; experts have `grouped_matmul`).
//
// Software: 8×8 results per thread, 16×4 for very narrow outputs (a router), 4×8 and 1×8 for very short ones (a decode
// step). On SwiftShader with two AMD EPYC cores shared with other work (so ±30 %), GFLOP/s in the order of
// bench/parts/matmul.ts, which repeats the tile that is chosen; the others by editing `softwareTile`:
//   m×n×k   512×64×64  512×64×128  64×64×1000  4096×64×64  512×4×64
//   8×8     2.2        2.4         2.3         3.2         0.9
//   16×4    2.1        2.3         1.8         2.5         1.5
//   4×4     1.6        1.4         1.5         1.3         1.2
// 4×8, 4×16 and 8×16 lie within that noise of 8×8, as do workgroups of 4, 16 and 64 threads.
// Hardware: 64×64 per workgroup, 128×128 where the output is large enough to fill a GPU so: of that 4×4 or 8×8 per thread
// (workgroup_tiles.ts), or 32×32 or 64×64 per subgroup on matrix units (matrix_tiles.ts).

import type { KernelTarget, Products } from "./capabilities.ts";
import { type Command, call, defineKernel, type Kernel, LINEAR_INDEX, spread } from "./kernel.ts";
import { LARGE_FROM_TILES, type Layout, registerStores, registerTile, type TileProducts } from "./matmul_tiles.ts";
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
import { floats, type Halves, kernelFor, type Value, valuesOf } from "./storage.ts";
import {
  threadsOf,
  type WorkgroupShape,
  workgroupStores,
  workgroupTile,
  workgroupTileMemory,
} from "./workgroup_tiles.ts";

export interface MatmulDims {
  /** out [m,n]. */
  m: number;
  n: number;
  /** Length of the sum. */
  k: number;
  /** a is stored [k,m] instead of [m,k]. */
  transposeA: boolean;
  /** b is stored [n,k] instead of [k,n]. */
  transposeB: boolean;
  /** Add to what out holds. */
  accumulate?: boolean;
  /** Factor of the product, before the addition; 1. */
  alpha?: number;
  /** max(·, 0) of the final value. */
  relu?: boolean;
  /** Where each matrix starts in its buffer, in elements. */
  aOffset?: number;
  bOffset?: number;
  outOffset?: number;
  /** Default: f32. */
  products?: Products;
  /** Which of a, b, out and mask hold f16: the last two where n and outOffset are multiples of 4. */
  halves?: Halves;
}

const PARAMS = {
  m: "u32",
  n: "u32",
  k: "u32",
  a_offset: "u32",
  b_offset: "u32",
  out_offset: "u32",
  alpha: "f32",
  accumulate: "u32",
  relu: "u32",
  /** Summation steps of one stretch; k when it is whole. Stretch s writes its sums s · m · n elements after the first. */
  k_split: "u32",
} as const;

/** How a and b are stored: all that changes the loops. */
type Layouts = readonly [a: Layout, b: Layout];

const nameOf = ([a, b]: Layouts): string => `${a === "inner" ? "n" : "t"}${b === "inner" ? "t" : "n"}`;

/** WGSL: finishes the sum `c` of out[row, column] (`column` to `column + 3` of vec4f), if that exists. */
const store = (value: Value, masked: boolean, offset = "params.out_offset"): string => /* wgsl */ `
fn store(row: u32, column: u32, c: ${value}) {
  if (row >= params.m || column >= params.n) { return; }
  let at = (${offset} + row * params.n + column)${value === "vec4f" ? " / 4" : ""};
  var value = params.alpha * c;
  if (params.accumulate != 0) { value += load_out(at); }
  if (params.relu != 0) { value = max(value, ${value}()); }
  ${masked ? `value = select(${value}(), value, load_mask(at) > ${value}());` : ""}
  store_out(at, value);
}
`;

/** The bindings of results, and the WGSL that accesses them. */
const resultsOf = ({ results, masked, halves }: Access) =>
  floats<string>(results, masked ? { out: "write", mask: "read" } : { out: "write" }, halves);

const storeAt = (i: string, j: string, value: string): string => `store(row + ${i}, column + ${j}, ${value});`;

const SOFTWARE_THREADS = 16;

/** How a kernel accesses its operands, and its results. */
interface Access {
  readonly operands: Value;
  readonly results: Value;
  readonly masked: boolean;
  readonly halves: Halves;
}

/** Of a kernel's name: how wide it reads and writes, and whether it rounds its operands. */
const suffix = ({ operands, results, masked }: Access, products: TileProducts): string =>
  `_${operands}${results === operands ? "" : `_${results}`}${products === "f16" ? "_rounded" : ""}${masked ? "_masked" : ""}`;

function softwareKernel(
  name: string,
  layouts: Layouts,
  tile: { m: number; n: number },
  access: Access,
  products: TileProducts,
): Kernel {
  const vector = access.operands === "vec4f";
  const units = (x: string): string => (vector ? `(${x} / 4)` : x);
  // An "inner" operand clamps its row, an "outer" one its column, to the last that exists.
  const entry = (layout: Layout, first: string, size: string) => (i: number) =>
    layout === "inner" ? `min(${first} + ${i}, ${size} - 1)` : `min(${units(first)} + ${i}, ${units(size)} - 1)`;
  const operand = (array: "a" | "b", layout: Layout, length: number, first: string, size: string) => ({
    array,
    layout,
    tile: length,
    base: units(`params.${array}_offset`),
    stride: units(layout === "inner" ? "params.k" : size),
    entry: entry(layout, first, size),
  });
  const loop = registerTile(
    operand("a", layouts[0], tile.m, "row", "params.m"),
    operand("b", layouts[1], tile.n, "column", "params.n"),
    vector,
    "0u",
    "params.k",
    products,
  );
  const operands = floats(access.operands, { a: "read", b: "read" }, access.halves);
  const results = resultsOf(access);
  return defineKernel<string, string>({
    name,
    params: PARAMS,
    buffers: { ...operands.buffers, ...results.buffers },
    wgsl: /* wgsl */ `${LINEAR_INDEX}${operands.functions}${results.functions}${store(access.results, access.masked)}
@compute @workgroup_size(${SOFTWARE_THREADS})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lid: u32) {
  let index = linear_index(wid, num) * ${SOFTWARE_THREADS} + lid;
  let tile_columns = (params.n + ${tile.n - 1}) / ${tile.n};
  let row = index / tile_columns * ${tile.m};
  let column = index % tile_columns * ${tile.n};
  if (row >= params.m) { return; }
  ${loop}
  ${registerStores(tile, access.results === "vec4f", storeAt)}
}`,
  });
}

/** How a workgroup computes its tile. */
interface WorkgroupLoop {
  readonly tile: { readonly m: number; readonly n: number };
  readonly threads: number;
  /** Bindings of a and b, and the WGSL that reads them. */
  readonly operands: ReturnType<typeof matrixOperands>;
  readonly enables?: string;
  readonly memory: string;
  readonly sum: string;
  readonly stores: string;
}

/** Operands of both workgroup loops: what lies where. */
const operandsOf = (layouts: Layouts) => {
  const operand = (array: "a" | "b", layout: Layout, first: string, size: string) => ({
    array,
    layout,
    inside: (i: string) => `${first} + ${i} < ${size}`,
    element: (i: string, k: string) =>
      layout === "inner"
        ? `params.${array}_offset + (${first} + ${i}) * params.k + ${k}`
        : `params.${array}_offset + ${k} * ${size} + ${first} + ${i}`,
  });
  return [operand("a", layouts[0], "row", "params.m"), operand("b", layouts[1], "column", "params.n")] as const;
};

function sharedLoop(layouts: Layouts, shape: WorkgroupShape, access: Access, products: TileProducts): WorkgroupLoop {
  const [a, b] = operandsOf(layouts);
  return {
    tile: shape,
    threads: threadsOf(shape),
    operands: floats(access.operands, { a: "prefetch", b: "prefetch" }, access.halves),
    memory: workgroupTileMemory(shape),
    sum: workgroupTile(a, b, shape, access.operands === "vec4f", "k_begin", "k_end", products),
    stores: workgroupStores(shape, access.results === "vec4f", storeAt),
  };
}

function matrixLoop(layouts: Layouts, shape: MatrixTileShape, halves: Halves): WorkgroupLoop {
  const [a, b] = operandsOf(layouts);
  return {
    tile: shape,
    threads: matrixThreads(shape),
    operands: matrixOperands(halves),
    enables: MATRIX_ENABLES,
    memory: matrixTileMemory(layouts, shape),
    sum: matrixTile(a, b, shape, "k_begin", "k_end"),
    stores: matrixStores(layouts, shape, storeAt),
  };
}

function hardwareKernel(name: string, loop: WorkgroupLoop, access: Access): Kernel {
  const { operands } = loop;
  const results = resultsOf(access);
  return defineKernel<string, string>({
    name,
    params: PARAMS,
    buffers: { ...operands.buffers, ...results.buffers },
    enables: loop.enables,
    wgsl: /* wgsl */ `${LINEAR_INDEX}
var<private> first: u32; // element of out where the stretch's sums begin
${loop.memory}${operands.functions}${results.functions}${store(access.results, access.masked, "first")}
@compute @workgroup_size(${loop.threads})
fn main(
  @builtin(workgroup_id) wid: vec3u,
  @builtin(num_workgroups) num: vec3u,
  @builtin(local_invocation_index) lid: u32,${loop.enables ? "\n  @builtin(subgroup_id) subgroup: u32," : ""}
) {
  let index = linear_index(wid, num);
  let tile_columns = (params.n + ${loop.tile.n - 1}) / ${loop.tile.n};
  let tiles = (params.m + ${loop.tile.m - 1}) / ${loop.tile.m} * tile_columns;
  let stretch = index / tiles;
  let row = index % tiles / tile_columns * ${loop.tile.m};
  let column = index % tile_columns * ${loop.tile.n};
  let k_begin = stretch * params.k_split;
  if (stretch > 0 && k_begin >= params.k) { return; }
  let k_end = min(k_begin + params.k_split, params.k);
  first = params.out_offset + stretch * params.m * params.n;
  ${loop.sum}
  ${loop.stores}
}`,
  });
}

/** The end of a product whose k was split: adds the stretches up and finishes each element as `store` does. */
const stretchesKernel = (value: Value, halves: Halves): Kernel =>
  kernelFor(`matmul_stretches_${value}`, halves, (name) => {
    const { buffers, functions } = floats(value, { scratch: "read", out: "write" }, halves);
    return defineKernel<string, string>({
      name,
      // count and out_offset in values
      params: { count: "u32", stretches: "u32", out_offset: "u32", alpha: "f32", accumulate: "u32", relu: "u32" },
      buffers,
      wgsl: /* wgsl */ `${functions}${LINEAR_INDEX}
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lid: u32) {
  let i = linear_index(wid, num) * 64 + lid;
  if (i >= params.count) { return; }
  var sum = ${value}();
  for (var s = 0u; s < params.stretches; s++) { sum += load_scratch(s * params.count + i); }
  var value = params.alpha * sum;
  if (params.accumulate != 0) { value += load_out(params.out_offset + i); }
  if (params.relu != 0) { value = max(value, ${value}()); }
  store_out(params.out_offset + i, value);
}`,
    });
  });

interface Tiles<Shape> {
  readonly small: Shape;
  readonly large: Shape;
}
const F32_TILES: Tiles<WorkgroupShape> = {
  small: { m: 64, n: 64, slab: 16, perThread: 4 },
  large: { m: 128, n: 128, slab: 8, perThread: 8 },
};
const MATRIX_TILES: Tiles<MatrixTileShape> = {
  small: { m: 64, n: 64, slab: 32, own: { m: 32, n: 32 } },
  large: { m: 128, n: 128, slab: 32, own: { m: 64, n: 64 } },
};

/**
 * What splitting k costs, in the time of one step of k of a large tile, of which a GPU does so many at a time (measured on one
 * H100, which has 132 processors with room for two; where that is wrong, the choice is worse, not the result).
 */
const TILES_AT_A_TIME = 264;
/** Beginning and ending a tile. */
const TILE_COST = 90;
/** Writing and reading the sums of a tile, all processors together. */
const SUMS_COST = 1.5;
/** The shortest stretch of k that is worth a tile. */
const SHORTEST_STRETCH = 256;

/** In how many stretches of k so many tiles take least. */
function bestStretches(tiles: number, k: number): number {
  const cost = (stretches: number): number => {
    const sums = stretches === 1 ? 0 : SUMS_COST * tiles * stretches;
    return Math.ceil((tiles * stretches) / TILES_AT_A_TIME) * (k / stretches + TILE_COST) + sums;
  };
  let best = 1;
  for (let stretches = 2; stretches <= k / SHORTEST_STRETCH; stretches++)
    if (cost(stretches) < cost(best)) best = stretches;
  return best;
}

const tilesOf = (tile: { m: number; n: number }, m: number, n: number): number =>
  Math.ceil(m / tile.m) * Math.ceil(n / tile.n);

function softwareTile(m: number, n: number): { m: number; n: number } {
  if (m === 1) return { m: 1, n: 8 };
  if (n <= 4) return { m: 16, n: 4 };
  return m <= 4 ? { m: 4, n: 8 } : { m: 8, n: 8 };
}

/** How wide operands and results can be accessed. */
function accessOf(dims: MatmulDims & { masked?: boolean }): Access {
  const {
    m,
    n,
    k,
    transposeA,
    transposeB,
    aOffset = 0,
    bOffset = 0,
    outOffset = 0,
    masked = false,
    halves = [],
  } = dims;
  const value = (...elements: readonly number[]): Value => (elements.every((x) => x % 4 === 0) ? "vec4f" : "f32");
  return {
    operands: value(aOffset, bOffset, transposeA ? m : k, transposeB ? k : n),
    results: value(n, outOffset),
    masked,
    halves,
  };
}

/** Matrix units are for what can be read eight at a time and written four at a time; the rest is rounded like them. */
function productsOf(dims: MatmulDims): Products {
  const { m, n, k, transposeA, transposeB, aOffset = 0, bOffset = 0, products = "f32" } = dims;
  if (products !== "matrix") return products;
  const fits = matrixFits(transposeA ? m : k, transposeB ? k : n, aOffset, bOffset);
  return fits && accessOf(dims).results === "vec4f" ? "matrix" : "f16";
}

/** How a product runs on hardware: tile, and in how many stretches of k of what length. */
interface Splitting {
  readonly large: boolean;
  readonly stretches: number;
  readonly length: number;
}

function splitting(dims: MatmulDims, maySplit: boolean): Splitting {
  const { m, n, k } = dims;
  const tiles = productsOf(dims) === "matrix" ? MATRIX_TILES : F32_TILES;
  const fills = tilesOf(tiles.large, m, n) >= LARGE_FROM_TILES;
  const whole = { large: fills && m > tiles.small.m && n > tiles.small.n, stretches: 1, length: k };
  if (!maySplit) return whole;
  const large = m >= tiles.large.m && n >= tiles.large.n;
  const shape = large ? tiles.large : tiles.small;
  const wanted = bestStretches(tilesOf(shape, m, n), k);
  if (wanted <= 1) return whole;
  const length = Math.ceil(k / wanted / shape.slab) * shape.slab;
  return { large, stretches: Math.ceil(k / length), length };
}

/** f32 elements of scratch with which `matmul` may split k; 0 where it would not. */
export function matmulScratch(dims: MatmulDims, target: KernelTarget): number {
  if (target === "software") return 0;
  const { stretches } = splitting(dims, true);
  return stretches > 1 ? stretches * dims.m * dims.n : 0;
}

/**
 * out[m,n] = alpha · op(a)[m,k] · op(b)[k,n] (+ out), row-major; f32, or f16 where `halves` says so. `scratch`
 * [matmulScratch] f32 allows to split k, without a mask. Error of an element: at most k · 2^-24 · Σ|ab| (sequential f32
 * sum), and with f16 or matrix products 2^-10 · Σ|ab| more, but for operands that hold f16 already; there an operand beyond
 * 65504 is not finite. Given `mask`, laid out as out, results are 0 where it is not positive: the gradient of a ReLU whose
 * output it is.
 */
export function matmul<T>(
  buffers: Record<"a" | "b" | "out", T> & { scratch?: T; mask?: T },
  dims: MatmulDims,
  target: KernelTarget,
): Command<T>[] {
  const { m, n, k, transposeA, transposeB, accumulate = false, relu = false, alpha = 1 } = dims;
  const { aOffset = 0, bOffset = 0, outOffset = 0 } = dims;
  if (m * n === 0) return [];
  const { a, b, out, scratch, mask } = buffers;
  const bound: Record<string, T> = mask === undefined ? { a, b, out } : { a, b, out, mask };
  const layouts: Layouts = [transposeA ? "outer" : "inner", transposeB ? "inner" : "outer"];
  const products = productsOf(dims);
  const access = accessOf({ ...dims, masked: mask !== undefined });
  const rounded = products === "f32" ? "f32" : "f16";
  const from = { m, n, k, a_offset: aOffset, b_offset: bOffset };
  const finish = { alpha, accumulate: Number(accumulate), relu: Number(relu) };
  const name = `matmul_${nameOf(layouts)}`;
  if (target === "software") {
    const tile = softwareTile(m, n);
    const kernel = kernelFor(`${name}_${tile.m}x${tile.n}${suffix(access, rounded)}`, access.halves, (full) =>
      softwareKernel(full, layouts, tile, access, rounded),
    );
    const params = { ...from, ...finish, out_offset: outOffset, k_split: k };
    return [call(kernel, params, bound, spread(Math.ceil(tilesOf(tile, m, n) / SOFTWARE_THREADS)))];
  }
  const { large, stretches, length } = splitting(dims, scratch !== undefined && mask === undefined);
  const size = large ? "large" : "small";
  const shape = (products === "matrix" ? MATRIX_TILES : F32_TILES)[size];
  const tile = `${shape.m}x${shape.n}`;
  const kernelOf = (access: Access): Kernel =>
    products === "matrix"
      ? kernelFor(`${name}_matrix${tile}${access.masked ? "_masked" : ""}`, access.halves, (full) =>
          hardwareKernel(full, matrixLoop(layouts, MATRIX_TILES[size], access.halves), access),
        )
      : kernelFor(`${name}_shared${tile}${suffix(access, rounded)}`, access.halves, (full) =>
          hardwareKernel(full, sharedLoop(layouts, F32_TILES[size], access, rounded), access),
        );
  const groups = spread(tilesOf(shape, m, n) * stretches);
  if (stretches === 1) {
    const params = { ...from, ...finish, out_offset: outOffset, k_split: k };
    return [call(kernelOf(access), params, bound, groups)];
  }
  // The stretches' sums are f32, and begin wherever m · n elements end.
  const [value, count] = outOffset % 4 === 0 ? valuesOf(m * n) : (["f32", m * n] as const);
  const partialAccess: Access = { ...access, halves: access.halves.filter((buffer) => buffer !== "out") };
  const partial = { ...from, k_split: length, out_offset: 0, alpha: 1, accumulate: 0, relu: 0 };
  const sums = { count, stretches, out_offset: outOffset / (value === "vec4f" ? 4 : 1), ...finish };
  const summed = { scratch: scratch!, out };
  const finishing = stretchesKernel(
    value,
    access.halves.filter((buffer) => buffer === "out"),
  );
  return [
    call(kernelOf(partialAccess), partial, { a, b, out: scratch! }, groups),
    call(finishing, sums, summed, spread(Math.ceil(count / 64))),
  ];
}

/** The definition, in float64. `out` is what the buffer held before; returns what it holds after. */
export function matmulReference(
  a: ArrayLike<number>,
  b: ArrayLike<number>,
  out: ArrayLike<number>,
  dims: MatmulDims,
): Float64Array {
  const { m, n, k, transposeA, transposeB, accumulate = false, relu = false, alpha = 1 } = dims;
  const { aOffset = 0, bOffset = 0, outOffset = 0 } = dims;
  const result = Float64Array.from(out);
  for (let i = 0; i < m; i++)
    for (let j = 0; j < n; j++) {
      let sum = 0;
      for (let l = 0; l < k; l++)
        sum += a[aOffset + (transposeA ? l * m + i : i * k + l)] * b[bOffset + (transposeB ? j * k + l : l * n + j)];
      const at = outOffset + i * n + j;
      const value = alpha * sum + (accumulate ? result[at] : 0);
      result[at] = relu ? Math.max(value, 0) : value;
    }
  return result;
}
