// The table by which one dispatch updates many tensors. A slice is a stretch of elements with one row of scalars: a
// parameter, or one expert of it. Each slice is cut into blocks, one for each workgroup; a workgroup finds its slice by a
// binary search of the table, which therefore grows with the slices and not with the elements.
//
// A parameter slice and its gradient lie somewhere in large arrays; m and v are laid out as the gradient is. What no slice
// covers is never touched.

import { LINEAR_INDEX } from "./kernel.ts";

/** Values (f32 or vec4f) that a workgroup updates. */
const BLOCK = 1024;
const THREADS = 64;

/** Offsets and size in elements. */
export interface Slice {
  /** In the parameters. */
  readonly parameter: number;
  /** In the gradients, and in every moment. */
  readonly gradient: number;
  readonly size: number;
  /** Row of `scalars`. */
  readonly scalar: number;
}

export interface SliceTable {
  /** What the slices' elements are read as. */
  readonly value: "vec4f" | "f32";
  /** The buffer `slices` of a kernel: [sliceCount] `Slice`. */
  readonly words: Uint32Array<ArrayBuffer>;
  readonly sliceCount: number;
  /** Workgroups. */
  readonly blockCount: number;
  /** Elements of all slices. */
  readonly elements: number;
}

/** The slices that are whole vec4f in one table, the others in a second; no table is empty. */
export function sliceTables(slices: readonly Slice[]): SliceTable[] {
  const whole = ({ parameter, gradient, size }: Slice) => (parameter | gradient | size) % 4 === 0;
  const filled = slices.filter((s) => s.size > 0);
  const groups = [
    { value: "vec4f", width: 4, members: filled.filter(whole) },
    { value: "f32", width: 1, members: filled.filter((s) => !whole(s)) },
  ] as const;
  return groups
    .filter(({ members }) => members.length > 0)
    .map(({ value, width, members }) => {
      let blockCount = 0;
      const rows = members.flatMap(({ parameter, gradient, size, scalar }) => {
        const first = blockCount;
        blockCount += Math.ceil(size / width / BLOCK);
        return [first, parameter / width, gradient / width, size / width, scalar];
      });
      const elements = members.reduce((n, { size }) => n + size, 0);
      return { value, words: Uint32Array.from(rows), sliceCount: members.length, blockCount, elements };
    });
}

/** Parameters of a kernel of {@link updateEachValue}. */
export const SLICE_PARAMS = { slice_count: "u32", block_count: "u32" } as const;

/** The parameters' values. */
export const sliceParams = ({ sliceCount, blockCount }: SliceTable) => ({
  slice_count: sliceCount,
  block_count: blockCount,
});

/**
 * WGSL: `find_slice(group)`, the index in `slices` of the slice to which a workgroup belongs, where slice s begins with
 * workgroup `slices[s].FIRST` and the kernel has a parameter slice_count.
 */
export const findSlice = (first: string): string => /* wgsl */ `
fn find_slice(group: u32) -> u32 {
  var low = 0u;
  var high = params.slice_count;
  while (high - low > 1) {
    let middle = (low + high) / 2;
    if (slices[middle].${first} <= group) { low = middle; } else { high = middle; }
  }
  return low;
}
`;

/**
 * WGSL of a whole kernel: `update` runs for every value of every slice, with `p` its index in the parameters, `at` that in
 * gradient and moments, and `scalar` the slice's row of scalars. It declares buffers `slices`, `scalars` and `clip`, and
 * does nothing where clip[2] says that the gradient is not finite.
 */
export const updateEachValue = (update: string): string => /* wgsl */ `
struct Slice {
  first_block: u32,
  parameter: u32, // offsets and size in values
  gradient: u32,
  size: u32,
  scalar: u32,
}
${LINEAR_INDEX}${findSlice("first_block")}
@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lane: u32) {
  let block = linear_index(wid, num);
  if (block >= params.block_count || clip[2] == 0) { return; }
  let slice = slices[find_slice(block)];
  let scalar = scalars[slice.scalar];
  let begin = (block - slice.first_block) * ${BLOCK};
  let end = min(begin + ${BLOCK}, slice.size);
  for (var i = begin + lane; i < end; i += ${THREADS}) {
    let p = slice.parameter + i;
    let at = slice.gradient + i;
    ${update}
  }
}`;
