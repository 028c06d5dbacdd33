// Adafactor (Shazeer and Stern 2018, arXiv 1804.04235) without first moment, the update of optax.adafactor:
//
//   g = gradient · clip,  s = g² + epsilon,  decay = 1 - t^-decay_rate
//   factored:   row    ← decay · row    + (1 - decay) · mean of s over columns      u = g / sqrt(row · column / mean(row))
//               column ← decay · column + (1 - decay) · mean of s over rows
//   otherwise:  v      ← decay · v      + (1 - decay) · s                           u = g / sqrt(v)
//   p ← p · (1 - weight_decay) - lr · max(rms(p), min_parameter_scale) / max(1, rms(u) / clip_threshold) · u
//
// The decay of the weights is not scaled by the learning rate (optax adds it behind it). The expert axis is a batch axis
// of the moments: every slice has its own rows and columns. Both root mean squares are of the whole tensor, as in optax,
// that is of its trainable slices. Many tensors, each some slices of large arrays, are updated by the same few dispatches
// (adafactor_slices.ts); what no slice covers keeps its bits.
//
// The update depends on means over the whole slice, so it takes three passes over it: the moments; the squares of u and
// p, in two stages (chunks of 4096 elements as in reduce.ts, then the chunks of a tensor); the update, which computes u
// again rather than keep it. Sums of a column are in two stages too: blocks of 64 rows, then the blocks. All sums are in
// a fixed order, so the bits are the same every time.

import { type AdafactorTable, COLUMNS, ROW_BLOCK, SLICE_STRUCT } from "./adafactor_slices.ts";
import { type Command, call, defineKernel, LINEAR_INDEX, read, spread, write } from "./kernel.ts";
import { CHUNK, sumRange } from "./reduce.ts";
import { findSlice } from "./slices.ts";

const THREADS = 64;

const MAIN = /* wgsl */ `
@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lane: u32) {
  let group = linear_index(wid, num);
  if (group >= params.group_count || clip[2] == 0) { return; } // clip[2] is 0 where the gradient is not finite`;

/** WGSL: begins `main`, whose workgroups are those that the table counts from FIRST on; each has its `slice`. */
const entry = (first: string) => /* wgsl */ `${MAIN}
  slice_index = find_slice(group);
  slice = slices[slice_index];
  let part = group - slice.${first};`;

/** WGSL in front of the functions that read `slice`. */
const inSlice = (first: string) => /* wgsl */ `${LINEAR_INDEX}${SLICE_STRUCT}${findSlice(first)}
var<private> slice_index: u32;
var<private> slice: Slice;
`;

const groups = { slice_count: "u32", group_count: "u32" } as const;
const moving = { ...groups, epsilon: "f32" } as const;
const slices = read("Slice");
const scalars = read("vec4f"); // learning rate, decay, 1 - decay, weight decay
const clip = read("f32"); //      [3]: norm, factor, whether it is finite

// A workgroup for every row.
const rowMoments = defineKernel({
  name: "adafactor_rows",
  params: moving,
  buffers: { gradient: read("f32"), row: write("f32"), slices, scalars, clip },
  wgsl: /* wgsl */ `${inSlice("first_row")}${sumRange("gradient[i] * gradient[i]")}${entry("first_row")}
  let begin = slice.gradient + part * slice.columns;
  let sum = sum_range(lane, begin, begin + slice.columns);
  if (lane > 0) { return; }
  let scalar = scalars[slice.scalar];
  let mean = sum * clip[1] * clip[1] / f32(slice.columns) + params.epsilon;
  let at = slice.row + part;
  row[at] = scalar.y * row[at] + scalar.z * mean;
}`,
});

// column_sums: [row blocks, columns] of each slice, Σ g² over the rows of a block. Each thread has its column.
const columnBlocks = defineKernel({
  name: "adafactor_column_blocks",
  params: groups,
  buffers: { gradient: read("f32"), slices, clip, column_sums: write("f32") },
  wgsl: /* wgsl */ `${inSlice("first_column_block")}${entry("first_column_block")}
  let across = (slice.columns + ${COLUMNS - 1}) / ${COLUMNS};
  let column = (part % across) * ${COLUMNS} + lane;
  if (column >= slice.columns) { return; }
  let block = part / across;
  let first = block * ${ROW_BLOCK};
  let start = slice.gradient + first * slice.columns + column;
  var sum = 0.0;
  for (var i = 0u; i < min(${ROW_BLOCK}, slice.rows - first); i++) {
    let g = gradient[start + i * slice.columns];
    sum += g * g;
  }
  column_sums[slice.column_sums + block * slice.columns + column] = sum;
}`,
});

