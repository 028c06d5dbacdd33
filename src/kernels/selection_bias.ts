// Balancing without a loss (Wang et al. 2024, arXiv 2408.15664): a router chooses by score + bias of the expert, weighs by
// the score alone, and after each optimizer step an expert's bias moves by a fixed amount towards the mean load:
//   b_e += u · sign(mean_load − load_e)
// The load is counted over every batch of the step, before drops. Both sums are whole numbers, so the sign is exact.

import { type Command, call, defineKernel, read, spread, write } from "./kernel.ts";

const WORKGROUP = 64;

const countKernel = defineKernel({
  name: "selection_bias_count",
  params: { experts: "u32" },
  buffers: { demand: read("u32"), load: write("u32") },
  wgsl: /* wgsl */ `
@compute @workgroup_size(${WORKGROUP})
fn main(@builtin(global_invocation_id) id: vec3u) {
  if (id.x < params.experts) { load[id.x] += demand[id.x]; }
}
`,
});

/** load [experts] u32 += demand [experts] u32, a batch's assignments to each expert. */
export function countSelectionLoad<T>(buffers: { demand: T; load: T }, { experts }: { experts: number }): Command<T>[] {
  return [call(countKernel, { experts }, buffers, spread(Math.ceil(experts / WORKGROUP)))];
}

const updateKernel = defineKernel({
  name: "selection_bias_update",
  params: { experts: "u32", rate: "f32" },
  buffers: {
    norm: read("f32"), //  [3]: the last is 0 where the step's gradient is not finite
    load: write("u32"), // [experts]
    bias: write("f32"), // [experts]
  },
  wgsl: /* wgsl */ `
const WORKGROUP = ${WORKGROUP}u;
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32) {
  var total = 0u;
  for (var e = 0u; e < params.experts; e++) { total += load[e]; }
  storageBarrier(); // every lane has read every load before one is set to 0
  let rate = select(0.0, params.rate, norm[2] != 0.0);
  let mean = total / params.experts; // rounded down
  let rest = total % params.experts;
  for (var e = lane; e < params.experts; e += WORKGROUP) {
    let below = load[e] < mean || (load[e] == mean && rest > 0u);
    if (below) {
      bias[e] += rate;
    } else if (load[e] > mean) {
      bias[e] -= rate;
    }
    load[e] = 0u;
  }
}
`,
});

/**
 * Moves bias [experts] f32 by `rate` towards the mean of load [experts] u32, which is then 0; norm [3] f32 as
 * `gradientNorm` writes it: a step that changes no parameter changes no bias.
 */
export function updateSelectionBias<T>(
  buffers: { norm: T; load: T; bias: T },
  dims: { experts: number; rate: number },
): Command<T>[] {
  return [call(updateKernel, dims, buffers, [1])];
}

/** Definition of {@link updateSelectionBias} for a finite gradient, in f32 as the device adds. */
export function updateSelectionBiasReference(
  bias: Float32Array,
  load: ArrayLike<number>,
  rate: number,
): Float32Array<ArrayBuffer> {
  const mean = Array.from(load).reduce((sum, n) => sum + n, 0) / load.length;
  return Float32Array.from(bias, (b, e) => Math.fround(b + Math.fround(rate) * Math.sign(mean - load[e])));
}
