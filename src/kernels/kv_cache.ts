// The key-value cache of incremental decoding: the keys (or values) of every position decoded so far, one row of the
// cache for each sequence. A step appends one position; beam search, whose beams are overtaken by others, reorders rows.
// What is only moved is moved as words: an f32 each, or two f16.

import { type Command, call, defineKernel, LINEAR_INDEX, read, spread, write } from "./kernel.ts";

const WORKGROUP = 64;

const PROLOGUE = /* wgsl */ `${LINEAR_INDEX}
@compute @workgroup_size(${WORKGROUP})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lane: u32) {
  let i = linear_index(wid, num) * ${WORKGROUP}u + lane;
`;

export interface CacheDims {
  readonly rows: number;
  /** Positions a row holds. */
  readonly length: number;
  /** Words of a position. */
  readonly width: number;
}

const appendKernel = defineKernel({
  name: "kv_cache_append",
  params: { rows: "u32", length: "u32", width: "u32" },
  buffers: {
    x: read("u32"), //        [rows, width]
    position: read("u32"), // [1]
    cache: write("u32"), //   [rows, length, width]
  },
  wgsl: /* wgsl */ `${PROLOGUE}
  if (i >= params.rows * params.width || position[0] >= params.length) { return; }
  let row = i / params.width;
  cache[(row * params.length + position[0]) * params.width + i % params.width] = x[i];
}
`,
});

/** cache[:, position[0], :] = x; x [rows, width], cache [rows, length, width] words, position [1] u32 below length. */
export function kvCacheAppend<T>(
  buffers: { x: T; position: T; cache: T },
  { rows, length, width }: CacheDims,
): Command<T>[] {
  return [call(appendKernel, { rows, length, width }, buffers, spread(Math.ceil((rows * width) / WORKGROUP)))];
}

const gatherKernel = defineKernel({
  name: "kv_cache_gather",
  params: { count: "u32", row_size: "u32" },
  buffers: {
    source: read("u32"), //  [rows, row_size]
    parents: read("u32"), // [rows]
    out: write("u32"), //    [rows, row_size]
  },
  wgsl: /* wgsl */ `${PROLOGUE}
  if (i >= params.count) { return; }
  out[i] = source[parents[i / params.row_size] * params.row_size + i % params.row_size];
}
`,
});

const copyKernel = defineKernel({
  name: "kv_cache_copy",
  params: { count: "u32" },
  buffers: { source: read("u32"), out: write("u32") },
  wgsl: /* wgsl */ `${PROLOGUE}
  if (i >= params.count) { return; }
  out[i] = source[i];
}
`,
});

/** cache[row] = what cache[parents[row]] was; cache and scratch [rows, length, width] words, parents [rows] u32. */
export function kvCacheReorder<T>(
  buffers: { cache: T; parents: T; scratch: T },
  { rows, length, width }: CacheDims,
): Command<T>[] {
  const { cache, parents, scratch } = buffers;
  const count = rows * length * width;
  const workgroups = spread(Math.ceil(count / WORKGROUP));
  return [
    call(gatherKernel, { count, row_size: length * width }, { source: cache, parents, out: scratch }, workgroups),
    call(copyKernel, { count }, { source: scratch, out: cache }, workgroups),
  ];
}

/** Definition of {@link kvCacheAppend}: the cache afterwards. */
export function kvCacheAppendReference(
  x: ArrayLike<number>,
  position: number,
  cache: ArrayLike<number>,
  { length, width }: CacheDims,
): Float32Array {
  const out = Float32Array.from(cache);
  for (let i = 0; i < x.length; i++) out[(Math.floor(i / width) * length + position) * width + (i % width)] = x[i];
  return out;
}

/** Definition of {@link kvCacheReorder}: the cache afterwards. */
export function kvCacheReorderReference(
  cache: ArrayLike<number>,
  parents: ArrayLike<number>,
  { length, width }: CacheDims,
): Float32Array {
  const size = length * width;
  return Float32Array.from(cache, (_, i) => cache[parents[Math.floor(i / size)] * size + (i % size)]);
}
