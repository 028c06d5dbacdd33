// Dense matrix product in every transpose: out = alpha · op(a) · op(b), optionally added to out, optionally through
// ReLU. Everything is row-major; the sum over k runs in ascending order in f32, whatever the tile.
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
// 4×8, 4×16 and 8×16 lie within that noise of 8×8, as do workgroups of 4, 16 and 64 threads; the robustness checks
// switched off change nothing.
// Hardware: 64×64 per workgroup, 4×4 per thread; 128×128 and 8×8 where the output is large enough to fill a GPU so.

import type { KernelTarget, Products } from "./capabilities.ts";
import {
  type Command,
  call,
  defineKernel,
  type Kernel,
  kernelCache,
  LINEAR_INDEX,
  read,
  spread,
  write,
} from "./kernel.ts";
import { LARGE_FROM_TILES, type Layout, registerStores, registerTile, type TileProducts } from "./matmul_tiles.ts";
import {
  MATRIX_ENABLES,
  type MatrixTileShape,
  matrixFits,
  matrixStores,
  matrixThreads,
  matrixTile,
  matrixTileMemory,
} from "./matrix_tiles.ts";
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
type MatmulKernel = Kernel<keyof typeof PARAMS, "a" | "b" | "out">;

/** How a and b are stored: all that changes the loops. */
type Layouts = readonly [a: Layout, b: Layout];

const nameOf = ([a, b]: Layouts): string => `${a === "inner" ? "n" : "t"}${b === "inner" ? "t" : "n"}`;

/** WGSL: finishes the sum `c` of out[row, column] (`column` to `column + 3` when vectorised), if that exists. */
const store = (vector: boolean, offset = "params.out_offset"): string => /* wgsl */ `
fn store(row: u32, column: u32, c: ${vector ? "vec4f" : "f32"}) {
  if (row >= params.m || column >= params.n) { return; }
  let at = (${offset} + row * params.n + column)${vector ? " / 4" : ""};
  var value = params.alpha * c;
  if (params.accumulate != 0) { value += out[at]; }
  if (params.relu != 0) { value = max(value, ${vector ? "vec4f()" : "0.0"}); }
  out[at] = value;
}
`;

const storeAt = (i: string, j: string, value: string): string => `store(row + ${i}, column + ${j}, ${value});`;

const SOFTWARE_THREADS = 16;

/** Of a kernel's name, where its operands are rounded. */
const suffix = (products: TileProducts): string => (products === "f16" ? "_f16" : "");

function softwareKernel(
  layouts: Layouts,
  tile: { m: number; n: number },
  vector: boolean,
  products: TileProducts,
): MatmulKernel {
  const element = vector ? "vec4f" : "f32";
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
  return defineKernel({
    name: `matmul_${nameOf(layouts)}_${tile.m}x${tile.n}${vector ? "_vec4" : ""}${suffix(products)}`,
    params: PARAMS,
    buffers: { a: read(element), b: read(element), out: write(element) },
    wgsl: /* wgsl */ `${LINEAR_INDEX}${store(vector)}
@compute @workgroup_size(${SOFTWARE_THREADS})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lid: u32) {
  let index = linear_index(wid, num) * ${SOFTWARE_THREADS} + lid;
  let tile_columns = (params.n + ${tile.n - 1}) / ${tile.n};
  let row = index / tile_columns * ${tile.m};
  let column = index % tile_columns * ${tile.n};
  if (row >= params.m) { return; }
  ${loop}
  ${registerStores(tile, vector, storeAt)}
}`,
  });
}

