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
// test/bench/matmul.ts, which repeats the tile that is chosen; the others by editing `softwareTile`:
//   m×n×k   512×64×64  512×64×128  64×64×1000  4096×64×64  512×4×64
//   8×8     2.2        2.4         2.3         3.2         0.9
//   16×4    2.1        2.3         1.8         2.5         1.5
//   4×4     1.6        1.4         1.5         1.3         1.2
// 4×8, 4×16 and 8×16 lie within that noise of 8×8, as do workgroups of 4, 16 and 64 threads; the robustness checks
// switched off change nothing.
// Hardware: 64×64 per workgroup, 4×4 per thread; 128×128 and 8×8 where the output is large enough to fill a GPU so.

import type { KernelTarget } from "./capabilities.ts";
import { type Command, call, defineKernel, type Kernel, LINEAR_INDEX, read, spread, write } from "./kernel.ts";
import {
  type Layout,
  registerStores,
  registerTile,
  threadsOf,
  type WorkgroupShape,
  workgroupStores,
  workgroupTile,
  workgroupTileMemory,
} from "./matmul_tiles.ts";

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

function softwareKernel(layouts: Layouts, tile: { m: number; n: number }, vector: boolean): MatmulKernel {
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
  );
  return defineKernel({
    name: `matmul_${nameOf(layouts)}_${tile.m}x${tile.n}${vector ? "_vec4" : ""}`,
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

function hardwareKernel(layouts: Layouts, shape: WorkgroupShape): MatmulKernel {
  const operand = (array: "a" | "b", layout: Layout, first: string, size: string) => ({
    array,
    layout,
    inside: (i: string) => `${first} + ${i} < ${size}`,
    element: (i: string, k: string) =>
      layout === "inner"
        ? `params.${array}_offset + (${first} + ${i}) * params.k + ${k}`
        : `params.${array}_offset + ${k} * ${size} + ${first} + ${i}`,
  });
  return defineKernel({
    name: `matmul_${nameOf(layouts)}_shared${shape.m}x${shape.n}`,
    params: PARAMS,
    buffers: { a: read("f32"), b: read("f32"), out: write("f32") },
    wgsl: /* wgsl */ `${LINEAR_INDEX}
var<private> first: u32; // element of out where the stretch's sums begin
${store(false, "first")}${workgroupTileMemory(shape)}
@compute @workgroup_size(${threadsOf(shape)})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lid: u32) {
  let index = linear_index(wid, num);
  let tile_columns = (params.n + ${shape.n - 1}) / ${shape.n};
  let tiles = (params.m + ${shape.m - 1}) / ${shape.m} * tile_columns;
  let stretch = index / tiles;
  let row = index % tiles / tile_columns * ${shape.m};
  let column = index % tile_columns * ${shape.n};
  let k_begin = stretch * params.k_split;
  if (stretch > 0 && k_begin >= params.k) { return; }
  let k_end = min(k_begin + params.k_split, params.k);
  first = params.out_offset + stretch * params.m * params.n;
  ${workgroupTile(
    operand("a", layouts[0], "row", "params.m"),
    operand("b", layouts[1], "column", "params.n"),
    shape,
    "k_begin",
    "k_end",
  )}
  ${workgroupStores(shape, storeAt)}
}`,
  });
}

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

const SMALL: WorkgroupShape = { m: 64, n: 64, slab: 16, perThread: 4 };
const LARGE: WorkgroupShape = { m: 128, n: 128, slab: 8, perThread: 8 };
/** From this many 128×128 tiles on, the large tile keeps a GPU's processors busy. */
const LARGE_FROM_TILES = 128;

const kernels = new Map<string, MatmulKernel>();

/** The kernel `make` builds under `key`, built once. */
function cached(key: string, make: () => MatmulKernel): MatmulKernel {
  const found = kernels.get(key) ?? make();
  kernels.set(key, found);
  return found;
}

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

type MatmulSize = Pick<MatmulDims, "m" | "n" | "k">;

const hardwareShape = ({ m, n }: MatmulSize): WorkgroupShape =>
  tilesOf(LARGE, m, n) >= LARGE_FROM_TILES ? LARGE : SMALL;

/** The tile of a product whose k may be split, and in how many stretches of what length. */
function splitting({ m, n, k }: MatmulSize): { shape: WorkgroupShape; stretches: number; length: number } {
  const shape = m >= LARGE.m && n >= LARGE.n ? LARGE : SMALL;
  const wanted = Math.min(Math.floor(FILLING_WORKGROUPS / tilesOf(shape, m, n)), Math.floor(k / SHORTEST_STRETCH));
  if (wanted <= 1) return { shape: hardwareShape({ m, n, k }), stretches: 1, length: k };
  const length = Math.ceil(k / wanted / shape.slab) * shape.slab;
  return { shape, stretches: Math.ceil(k / length), length };
}

/** f32 elements of scratch with which `matmul` may split k; 0 where it would not. */
export function matmulScratch(size: MatmulSize, target: KernelTarget): number {
  if (target === "software") return 0;
  const { stretches } = splitting(size);
  return stretches > 1 ? stretches * size.m * size.n : 0;
}

/**
 * out[m,n] = alpha · op(a)[m,k] · op(b)[k,n] (+ out), all f32, row-major. `scratch` [matmulScratch] allows to split k.
 * Error of an element: at most k · 2^-24 · Σ|ab| (sequential f32 sum).
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
  const from = { m, n, k, a_offset: aOffset, b_offset: bOffset };
  const finish = { out_offset: outOffset, alpha, accumulate: Number(accumulate), relu: Number(relu) };
  const hardware = (shape: WorkgroupShape) =>
    cached(`${nameOf(layouts)} ${shape.m}`, () => hardwareKernel(layouts, shape));
  if (target === "hardware" && scratch !== undefined && matmulScratch(dims, target) > 0) {
    const { shape, stretches, length } = splitting(dims);
    const partial = { ...from, k_split: length, out_offset: 0, alpha: 1, accumulate: 0, relu: 0 };
    const groups = spread(tilesOf(shape, m, n) * stretches);
    return [
      call(hardware(shape), partial, { a, b, out: scratch }, groups),
      call(stretchesKernel, { count: m * n, stretches, ...finish }, { scratch, out }, spread(Math.ceil((m * n) / 64))),
    ];
  }
  const params = { ...from, ...finish, k_split: k };
  if (target === "hardware") {
    const shape = hardwareShape(dims);
    return [call(hardware(shape), params, { a, b, out }, spread(tilesOf(shape, m, n)))];
  }
  const tile = softwareTile(m, n);
  const multiples = [n, aOffset, bOffset, outOffset, transposeA ? m : k, transposeB ? k : n];
  const vector = multiples.every((x) => x % 4 === 0);
  const kernel = cached(`${nameOf(layouts)} ${tile.m}x${tile.n} ${vector}`, () =>
    softwareKernel(layouts, tile, vector),
  );
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
