// Stochastic gradient descent with optional momentum and decoupled weight decay:
//
//   g = gradient · clip            p ← p · (1 - lr · weight_decay)
//   m ← momentum · m + g           p ← p - lr · m          (without momentum: p ← p - lr · g, and there is no m)
//
// That is optax.sgd(lr, momentum) and torch.optim.SGD without dampening, but for the decay: torch adds it to the
// gradient, here it is AdamW's. Slices are those of slices.ts.

import { type Command, call, defineKernel, read, spread, write } from "./kernel.ts";
import { SLICE_PARAMS, type SliceTable, sliceParams, updateEachValue } from "./slices.ts";

type Value = SliceTable["value"];

const update = (value: Value, step: string) =>
  updateEachValue(/* wgsl */ `
    let g: ${value} = gradient[at] * clip[1];
    ${step}
    parameter[p] = parameter[p] * (1 - scalar.x * scalar.y) - scalar.x * step;`);

const buffers = (value: Value) => ({
  parameter: write(value),
  gradient: read(value),
  slices: read("Slice"),
  scalars: read("vec4f"), // learning rate, weight decay
  clip: read("f32"), //      [3]: norm, factor, whether it is finite
});

const plainKernel = (value: Value) =>
  defineKernel({
    name: `sgd_${value}`,
    params: SLICE_PARAMS,
    buffers: buffers(value),
    wgsl: update(value, "let step = g;"),
  });

const momentumKernel = (value: Value) =>
  defineKernel({
    name: `sgd_momentum_${value}`,
    params: { ...SLICE_PARAMS, momentum: "f32" },
    buffers: { ...buffers(value), m: write(value) }, // m as the gradient
    wgsl: update(
      value,
      `let step = params.momentum * m[at] + g;
    m[at] = step;`,
    ),
  });

const plain = { vec4f: plainKernel("vec4f"), f32: plainKernel("f32") };
const withMomentum = { vec4f: momentumKernel("vec4f"), f32: momentumKernel("f32") };

/**
 * One step in place of the slices of `table`, whose words are in the buffer `slices`. parameter, gradient, m f32; scalars
 * [rows] vec4f = (learning rate, weight decay, unused, unused); clip [3] f32 as `gradientNorm` writes it; nothing changes
 * where that says that the gradient is not finite. `momentum` in [0, 1) is used where there is an `m`; without it there
 * is no momentum. Slices must not overlap.
 */
export function sgd<T>(
  { m, ...rest }: Record<"parameter" | "gradient" | "slices" | "scalars" | "clip", T> & { m?: T },
  table: SliceTable,
  { momentum }: { momentum: number },
): Command<T>[] {
  const params = sliceParams(table);
  const workgroups = spread(table.blockCount);
  if (m === undefined) return [call(plain[table.value], params, rest, workgroups)];
  return [call(withMomentum[table.value], { ...params, momentum }, { ...rest, m }, workgroups)];
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
