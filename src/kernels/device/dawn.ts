// Dawn, Chromium's WebGPU, from the npm package `webgpu`; under Node and Deno alike.

/**
 * Dawn crashes the process (segmentation fault or abort, typically in the next pipeline compile) when the object
 * returned by `create` is collected, so this reference is never let go.
 */
let dawn: GPU | undefined;

const ARGUMENTS = [
  // Subgroup matrices are behind allow_unsafe_apis; f16 on NVIDIA is off by default under Vulkan.
  // Our kernels write workgroup memory before they read it; having Dawn zero it first makes pipelines compile ten times
  // slower on SwiftShader. Our kernels also stay inside their buffers, whatever a client sends; checks of every access again
  // cost products on matrix units a fifth of their speed.
  "enable-dawn-features=allow_unsafe_apis,vulkan_enable_f16_on_nvidia,disable_workgroup_init,disable_robustness",
  // Quantized timestamps are a browser's defence against timing attacks; profiles need nanoseconds.
  "disable-dawn-features=timestamp_quantization",
];

/** Dawn's `navigator.gpu`, one per process. */
export async function dawnGpu(): Promise<GPU> {
  const { create } = await import("webgpu");
  dawn ??= create(ARGUMENTS);
  return dawn;
}
