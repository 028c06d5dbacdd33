// The multiplicative bias of an expert's hidden layer (ST-MoE, arXiv 2202.08906, section 3.2): every sorted row is
// multiplied by the vector of the expert whose block it lies in. The rows are those of the grouped matmuls: padded to
// whole blocks, one expert to a block.

import type { GroupedRows } from "./grouped_matmul.ts";
import { type Command, call, defineKernel, type Kernel, LINEAR_INDEX, read, spread } from "./kernel.ts";
import { floats, type Halves, kernelFor, type Value, valuesOf } from "./storage.ts";

const THREADS = 64;

// Widths count values, vec4f where the width allows.
const MAIN = /* wgsl */ `${LINEAR_INDEX}
@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lid: u32) {
  let at = linear_index(wid, num) * ${THREADS} + lid;
`;

const scaleKernel = (value: Value, halves: Halves): Kernel =>
  kernelFor(`expert_scale_${value}`, halves, (name) => {
    const { buffers, functions } = floats(value, { x: "read", scale: "read", out: "write" }, halves);
    return defineKernel<string, string>({
      name,
      params: { max_rows: "u32", row_tile: "u32", width: "u32", experts: "u32" },
      buffers: { ...buffers, expertOfBlock: read("u32") },
      wgsl: /* wgsl */ `${functions}${MAIN}
  if (at >= params.max_rows * params.width) { return; }
  let expert = expertOfBlock[at / params.width / params.row_tile];
  var value = ${value}(); // an unused block
  if (expert < params.experts) { value = load_x(at) * load_scale(expert * params.width + at % params.width); }
  store_out(at, value);
}`,
    });
  });

/**
 * out[r, c] = x[r, c] · scale[e, c] for every row r of a block with expert e, 0 in unused blocks; x, out
 * [maxRows, width], scale [experts, width], expertOfBlock [maxRows / rowTile] u32 (`experts` or more = unused).
 * The gradient of x is the same map of dOut.
 */
export function expertScale<T>(
  buffers: Record<"x" | "scale" | "expertOfBlock" | "out", T>,
  dims: { maxRows: number; rowTile: number; width: number; experts: number; halves?: Halves },
): Command<T>[] {
  const { maxRows, rowTile, experts, halves = [] } = dims;
  const [value, width] = valuesOf(dims.width);
  const params = { max_rows: maxRows, row_tile: rowTile, width, experts };
  return [call(scaleKernel(value, halves), params, buffers, spread(Math.ceil((maxRows * width) / THREADS)))];
}

const gradientKernel = (value: Value, halves: Halves): Kernel =>
  kernelFor(`expert_scale_gradient_${value}`, halves, (name) => {
    // x, dOut [max_rows, width], out [slots, width]
    const { buffers, functions } = floats(value, { x: "read", dOut: "read", out: "write" }, halves);
    const rows = { expertOffset: read("u32"), expertCount: read("u32"), trainableExperts: read("u32") };
    return defineKernel<string, string>({
      name,
      params: { slots: "u32", width: "u32" },
      buffers: { ...buffers, ...rows },
      wgsl: /* wgsl */ `${functions}${MAIN}
  if (at >= params.slots * params.width) { return; }
  let expert = trainableExperts[at / params.width];
  let begin = expertOffset[expert];
  let end = begin + expertCount[expert];
  var sum = ${value}();
  for (var row = begin; row < end; row++) {
    let i = row * params.width + at % params.width;
    sum += load_dOut(i) * load_x(i);
  }
  store_out(at, sum);
}`,
    });
  });

/**
 * out[s, c] = Σ of dOut[r, c] · x[r, c] over the real rows r of expert trainableExperts[s], in order; exactly 0 for an
 * expert without rows. x, dOut [maxRows, width], out f32; expertOffset [experts + 1], expertCount [experts],
 * trainableExperts [slots] u32.
 */
export function expertScaleGradient<T>(
  buffers: Record<"x" | "dOut" | "expertOffset" | "expertCount" | "trainableExperts" | "out", T>,
  { slots, width, halves = [] }: { slots: number; width: number; halves?: Halves },
): Command<T>[] {
  if (slots === 0) return [];
  const [value, values] = valuesOf(width);
  const groups = spread(Math.ceil((slots * values) / THREADS));
  return [call(gradientKernel(value, halves), { slots, width: values }, buffers, groups)];
}

/** The gradient of the bias in float64: [trainableExperts, width]. */
export function expertScaleGradientReference(
  x: ArrayLike<number>,
  dOut: ArrayLike<number>,
  { expertOffset, expertCount }: Pick<GroupedRows, "expertOffset" | "expertCount">,
  trainableExperts: ArrayLike<number>,
  width: number,
): Float64Array {
  const out = new Float64Array(trainableExperts.length * width);
  for (let s = 0; s < trainableExperts.length; s++) {
    const e = trainableExperts[s];
    for (let r = expertOffset[e]; r < expertOffset[e] + expertCount[e]; r++)
      for (let c = 0; c < width; c++) out[s * width + c] += dOut[r * width + c] * x[r * width + c];
  }
  return out;
}