const columnMoments = defineKernel({
  name: "adafactor_columns",
  params: moving,
  buffers: { column_sums: read("f32"), column: write("f32"), slices, scalars, clip },
  wgsl: /* wgsl */ `${inSlice("first_column")}${entry("first_column")}
  let index = part * ${COLUMNS} + lane;
  if (index >= slice.columns) { return; }
  let blocks = (slice.rows + ${ROW_BLOCK - 1}) / ${ROW_BLOCK};
  var sum = 0.0;
  for (var block = 0u; block < blocks; block++) {
    sum += column_sums[slice.column_sums + block * slice.columns + index];
  }
  let scalar = scalars[slice.scalar];
  let mean = sum * clip[1] * clip[1] / f32(slice.rows) + params.epsilon;
  let at = slice.column + index;
  column[at] = scalar.y * column[at] + scalar.z * mean;
}`,
});

// row_mean: [slices]
const rowMean = defineKernel({
  name: "adafactor_row_mean",
  params: { group_count: "u32" },
  buffers: { row: read("f32"), slices, clip, row_mean: write("f32") },
  wgsl: /* wgsl */ `${LINEAR_INDEX}${SLICE_STRUCT}${sumRange("row[i]")}${MAIN}
  let slice = slices[group];
  let sum = sum_range(lane, slice.row, slice.row + slice.rows);
  if (lane == 0) { row_mean[group] = sum / f32(slice.rows); }
}`,
});

/** WGSL: `unscaled(i)`, u of element i of the slice; the order keeps every intermediate result finite. */
const FACTORED = /* wgsl */ `
fn unscaled(i: u32) -> f32 {
  let across = inverseSqrt(column[slice.column + i % slice.columns]) * sqrt(row_mean[slice_index]);
  return gradient[slice.gradient + i] * clip[1] * inverseSqrt(row[slice.row + i / slice.columns]) * across;
}
`;
const UNFACTORED = /* wgsl */ `
fn unscaled(i: u32) -> f32 { return gradient[slice.gradient + i] * clip[1] * inverseSqrt(v[slice.row + i]); }
`;
const factors = { row: read("f32"), column: read("f32"), row_mean: read("f32") };

/** WGSL: the chunk of the slice that a workgroup has. */
const CHUNK_OF_SLICE = /* wgsl */ `
  let begin = part * ${CHUNK};
  let end = min(begin + ${CHUNK}, slice.rows * slice.columns);`;

const SQUARES_MAIN = /* wgsl */ `${entry("first_chunk")}${CHUNK_OF_SLICE}
  let sum = sum_range(lane, begin, end);
  if (lane == 0) { partials[group] = sum; }
}`;

// partials: [chunks of all slices], Σ u² and Σ p².
const squares = { parameter: read("f32"), gradient: read("f32"), slices, clip, partials: write("vec2f") };

const factoredSquares = defineKernel({
  name: "adafactor_squares_factored",
  params: groups,
  buffers: { ...squares, ...factors },
  wgsl: /* wgsl */ `${inSlice("first_chunk")}${FACTORED}
fn squares_at(i: u32) -> vec2f {
  let terms = vec2f(unscaled(i), parameter[slice.parameter + i]);
  return terms * terms;
}
${sumRange("squares_at(i)", "vec2f")}${SQUARES_MAIN}`,
});

/** Besides the squares: the moments, which nothing else needs before. */
const unfactoredSquares = defineKernel({
  name: "adafactor_squares",
  params: moving,
  buffers: { ...squares, v: write("f32"), scalars },
  wgsl: /* wgsl */ `${inSlice("first_chunk")}${UNFACTORED}
fn squares_at(i: u32) -> vec2f {
  let scalar = scalars[slice.scalar];
  let g = gradient[slice.gradient + i] * clip[1];
  let at = slice.row + i;
  v[at] = scalar.y * v[at] + scalar.z * (g * g + params.epsilon);
  let terms = vec2f(unscaled(i), parameter[slice.parameter + i]);
  return terms * terms;
}
${sumRange("squares_at(i)", "vec2f")}${SQUARES_MAIN}`,
});

// steps: [slices], what u and what p is multiplied with. A workgroup for every tensor.
const stepKernel = defineKernel({
  name: "adafactor_step",
  params: { group_count: "u32", clip_threshold: "f32", min_parameter_scale: "f32" },
  buffers: { partials: read("vec2f"), tensors: read("Tensor"), slices, scalars, clip, steps: write("vec2f") },
  wgsl: /* wgsl */ `
struct Tensor {
  first_slice: u32,
  slice_count: u32,
  first_chunk: u32,
  chunk_count: u32,
  size: u32, // elements of its slices
}
${LINEAR_INDEX}${SLICE_STRUCT}${sumRange("partials[i]", "vec2f")}${MAIN}
  let tensor = tensors[group];
  let sum = sum_range(lane, tensor.first_chunk, tensor.first_chunk + tensor.chunk_count);
  if (lane > 0) { return; }
  let rms = sqrt(sum / f32(tensor.size));
  let scale = max(rms.y, params.min_parameter_scale) / max(1, rms.x / params.clip_threshold);
  for (var s = 0u; s < tensor.slice_count; s++) {
    let index = tensor.first_slice + s;
    let scalar = scalars[slices[index].scalar];
    steps[index] = vec2f(scalar.x * scale, 1 - scalar.w);
  }
}`,
});

