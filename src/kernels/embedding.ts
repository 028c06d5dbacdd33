// Embedding lookup and its gradient. The gradient of a table row is a sum over the tokens that used it; without float
// atomics and in a fixed order, it is a gather: the host sorts token positions by id once per batch (`sortTokens`), and
// one thread walks the positions of one table row for one column.

import { type Command, call, defineKernel, type Kernel, LINEAR_INDEX, read, spread, write } from "./kernel.ts";
import { floats, type Halves, kernelFor, type Value, valuesOf } from "./storage.ts";

const THREADS = 64;

const MAIN = /* wgsl */ `
@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lid: u32) {
  let at = linear_index(wid, num) * ${THREADS} + lid;
  let row = at / params.width;
  let column = at % params.width;
`;

/** `width` counts values: vec4f where the width allows, else f32. */
const forwardKernel = (value: Value, halves: Halves): Kernel =>
  kernelFor(`embedding_forward_${value}`, halves, (name) => {
    const { buffers, functions } = floats(value, { table: "read", out: "write" }, halves);
    return defineKernel<string, string>({
      name,
      params: { tokens: "u32", width: "u32", vocabulary: "u32" },
      buffers: { ...buffers, ids: read("u32") },
      wgsl: /* wgsl */ `${functions}${LINEAR_INDEX}${MAIN}
  if (row >= params.tokens) { return; }
  let id = ids[row];
  var value = ${value}();
  if (id < params.vocabulary) { value = load_table(id * params.width + column); }
  store_out(at, value);
}`,
    });
  });

const gradientKernel = (value: Value) =>
  defineKernel({
    name: `embedding_gradient_${value}`,
    params: { vocabulary: "u32", width: "u32", accumulate: "u32" },
    buffers: { dOut: read(value), tokenOrder: read("u32"), rowStart: read("u32"), out: write(value) },
    wgsl: /* wgsl */ `${LINEAR_INDEX}${MAIN}
  if (row >= params.vocabulary) { return; }
  let end = rowStart[row + 1];
  var sum = ${value}();
  for (var i = rowStart[row]; i < end; i++) {
    sum += dOut[tokenOrder[i] * params.width + column];
  }
  if (params.accumulate != 0) { sum += out[at]; }
  out[at] = sum;
}`,
  });

const gradient = { vec4f: gradientKernel("vec4f"), f32: gradientKernel("f32") };

/**
 * out[t] = table[ids[t]]; table [vocabulary, width], ids [tokens] u32, out [tokens, width].
 * An id outside the vocabulary gives a row of zeros (ids are validated on the host, where the error can be told).
 */
export function embeddingForward<T>(
  buffers: Record<"table" | "ids" | "out", T>,
  { tokens, width, vocabulary, halves = [] }: { tokens: number; width: number; vocabulary: number; halves?: Halves },
): Command<T>[] {
  if (tokens === 0) return [];
  const [value, values] = valuesOf(width);
  const params = { tokens, width: values, vocabulary };
  return [call(forwardKernel(value, halves), params, buffers, spread(Math.ceil((tokens * values) / THREADS)))];
}

/**
 * out[v] = Σ of dOut over the tokens with id v, in token order (+ out[v] when `accumulate`); exactly 0 for an unused id.
 * dOut [tokens, width] f32, out [vocabulary, width] f32, tokenOrder and rowStart from {@link sortTokens}.
 */
export function embeddingGradient<T>(
  buffers: Record<"dOut" | "tokenOrder" | "rowStart" | "out", T>,
  { vocabulary, width, accumulate }: { vocabulary: number; width: number; accumulate: boolean },
): Command<T>[] {
  const [value, values] = valuesOf(width);
  const params = { vocabulary, width: values, accumulate: Number(accumulate) };
  return [call(gradient[value], params, buffers, spread(Math.ceil((vocabulary * values) / THREADS)))];
}

/**
 * Token positions sorted stably by id (counting sort): the positions of id v are tokenOrder[rowStart[v] .. rowStart[v+1]).
 * tokenOrder [tokens] u32, rowStart [vocabulary + 1] u32. Positions with an id outside the vocabulary are in no row.
 */
export function sortTokens(
  ids: Uint32Array | Int32Array,
  vocabulary: number,
): { tokenOrder: Uint32Array<ArrayBuffer>; rowStart: Uint32Array<ArrayBuffer> } {
  const rowStart = new Uint32Array(vocabulary + 1);
  const known = (id: number): boolean => id >= 0 && id < vocabulary;
  for (const id of ids) if (known(id)) rowStart[id + 1]++;
  for (let v = 0; v < vocabulary; v++) rowStart[v + 1] += rowStart[v];
  const next = rowStart.slice();
  const tokenOrder = new Uint32Array(ids.length);
  ids.forEach((id, position) => {
    if (known(id)) tokenOrder[next[id]++] = position;
  });
  return { tokenOrder, rowStart };
}

/** The lookup, in the table's own values. */
export function embeddingForwardReference(
  table: ArrayLike<number>,
  ids: ArrayLike<number>,
  { width, vocabulary }: { width: number; vocabulary: number },
): Float64Array {
  const out = new Float64Array(ids.length * width);
  for (let t = 0; t < ids.length; t++)
    if (ids[t] < vocabulary) for (let c = 0; c < width; c++) out[t * width + c] = table[ids[t] * width + c];
  return out;
}

/** The scatter-add that the gradient is, in float64, onto a copy of `out`. */
export function embeddingGradientReference(
  dOut: ArrayLike<number>,
  ids: ArrayLike<number>,
  out: ArrayLike<number>,
  { width, vocabulary }: { width: number; vocabulary: number },
): Float64Array {
  const sum = Float64Array.from(out);
  for (let t = 0; t < ids.length; t++)
    if (ids[t] < vocabulary) for (let c = 0; c < width; c++) sum[ids[t] * width + c] += dOut[t * width + c];
  return sum;
}
