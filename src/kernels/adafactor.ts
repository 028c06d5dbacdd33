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
// that is of its trainable slices. Slices, slots and what is left untouched are those of adamw.ts.
//
// The update depends on means over the whole slice, so it takes three passes over it: the moments; the squares of u and
// p, in two stages (chunks of 4096 elements as in reduce.ts, then the chunks); the update, which computes u
// again rather than keep it. Sums of a column are in two stages too: blocks of 64 rows, then the blocks. All sums are in
// a fixed order, so the bits are the same every time.

import { type Command, call, defineKernel, LINEAR_INDEX, read, spread, write } from "./kernel.ts";
import { CHUNK, sumRange } from "./reduce.ts";

const THREADS = 64;
const ROW_BLOCK = 64;

const ENTRY = /* wgsl */ `
@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lane: u32) {
  let group = linear_index(wid, num);
  if (clip[2] == 0) { return; } // the gradient is not finite`;

const shape = { slot_count: "u32", rows: "u32", columns: "u32" } as const;
const moving = { ...shape, scalar_offset: "u32", epsilon: "f32" } as const;
const scalars = read("vec4f"); // learning rate, decay, 1 - decay, weight decay
const clip = read("f32"); //      [3]: norm, factor, whether it is finite

const rowMoments = defineKernel({
  name: "adafactor_rows",
  params: moving,
  buffers: { gradient: read("f32"), row: write("f32"), scalars, clip },
  wgsl: /* wgsl */ `${LINEAR_INDEX}${sumRange("gradient[i] * gradient[i]")}${ENTRY}
  if (group >= params.slot_count * params.rows) { return; }
  let sum = sum_range(lane, group * params.columns, (group + 1) * params.columns);
  if (lane > 0) { return; }
  let scalar = scalars[params.scalar_offset + group / params.rows];
  let mean = sum * clip[1] * clip[1] / f32(params.columns) + params.epsilon;
  row[group] = scalar.y * row[group] + scalar.z * mean;
}`,
});

// column_sums: [slot_count, row blocks, columns], Σ g² over the rows of a block. Each thread has its column.
const columnBlocks = defineKernel({
  name: "adafactor_column_blocks",
  params: shape,
  buffers: { gradient: read("f32"), clip, column_sums: write("f32") },
  wgsl: /* wgsl */ `${LINEAR_INDEX}${ENTRY}
  let blocks = (params.rows + ${ROW_BLOCK - 1}) / ${ROW_BLOCK};
  let at = group * ${THREADS} + lane;
  let block = at / params.columns;
  if (block >= params.slot_count * blocks) { return; }
  let first = (block % blocks) * ${ROW_BLOCK};
  let start = (block / blocks * params.rows + first) * params.columns + at % params.columns;
  var sum = 0.0;
  for (var i = 0u; i < min(${ROW_BLOCK}, params.rows - first); i++) {
    let g = gradient[start + i * params.columns];
    sum += g * g;
  }
  column_sums[at] = sum;
}`,
});

const columnMoments = defineKernel({
  name: "adafactor_columns",
  params: moving,
  buffers: { column_sums: read("f32"), column: write("f32"), scalars, clip },
  wgsl: /* wgsl */ `${LINEAR_INDEX}${ENTRY}
  let at = group * ${THREADS} + lane;
  let slot = at / params.columns;
  if (slot >= params.slot_count) { return; }
  let blocks = (params.rows + ${ROW_BLOCK - 1}) / ${ROW_BLOCK};
  var sum = 0.0;
  for (var block = 0u; block < blocks; block++) {
    sum += column_sums[(slot * blocks + block) * params.columns + at % params.columns];
  }
  let scalar = scalars[params.scalar_offset + slot];
  let mean = sum * clip[1] * clip[1] / f32(params.rows) + params.epsilon;
  column[at] = scalar.y * column[at] + scalar.z * mean;
}`,
});

const rowMean = defineKernel({
  name: "adafactor_row_mean",
  params: { rows: "u32" },
  buffers: { row: read("f32"), clip, row_mean: write("f32") },
  wgsl: /* wgsl */ `${LINEAR_INDEX}${sumRange("row[i]")}${ENTRY}
  let sum = sum_range(lane, group * params.rows, (group + 1) * params.rows);
  if (lane == 0) { row_mean[group] = sum / f32(params.rows); }
}`,
});