/** How a workgroup computes its tile. */
interface WorkgroupLoop {
  readonly name: string;
  readonly tile: { readonly m: number; readonly n: number };
  readonly threads: number;
  /** Types behind the bindings of a and b, and of out. */
  readonly element: "f32" | "vec4f";
  readonly stored: "f32" | "vec4f";
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

function sharedLoop(layouts: Layouts, shape: WorkgroupShape, vector: boolean, products: TileProducts): WorkgroupLoop {
  const [a, b] = operandsOf(layouts);
  const element = vector ? "vec4f" : "f32";
  return {
    name: `shared${shape.m}x${shape.n}${vector ? "_vec4" : ""}${suffix(products)}`,
    tile: shape,
    threads: threadsOf(shape),
    element,
    stored: element,
    memory: workgroupTileMemory(shape),
    sum: workgroupTile(a, b, shape, vector, "k_begin", "k_end", products),
    stores: workgroupStores(shape, vector, storeAt),
  };
}

function matrixLoop(layouts: Layouts, shape: MatrixTileShape): WorkgroupLoop {
  const [a, b] = operandsOf(layouts);
  return {
    name: `matrix${shape.m}x${shape.n}`,
    tile: shape,
    threads: matrixThreads(shape),
    element: "vec4f",
    stored: "f32",
    enables: MATRIX_ENABLES,
    memory: matrixTileMemory(layouts, shape),
    sum: matrixTile(a, b, shape, "k_begin", "k_end"),
    stores: matrixStores(shape, storeAt),
  };
}

const hardwareKernel = (layouts: Layouts, loop: WorkgroupLoop): MatmulKernel =>
  defineKernel({
    name: `matmul_${nameOf(layouts)}_${loop.name}`,
    params: PARAMS,
    buffers: { a: read(loop.element), b: read(loop.element), out: write(loop.stored) },
    enables: loop.enables,
    wgsl: /* wgsl */ `${LINEAR_INDEX}
var<private> first: u32; // element of out where the stretch's sums begin
${store(loop.stored === "vec4f", "first")}${loop.memory}
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

/** The end of a product whose k was split: adds the stretches up and finishes each element as `store` does. */
const stretchesKernel = defineKernel({
  name: "matmul_stretches",
  params: { count: "u32", stretches: "u32", out_offset: "u32", alpha: "f32", accumulate: "u32", relu: "u32" },
  buffers: { scratch: read("f32"), out: write("f32") },
  wgsl: /* wgsl */ `${LINEAR_INDEX}
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lid: u32) {
  let i = linear_index(wid, num) * 64 + lid;
  if (i >= params.count) { return; }
  var sum = 0.0;
  for (var s = 0u; s < params.stretches; s++) { sum += scratch[s * params.count + i]; }
  var value = params.alpha * sum;
  if (params.accumulate != 0) { value += out[params.out_offset + i]; }
  if (params.relu != 0) { value = max(value, 0.0); }
  out[params.out_offset + i] = value;
}`,
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
  small: { m: 64, n: 64, slab: 32, own: 32 },
  large: { m: 128, n: 128, slab: 32, own: 64 },
};

const cached = kernelCache<MatmulKernel>();

/** Workgroups that fill a GPU, and the shortest stretch of k that is worth one. */
const FILLING_WORKGROUPS = 512;
const SHORTEST_STRETCH = 256;

const tilesOf = (tile: { m: number; n: number }, m: number, n: number): number =>
  Math.ceil(m / tile.m) * Math.ceil(n / tile.n);

function softwareTile(m: number, n: number): { m: number; n: number } {
  if (m === 1) return { m: 1, n: 8 };
  if (n <= 4) return { m: 16, n: 4 };
  return m <= 4 ? { m: 4, n: 8 } : { m: 8, n: 8 };
}

/** Whether operands and results can be read and written four at a time. */
function vectors(dims: MatmulDims): boolean {
  const { m, n, k, transposeA, transposeB, aOffset = 0, bOffset = 0, outOffset = 0 } = dims;
  return [n, aOffset, bOffset, outOffset, transposeA ? m : k, transposeB ? k : n].every((x) => x % 4 === 0);
}

/** Matrix units are for what can be read eight at a time; the rest is rounded like them. */
function productsOf(dims: MatmulDims): Products {
  const { m, n, k, transposeA, transposeB, aOffset = 0, bOffset = 0, products = "f32" } = dims;
  if (products !== "matrix") return products;
  return matrixFits(transposeA ? m : k, transposeB ? k : n, aOffset, bOffset) ? "matrix" : "f16";
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
  const wanted = Math.min(Math.floor(FILLING_WORKGROUPS / tilesOf(shape, m, n)), Math.floor(k / SHORTEST_STRETCH));
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
 * out[m,n] = alpha · op(a)[m,k] · op(b)[k,n] (+ out), all f32, row-major. `scratch` [matmulScratch] allows to split k.
 * Error of an element: at most k · 2^-24 · Σ|ab| (sequential f32 sum), and with f16 or matrix products 2^-10 · Σ|ab| more;
 * there an operand beyond 65504 is infinite.
 */
export function matmul<T>(
  buffers: Record<"a" | "b" | "out", T> & { scratch?: T },
  dims: MatmulDims,
  target: KernelTarget,
): Command<T>[] {
  const { m, n, k, transposeA, transposeB, accumulate = false, relu = false, alpha = 1 } = dims;
  const { aOffset = 0, bOffset = 0, outOffset = 0 } = dims;
  if (m * n === 0) return [];
  const { a, b, out, scratch } = buffers;
  const layouts: Layouts = [transposeA ? "outer" : "inner", transposeB ? "inner" : "outer"];
  const products = productsOf(dims);
  const vector = vectors(dims);
  const from = { m, n, k, a_offset: aOffset, b_offset: bOffset };
  const finish = { out_offset: outOffset, alpha, accumulate: Number(accumulate), relu: Number(relu) };
  if (target === "hardware") {
    const { large, stretches, length } = splitting(dims, scratch !== undefined);
    const size = large ? "large" : "small";
    const loop = () =>
      products === "matrix"
        ? matrixLoop(layouts, MATRIX_TILES[size])
        : sharedLoop(layouts, F32_TILES[size], vector, products);
    const key = `${nameOf(layouts)} ${products} ${size} ${vector && products !== "matrix"}`;
    const kernel = cached(key, () => hardwareKernel(layouts, loop()));
    const shape = (products === "matrix" ? MATRIX_TILES : F32_TILES)[size];
    const groups = spread(tilesOf(shape, m, n) * stretches);
    if (stretches === 1) return [call(kernel, { ...from, ...finish, k_split: k }, { a, b, out }, groups)];
    const partial = { ...from, k_split: length, out_offset: 0, alpha: 1, accumulate: 0, relu: 0 };
    const summed = { scratch: scratch!, out };
    return [
      call(kernel, partial, { a, b, out: scratch! }, groups),
      call(stretchesKernel, { count: m * n, stretches, ...finish }, summed, spread(Math.ceil((m * n) / 64))),
    ];
  }
  const rounded = products === "f32" ? "f32" : "f16";
  const tile = softwareTile(m, n);
  const kernel = cached(`${nameOf(layouts)} ${tile.m}x${tile.n} ${vector} ${rounded}`, () =>
    softwareKernel(layouts, tile, vector, rounded),
  );
  const params = { ...from, ...finish, k_split: k };
  return [call(kernel, params, { a, b, out }, spread(Math.ceil(tilesOf(tile, m, n) / SOFTWARE_THREADS)))];
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
