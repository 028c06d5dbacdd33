// AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), the update of torch.optim.AdamW and optax.adamw:
//
//   g = gradient · clip            p ← p · (1 - lr · weight_decay)
//   m ← β1 m + (1 - β1) g          p ← p - lr · m / (1 - β1^t) / (sqrt(v / (1 - β2^t)) + epsilon)
//   v ← β2 v + (1 - β2) g²
//
// A parameter is a stack of slices (experts; one slice for anything else) of which `slots` lists the trainable ones.
// Gradient, m and v are compact over the slots, each slot has its own scalars (an expert thawed later has its own t),
// and a slice that no slot names keeps its bits: it is never touched, so not even decayed.

import type { KernelTarget } from "./capabilities.ts";
import { type Command, call, defineKernel, LINEAR_INDEX, read, spread, write } from "./kernel.ts";

const THREADS = 64;

/** `slice_size` counts values: vec4f or f32. */
const kernelOver = (value: "vec4f" | "f32") =>
  defineKernel({
    name: `adamw_${value}`,
    params: {
      slot_count: "u32",
      slice_size: "u32",
      scalar_offset: "u32",
      beta1: "f32",
      beta2: "f32",
      // Passed, not computed: 1 - 0.999 in f32 is off by 5e-5 of itself.
      one_minus_beta1: "f32",
      one_minus_beta2: "f32",
      epsilon: "f32",
    },
    buffers: {
      parameter: write(value), // [slices, slice_size]
      gradient: read(value), //   [slot_count, slice_size]
      m: write(value), //         [slot_count, slice_size]
      v: write(value), //         [slot_count, slice_size]
      slots: read("u32"), //      [slot_count]
      scalars: read("vec4f"), //  learning rate, 1 / (1 - β1^t), 1 / (1 - β2^t), weight decay
      clip: read("f32"), //       [3]: norm, factor, whether it is finite
    },
    wgsl: /* wgsl */ `${LINEAR_INDEX}
@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lid: u32) {
  let at = linear_index(wid, num) * ${THREADS} + lid;
  let slot = at / params.slice_size;
  if (slot >= params.slot_count || clip[2] == 0) { return; }
  let scalar = scalars[params.scalar_offset + slot];
  let g = gradient[at] * clip[1];
  let new_m = params.beta1 * m[at] + params.one_minus_beta1 * g;
  let new_v = params.beta2 * v[at] + params.one_minus_beta2 * g * g;
  m[at] = new_m;
  v[at] = new_v;
  let p = slots[slot] * params.slice_size + at % params.slice_size;
  let decayed = parameter[p] * (1 - scalar.x * scalar.w);
  parameter[p] = decayed - scalar.x * (new_m * scalar.y) / (sqrt(new_v * scalar.z) + params.epsilon);
}`,
  });

const vectorKernel = kernelOver("vec4f");
const scalarKernel = kernelOver("f32");

export interface AdamWDims {
  /** Trainable slices. */
  slotCount: number;
  /** Elements of a slice. */
  sliceSize: number;
  /** Row of `scalars` of the first slot; slot s has row scalarOffset + s. */
  scalarOffset: number;
  beta1: number;
  beta2: number;
  epsilon: number;
}

/**
 * One step in place. parameter [slices, sliceSize], gradient, m, v [slotCount, sliceSize] f32; slots [slotCount] u32;
 * scalars [rows] vec4f = (learning rate, 1/(1-β1^t), 1/(1-β2^t), weight decay); clip [3] f32 as `gradientNorm` writes it; nothing
 * changes where that says that the gradient is not finite.
 * Two slots must not name the same slice.
 */
export function adamw<T>(
  buffers: Record<"parameter" | "gradient" | "m" | "v" | "slots" | "scalars" | "clip", T>,
  { slotCount, sliceSize, scalarOffset, beta1, beta2, epsilon }: AdamWDims,
  target: KernelTarget,
): Command<T>[] {
  if (slotCount * sliceSize === 0) return [];
  // Four elements per thread share the index arithmetic, which is what costs on a CPU; a GPU is short of threads.
  const vector = target === "software" && sliceSize % 4 === 0;
  const values = vector ? sliceSize / 4 : sliceSize;
  const params = {
    slot_count: slotCount,
    slice_size: values,
    scalar_offset: scalarOffset,
    beta1,
    beta2,
    one_minus_beta1: 1 - beta1,
    one_minus_beta2: 1 - beta2,
    epsilon,
  };
  const workgroups = spread(Math.ceil((slotCount * values) / THREADS));
  return [call(vector ? vectorKernel : scalarKernel, params, buffers, workgroups)];
}

/** What an element's update depends on besides its gradient. */
export interface AdamWScalars {
  learningRate: number;
  /** Steps taken including this one. */
  t: number;
  weightDecay: number;
  beta1: number;
  beta2: number;
  epsilon: number;
}

/** One step of one slice in float64, in place; `gradient` is already clipped. */
export function adamwReference(
  parameter: Float64Array,
  gradient: ArrayLike<number>,
  m: Float64Array,
  v: Float64Array,
  { learningRate, t, weightDecay, beta1, beta2, epsilon }: AdamWScalars,
): void {
  for (let i = 0; i < parameter.length; i++) {
    m[i] = beta1 * m[i] + (1 - beta1) * gradient[i];
    v[i] = beta2 * v[i] + (1 - beta2) * gradient[i] ** 2;
    const mHat = m[i] / (1 - beta1 ** t);
    const vHat = v[i] / (1 - beta2 ** t);
    parameter[i] *= 1 - learningRate * weightDecay;
    parameter[i] -= (learningRate * mHat) / (Math.sqrt(vHat) + epsilon);
  }
}