/** WGSL: `unscaled(i)`, u of element i of the compact tensor; the order keeps every intermediate result finite. */
const FACTORED = /* wgsl */ `
fn unscaled(i: u32) -> f32 {
  let row_index = i / params.columns;
  let slot = row_index / params.rows;
  let across = inverseSqrt(column[slot * params.columns + i % params.columns]) * sqrt(row_mean[slot]);
  return gradient[i] * clip[1] * inverseSqrt(row[row_index]) * across;
}
`;
const UNFACTORED = /* wgsl */ `
fn unscaled(i: u32) -> f32 { return gradient[i] * clip[1] * inverseSqrt(v[i]); }
`;
const factors = { row: read("f32"), column: read("f32"), row_mean: read("f32") };

const SQUARES_MAIN = /* wgsl */ `${ENTRY}
  let size = params.rows * params.columns;
  let chunks = max(1, (size + ${CHUNK - 1}) / ${CHUNK});
  if (group >= params.slot_count * chunks) { return; }
  slot = group / chunks;
  let begin = (group % chunks) * ${CHUNK};
  let start = slot * size;
  let sum = sum_range(lane, start + begin, start + min(begin + ${CHUNK}, size));
  if (lane == 0) { partials[group] = sum; }
}`;

/** WGSL: index in `parameter` of element i of the compact tensor, which is in the workgroup's `slot`. */
const PLACE = /* wgsl */ `
var<private> slot: u32;
fn place(i: u32) -> u32 { return i + (slots[slot] - slot) * params.rows * params.columns; }
`;

// partials: [slot_count, chunks], Σ u² and Σ p².
const squares = { parameter: read("f32"), gradient: read("f32"), slots: read("u32"), clip, partials: write("vec2f") };

const factoredSquares = defineKernel({
  name: "adafactor_squares_factored",
  params: shape,
  buffers: { ...squares, ...factors },
  wgsl: /* wgsl */ `${LINEAR_INDEX}${PLACE}${FACTORED}
fn squares_at(i: u32) -> vec2f {
  let terms = vec2f(unscaled(i), parameter[place(i)]);
  return terms * terms;
}
${sumRange("squares_at(i)", "vec2f")}${SQUARES_MAIN}`,
});

/** Besides the squares: the moments, which nothing else needs before. */
const unfactoredSquares = defineKernel({
  name: "adafactor_squares",
  params: moving,
  buffers: { ...squares, v: write("f32"), scalars },
  wgsl: /* wgsl */ `${LINEAR_INDEX}${PLACE}${UNFACTORED}
fn squares_at(i: u32) -> vec2f {
  let scalar = scalars[params.scalar_offset + slot];
  let g = gradient[i] * clip[1];
  v[i] = scalar.y * v[i] + scalar.z * (g * g + params.epsilon);
  let terms = vec2f(unscaled(i), parameter[place(i)]);
  return terms * terms;
}
${sumRange("squares_at(i)", "vec2f")}${SQUARES_MAIN}`,
});

// steps: [slot_count], what u and what p is multiplied with.
const stepKernel = defineKernel({
  name: "adafactor_step",
  params: {
    slot_count: "u32",
    partial_count: "u32",
    size: "u32", // trainable elements
    scalar_offset: "u32",
    clip_threshold: "f32",
    min_parameter_scale: "f32",
  },
  buffers: { partials: read("vec2f"), scalars, clip, steps: write("vec2f") },
  wgsl: /* wgsl */ `${LINEAR_INDEX}${sumRange("partials[i]", "vec2f")}${ENTRY}
  let sum = sum_range(lane, 0, params.partial_count);
  if (lane > 0) { return; }
  let rms = sqrt(sum / f32(params.size));
  let scale = max(rms.y, params.min_parameter_scale) / max(1, rms.x / params.clip_threshold);
  for (var slot = 0u; slot < params.slot_count; slot++) {
    let scalar = scalars[params.scalar_offset + slot];
    steps[slot] = vec2f(scalar.x * scale, 1 - scalar.w);
  }
}`,
});

const UPDATE_MAIN = /* wgsl */ `${ENTRY}
  let at = group * ${THREADS} + lane;
  slot = at / (params.rows * params.columns);
  if (slot >= params.slot_count) { return; }
  let p = place(at);
  parameter[p] = parameter[p] * steps[slot].y - steps[slot].x * unscaled(at);
}`;
const updated = { parameter: write("f32"), gradient: read("f32"), slots: read("u32"), clip, steps: read("vec2f") };

const factoredUpdate = defineKernel({
  name: "adafactor_update_factored",
  params: shape,
  buffers: { ...updated, ...factors },
  wgsl: `${LINEAR_INDEX}${PLACE}${FACTORED}${UPDATE_MAIN}`,
});

