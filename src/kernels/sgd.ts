// Stochastic gradient descent with optional momentum and decoupled weight decay:
//
//   g = gradient · clip            p ← p · (1 - lr · weight_decay)
//   m ← momentum · m + g           p ← p - lr · m          (without momentum: p ← p - lr · g, and there is no m)
//
// That is optax.sgd(lr, momentum) and torch.optim.SGD without dampening, but for the decay: torch adds it to the
// gradient, here it is AdamW's. Slices and slots are those of adamw.ts.

import type { KernelTarget } from "./capabilities.ts";
import { type Command, call, defineKernel, LINEAR_INDEX, read, spread, write } from "./kernel.ts";

const THREADS = 64;

const main = (value: "vec4f" | "f32", update: string) => /* wgsl */ `${LINEAR_INDEX}
@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lid: u32) {
  let at = linear_index(wid, num) * ${THREADS} + lid;
  let slot = at / params.slice_size;
  if (slot >= params.slot_count || clip[2] == 0) { return; }
  let scalar = scalars[params.scalar_offset + slot];
  let g: ${value} = gradient[at] * clip[1];
  ${update}
  let p = slots[slot] * params.slice_size + at % params.slice_size;
  parameter[p] = parameter[p] * (1 - scalar.x * scalar.y) - scalar.x * step;
}`;

const params = { slot_count: "u32", slice_size: "u32", scalar_offset: "u32" } as const;

/** `slice_size` counts values: vec4f or f32. */
const buffers = (value: "vec4f" | "f32") => ({
  parameter: write(value), // [slices, slice_size]
  gradient: read(value), //   [slot_count, slice_size]
  slots: read("u32"), //      [slot_count]
  scalars: read("vec4f"), //  learning rate, weight decay
  clip: read("f32"), //       [3]: norm, factor, whether it is finite
});

const plainKernel = (value: "vec4f" | "f32") =>
  defineKernel({ name: `sgd_${value}`, params, buffers: buffers(value), wgsl: main(value, "let step = g;") });

const momentumKernel = (value: "vec4f" | "f32") =>
  defineKernel({
    name: `sgd_momentum_${value}`,
    params: { ...params, momentum: "f32" },
    buffers: { ...buffers(value), m: write(value) }, // m: [slot_count, slice_size]
    wgsl: main(
      value,
      `let step = params.momentum * m[at] + g;
  m[at] = step;`,
    ),
  });

const plain = { vec4f: plainKernel("vec4f"), f32: plainKernel("f32") };
const withMomentum = { vec4f: momentumKernel("vec4f"), f32: momentumKernel("f32") };

export interface SgdDims {
  /** Trainable slices. */
  slotCount: number;
  /** Elements of a slice. */
  sliceSize: number;
  /** Row of `scalars` of the first slot; slot s has row scalarOffset + s. */
  scalarOffset: number;
  /** In [0, 1); used where there is an `m`. */
  momentum: number;
}

/**
 * One step in place. parameter [slices, sliceSize], gradient, m [slotCount, sliceSize] f32; slots [slotCount] u32;
 * scalars [rows] vec4f = (learning rate, weight decay, unused, unused); clip [3] f32 as `gradientNorm` writes it;
 * nothing changes where that says that the gradient is not finite. Without `m` there is no momentum.
 * Two slots must not name the same slice.
 */
export function sgd<T>(
  { m, ...rest }: Record<"parameter" | "gradient" | "slots" | "scalars" | "clip", T> & { m?: T },
  { slotCount, sliceSize, scalarOffset, momentum }: SgdDims,
  target: KernelTarget,
): Command<T>[] {
  if (slotCount * sliceSize === 0) return [];
  // As in adamw.ts: on a CPU four elements share the index arithmetic.
  const vector = target === "software" && sliceSize % 4 === 0;
  const values = vector ? sliceSize / 4 : sliceSize;
  const dims = { slot_count: slotCount, slice_size: values, scalar_offset: scalarOffset };
  const workgroups = spread(Math.ceil((slotCount * values) / THREADS));
  const variant = vector ? "vec4f" : "f32";
  if (m === undefined) return [call(plain[variant], dims, rest, workgroups)];
  return [call(withMomentum[variant], { ...dims, momentum }, { ...rest, m }, workgroups)];
}

/** One step of one slice in float64, in place; `gradient` is already clipped; without `m` there is no momentum. */
export function sgdReference(
  parameter: Float64Array,
  gradient: ArrayLike<number>,
  m: Float64Array | undefined,
  { learningRate, weightDecay, momentum }: { learningRate: number; weightDecay: number; momentum: number },
): void {
  for (let i = 0; i < parameter.length; i++) {
    if (m) m[i] = momentum * m[i] + gradient[i];
    parameter[i] = parameter[i] * (1 - learningRate * weightDecay) - learningRate * (m ? m[i] : gradient[i]);
  }
}
