// The few numbers that change from step to step. Everything else in a recorded program is constant, so a step uploads
// these 32 bytes and its batch, and re-encodes the same commands.

/** WGSL declaration; a kernel that needs it declares a buffer `step: { access: "read", type: "StepScalars" }`. */
export const STEP_SCALARS = /* wgsl */ `
struct StepScalars {
  step: u32,                 // optimizer steps completed before this one
  seed: u32,                 // seed of the run
  loss_scale: f32,           // multiplies the gradient of the loss (1 in f32)
  inverse_target_count: f32, // 1 / number of target tokens that count in the loss
  max_gradient_norm: f32,    // global-norm clip; 0 = off
  reserved_0: f32,
  reserved_1: f32,
  reserved_2: f32,
}
`;

export const STEP_SCALARS_BYTES = 32;

export interface StepScalars {
  step: number;
  seed: number;
  lossScale: number;
  inverseTargetCount: number;
  maxGradientNorm: number;
}

/** The struct as bytes. */
export function packStepScalars(s: StepScalars): Uint8Array<ArrayBuffer> {
  const view = new DataView(new ArrayBuffer(STEP_SCALARS_BYTES));
  view.setUint32(0, s.step, true);
  view.setUint32(4, s.seed >>> 0, true);
  view.setFloat32(8, s.lossScale, true);
  view.setFloat32(12, s.inverseTargetCount, true);
  view.setFloat32(16, s.maxGradientNorm, true);
  return new Uint8Array(view.buffer);
}