const unfactoredUpdate = defineKernel({
  name: "adafactor_update",
  params: shape,
  buffers: { ...updated, v: read("f32") },
  wgsl: `${LINEAR_INDEX}${PLACE}${UNFACTORED}${UPDATE_MAIN}`,
});

export interface AdafactorDims {
  /** Trainable slices. */
  slotCount: number;
  /** Of a slice; what is no matrix has one row. */
  rows: number;
  columns: number;
  /** Row of `scalars` of the first slot; slot s has row scalarOffset + s. */
  scalarOffset: number;
  clipThreshold: number;
  epsilon: number;
  minParameterScale: number;
}

/** Elements of the scratch buffers of one call, f32 each. */
export function adafactorScratch({ slotCount, rows, columns }: { slotCount: number; rows: number; columns: number }) {
  return {
    partials: 2 * slotCount * Math.max(1, Math.ceil((rows * columns) / CHUNK)),
    steps: 2 * slotCount,
    rowMean: slotCount,
    columnSums: slotCount * Math.ceil(rows / ROW_BLOCK) * columns,
  };
}

type Common = "parameter" | "gradient" | "slots" | "scalars" | "clip" | "partials" | "steps";

/**
 * One step in place with a second moment for every element. parameter [slices, rows, columns], gradient, v [slotCount,
 * rows, columns] f32; slots [slotCount] u32; scalars [rows] vec4f = (learning rate, decay, 1 - decay, weight decay);
 * clip [3] f32 as `gradientNorm` writes it (nothing changes where that says that the gradient is not finite);
 * partials, steps: scratch, see {@link adafactorScratch}. Two slots must not name the same slice.
 */
export function adafactor<T>(buffers: Record<Common | "v", T>, dims: AdafactorDims): Command<T>[] {
  if (dims.slotCount * dims.rows * dims.columns === 0) return [];
  const { parameter, gradient, v, slots, scalars, clip, partials, steps } = buffers;
  const { shape, moving, groups, step } = plan(dims);
  return [
    call(
      unfactoredSquares,
      { ...shape, ...moving },
      { parameter, gradient, v, slots, scalars, clip, partials },
      groups.chunks,
    ),
    call(stepKernel, step, { partials, scalars, clip, steps }, [1]),
    call(unfactoredUpdate, shape, { parameter, gradient, v, slots, clip, steps }, groups.elements),
  ];
}

/**
 * One step in place with second moments of rows and columns: as {@link adafactor}, with row [slotCount, rows], column
 * [slotCount, columns] instead of v, and the scratch rowMean and columnSums besides.
 */
export function adafactorFactored<T>(
  buffers: Record<Common | "row" | "column" | "rowMean" | "columnSums", T>,
  dims: AdafactorDims,
): Command<T>[] {
  const { slotCount, rows, columns } = dims;
  if (slotCount * rows * columns === 0) return [];
  const { parameter, gradient, row, column, slots, scalars, clip, partials, steps } = buffers;
  const { rowMean: row_mean, columnSums: column_sums } = buffers;
  const { shape, moving, groups, step } = plan(dims);
  const u = { gradient, row, column, row_mean, slots, clip };
  const threads = (count: number) => spread(Math.ceil(count / THREADS));
  const { columnSums } = adafactorScratch(dims);
  return [
    call(rowMoments, { ...shape, ...moving }, { gradient, row, scalars, clip }, spread(slotCount * rows)),
    call(columnBlocks, shape, { gradient, clip, column_sums }, threads(columnSums)),
    call(columnMoments, { ...shape, ...moving }, { column_sums, column, scalars, clip }, threads(slotCount * columns)),
    call(rowMean, { rows }, { row, clip, row_mean }, [slotCount]),
    call(factoredSquares, shape, { parameter, ...u, partials }, groups.chunks),
    call(stepKernel, step, { partials, scalars, clip, steps }, [1]),
    call(factoredUpdate, shape, { parameter, ...u, steps }, groups.elements),
  ];
}

/** Parameters and workgroups that the calls share. */
function plan(dims: AdafactorDims) {
  const { slotCount, rows, columns, scalarOffset, clipThreshold, epsilon, minParameterScale } = dims;
  const size = slotCount * rows * columns;
  const chunks = adafactorScratch(dims).partials / 2;
  return {
    shape: { slot_count: slotCount, rows, columns },
    moving: { scalar_offset: scalarOffset, epsilon },
    step: {
      slot_count: slotCount,
      partial_count: chunks,
      size,
      scalar_offset: scalarOffset,
      clip_threshold: clipThreshold,
      min_parameter_scale: minParameterScale,
    },
    groups: { chunks: spread(chunks), elements: spread(Math.ceil(size / THREADS)) },
  };
}