const UPDATE_MAIN = /* wgsl */ `${entry("first_chunk")}${CHUNK_OF_SLICE}
  let step = steps[slice_index];
  for (var i = begin + lane; i < end; i += ${THREADS}) {
    let p = slice.parameter + i;
    parameter[p] = parameter[p] * step.y - step.x * unscaled(i);
  }
}`;
const updated = { parameter: write("f32"), gradient: read("f32"), slices, clip, steps: read("vec2f") };

const factoredUpdate = defineKernel({
  name: "adafactor_update_factored",
  params: groups,
  buffers: { ...updated, ...factors },
  wgsl: `${inSlice("first_chunk")}${FACTORED}${UPDATE_MAIN}`,
});

const unfactoredUpdate = defineKernel({
  name: "adafactor_update",
  params: groups,
  buffers: { ...updated, v: read("f32") },
  wgsl: `${inSlice("first_chunk")}${UNFACTORED}${UPDATE_MAIN}`,
});

export interface AdafactorSettings {
  clipThreshold: number;
  epsilon: number;
  minParameterScale: number;
}

type Common = "parameter" | "gradient" | "slices" | "tensors" | "scalars" | "clip" | "partials" | "steps";

/**
 * One step in place of the slices of `table`, with a second moment for every element. parameter, gradient, v f32; slices,
 * tensors: the table's words; scalars [rows] vec4f = (learning rate, decay, 1 - decay, weight decay); clip [3] f32 as
 * `gradientNorm` writes it (nothing changes where that says that the gradient is not finite); partials, steps: scratch, see
 * `AdafactorTable`. Slices must not overlap.
 */
export function adafactor<T>(
  buffers: Record<Common | "v", T>,
  table: AdafactorTable,
  settings: AdafactorSettings,
): Command<T>[] {
  const { parameter, gradient, v, slices, tensors, scalars, clip, partials, steps } = buffers;
  const { chunks, step } = plan(table, settings);
  const { epsilon } = settings;
  return [
    call(
      unfactoredSquares,
      { ...chunks, epsilon },
      { parameter, gradient, v, slices, scalars, clip, partials },
      spread(chunks.group_count),
    ),
    call(stepKernel, step, { partials, tensors, slices, scalars, clip, steps }, spread(step.group_count)),
    call(unfactoredUpdate, chunks, { parameter, gradient, v, slices, clip, steps }, spread(chunks.group_count)),
  ];
}

/**
 * One step in place with second moments of rows and columns: as {@link adafactor}, with row and column instead of v, and
 * the scratch rowMean and columnSums besides.
 */
export function adafactorFactored<T>(
  buffers: Record<Common | "row" | "column" | "rowMean" | "columnSums", T>,
  table: AdafactorTable,
  settings: AdafactorSettings,
): Command<T>[] {
  const { parameter, gradient, row, column, slices, tensors, scalars, clip, partials, steps } = buffers;
  const { rowMean: row_mean, columnSums: column_sums } = buffers;
  const { chunks, step } = plan(table, settings);
  const { epsilon } = settings;
  const over = (group_count: number) => ({ slice_count: table.sliceCount, group_count });
  const u = { gradient, row, column, row_mean, slices, clip };
  const { sliceCount, rowCount, columnBlockCount, columnGroupCount, chunkCount } = table;
  return [
    call(rowMoments, { ...over(rowCount), epsilon }, { gradient, row, slices, scalars, clip }, spread(rowCount)),
    call(columnBlocks, over(columnBlockCount), { gradient, slices, clip, column_sums }, spread(columnBlockCount)),
    call(
      columnMoments,
      { ...over(columnGroupCount), epsilon },
      { column_sums, column, slices, scalars, clip },
      spread(columnGroupCount),
    ),
    call(rowMean, { group_count: sliceCount }, { row, slices, clip, row_mean }, spread(sliceCount)),
    call(factoredSquares, chunks, { parameter, ...u, partials }, spread(chunkCount)),
    call(stepKernel, step, { partials, tensors, slices, scalars, clip, steps }, spread(step.group_count)),
    call(factoredUpdate, chunks, { parameter, ...u, steps }, spread(chunkCount)),
  ];
}

/** Parameters that both share. */
function plan(table: AdafactorTable, { clipThreshold, minParameterScale }: AdafactorSettings) {
  return {
    chunks: { slice_count: table.sliceCount, group_count: table.chunkCount },
    step: {
      group_count: table.tensorCount,
      clip_threshold: clipThreshold,
      min_parameter_scale: minParameterScale,
    },
  };
}
