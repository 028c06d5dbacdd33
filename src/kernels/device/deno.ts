// The WebGPU built into Deno (wgpu): the same interface as Dawn, another implementation to be correct on.

/** Deno's own `navigator.gpu`, or undefined in a runtime without one. */
export const denoGpu = (): GPU | undefined =>
  "Deno" in globalThis ? (globalThis.navigator as { gpu?: GPU } | undefined)?.gpu : undefined;
