// AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), the update of torch.optim.AdamW and optax.adamw:
//
//   g = gradient · clip            p ← p · (1 - lr · weight_decay)
//   m ← β1 m + (1 - β1) g          p ← p - lr · m / (1 - β1^t) / (sqrt(v / (1 - β2^t)) + epsilon)
//   v ← β2 v + (1 - β2) g²
//
// Slices (slices.ts) of large arrays are updated in one dispatch, each with its own scalars (an expert thawed later has
// its own t). What no slice covers keeps its bits: it is never touched, so not even decayed.

import { type Command, call, defineKernel, read, spread, write } from "./kernel.ts";
import { SLICE_PARAMS, type SliceTable, sliceParams, updateEachValue } from "./slices.ts";

const kernelOver = (value: SliceTable["value"], copied: boolean) =>
  defineKernel<string, string>({
    name: `adamw_${value}${copied ? "_copied" : ""}`,
    params: {
      ...SLICE_PARAMS,
      beta1: "f32",
      beta2: "f32",
      // Passed, not computed: 1 - 0.999 in f32 is off by 5e-5 of itself.
      one_minus_beta1: "f32",
      one_minus_beta2: "f32",
      epsilon: "f32",
    },
    buffers: {
      parameter: write(value),
      gradient: read(value),
      m: write(value), // as the gradient
      v: write(value), // as the gradient
      slices: read("Slice"),
      scalars: read("vec4f"), // learning rate, 1 / (1 - β1^t), 1 / (1 - β2^t), weight decay
      clip: read("f32"), //      [3]: norm, factor, whether it is finite
      ...(copied && { copy: write("vec2u") }), // f16, laid out as parameter
    },
    wgsl: updateEachValue(/* wgsl */ `
    let g = gradient[at] * clip[1];
    let new_m = params.beta1 * m[at] + params.one_minus_beta1 * g;
    let new_v = params.beta2 * v[at] + params.one_minus_beta2 * g * g;
    m[at] = new_m;
    v[at] = new_v;
    let decayed = parameter[p] * (1 - scalar.x * scalar.w);
    let updated = decayed - scalar.x * (new_m * scalar.y) / (sqrt(new_v * scalar.z) + params.epsilon);
    parameter[p] = updated;
    ${copied ? "copy[p] = vec2u(pack2x16float(updated.xy), pack2x16float(updated.zw));" : ""}`),
  });

const plain = { vec4f: kernelOver("vec4f", false), f32: kernelOver("f32", false) };
const copying = kernelOver("vec4f", true);

export interface AdamWSettings {
  beta1: number;
  beta2: number;
  epsilon: number;
}

/**
 * One step in place of the slices of `table`, whose words are in the buffer `slices`. parameter, gradient, m, v f32; scalars
 * [rows] vec4f = (learning rate, 1/(1-β1^t), 1/(1-β2^t), weight decay); clip [3] f32 as `gradientNorm` writes it; nothing
 * changes where that says that the gradient is not finite. Slices must not overlap. A `copy` of the parameters in f16, where
 * there is one, is updated with them.
 * @throws TypeError for a copy of slices that are not whole vec4f
 */
export function adamw<T>(
  { copy, ...rest }: Record<"parameter" | "gradient" | "m" | "v" | "slices" | "scalars" | "clip", T> & { copy?: T },
  table: SliceTable,
  { beta1, beta2, epsilon }: AdamWSettings,
): Command<T>[] {
  const params = {
    ...sliceParams(table),
    beta1,
    beta2,
    one_minus_beta1: 1 - beta1,
    one_minus_beta2: 1 - beta2,
    epsilon,
  };
  const workgroups = spread(table.blockCount);
  if (copy === undefined) return [call(plain[table.value], params, rest, workgroups)];
  if (table.value !== "vec4f") throw new TypeError("adamw: a copy in f16 is of slices that are whole vec4f");
  return [call(copying, params, { ...rest, copy }, workgroups)];
}

/** What an element's update depends on besides its gradient. */
export interface AdamWScalars extends AdamWSettings {
  learningRate: number;
  /** Steps taken including this one. */
  t: number;
  weightDecay: number;
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
