// Dynamic loss scaling (Micikevicius et al. 2018, arXiv 1710.03740, section 3.2; the constants of torch.amp.GradScaler):
// with products in f16, the gradient of the loss is multiplied by a scale that keeps small gradients from vanishing. A step
// whose gradient is not finite changes no parameter and halves the scale; so many good ones in a row double it. The scale
// lives on the device, so the next step, which may be submitted before this one's results are back, already has it.

import { type Command, call, defineKernel, read, write } from "./kernel.ts";
import { STEP_SCALARS } from "./step_scalars.ts";

export const FIRST_LOSS_SCALE = 65536;
const GROWTH_INTERVAL = 2000;
const LARGEST = 2 ** 24;

/** f32 elements of the state: the scale, good steps since it last changed, the scale of the step before. */
export const LOSS_SCALE_STATE = 3;

const useKernel = defineKernel({
  name: "loss_scale_use",
  params: {},
  buffers: { state: read("f32"), step: { access: "read_write", type: "StepScalars" } },
  wgsl: /* wgsl */ `${STEP_SCALARS}
@compute @workgroup_size(1)
fn main() { step.loss_scale = state[0]; }
`,
});

const updateKernel = defineKernel({
  name: "loss_scale_update",
  params: { growth_interval: "f32", largest: "f32" },
  buffers: { norm: read("f32"), state: write("f32") },
  wgsl: /* wgsl */ `
@compute @workgroup_size(1)
fn main() {
  let used = state[0];
  var good = state[1] + 1.0;
  var scale = used;
  if (norm[2] == 0.0) {
    scale = max(used * 0.5, 1.0);
    good = 0.0;
  } else if (good >= params.growth_interval) {
    scale = min(used * 2.0, params.largest);
    good = 0.0;
  }
  state[0] = scale;
  state[1] = good;
  state[2] = used;
}
`,
});

/** Puts the scale of state [3] f32 into the step scalars. */
export const useLossScale = <T>(buffers: { state: T; step: T }): Command<T>[] => [call(useKernel, {}, buffers, [1])];

/** state [3] f32 after a step of which `gradientNorm` wrote norm [3] f32. */
export const updateLossScale = <T>(buffers: { norm: T; state: T }): Command<T>[] => [
  call(updateKernel, { growth_interval: GROWTH_INTERVAL, largest: LARGEST }, buffers, [1]),
];

/** Definition of {@link updateLossScale}. */
export function updateLossScaleReference([scale, good]: readonly number[], finite: boolean): [number, number, number] {
  if (!finite) return [Math.max(scale / 2, 1), 0, scale];
  if (good + 1 >= GROWTH_INTERVAL) return [Math.min(scale * 2, LARGEST), 0, scale];
  return [scale, good + 1, scale];
}
