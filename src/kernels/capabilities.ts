// What an adapter offers, as plain data: kernels choose their variant from it, and GetSystem reports it.

export interface MatrixShape {
  readonly m: number;
  readonly n: number;
  readonly k: number;
  readonly component: string;
  readonly result: string;
}

export interface Capabilities {
  /** Which WebGPU implementation: Dawn from npm, or the one built into Deno. */
  readonly implementation: "dawn" | "deno";
  readonly vendor: string;
  readonly architecture: string;
  readonly description: string;
  /** A CPU adapter (SwiftShader): correct, slow, for tests and for machines without a GPU. */
  readonly software: boolean;
  readonly f16: boolean;
  readonly subgroups: boolean;
  readonly subgroupMinSize: number;
  readonly subgroupMaxSize: number;
  readonly matrixShapes: readonly MatrixShape[];
  readonly timestampQuery: boolean;
  readonly limits: {
    readonly maxBufferSize: number;
    readonly maxStorageBufferBindingSize: number;
    readonly maxStorageBuffersPerShaderStage: number;
    readonly maxComputeWorkgroupStorageSize: number;
    readonly maxComputeInvocationsPerWorkgroup: number;
    readonly maxComputeWorkgroupsPerDimension: number;
    readonly minUniformBufferOffsetAlignment: number;
  };
}

/**
 * The two ways a kernel family is written. `software`: register tiles that read storage directly, no barriers (a
 * barrier costs a CPU adapter more than the reuse saves). `hardware`: tiles staged in workgroup memory.
 */
export type KernelTarget = "software" | "hardware";

export const kernelTarget = (c: Capabilities): KernelTarget => (c.software ? "software" : "hardware");

/**
 * What a matrix product does with its operands. `f32`: takes them as they are. `f16`: rounds to f16 those that are stored
 * as f32, and sums in f32, on any adapter. `matrix`: the same on the adapter's matrix units.
 */
export type Products = "f32" | "f16" | "matrix";

/** What a workgroup of the kernels for matrix units holds at most: attention's, with heads of 128. */
const MATRIX_WORKGROUP_BYTES = 48 * 1024;

/** The fastest products of mixed precision that an adapter has. */
export const mixedProducts = (capabilities: Capabilities): Products => {
  const { f16, subgroupMinSize, subgroupMaxSize, matrixShapes, limits } = capabilities;
  const offered = matrixShapes.some(
    ({ m, n, k, component, result }) => m === 16 && n === 16 && k === 16 && component === "f16" && result === "f32",
  );
  const fits = subgroupMinSize === 32 && subgroupMaxSize === 32;
  const holds = limits.maxComputeWorkgroupStorageSize >= MATRIX_WORKGROUP_BYTES;
  return f16 && offered && fits && holds ? "matrix" : "f16";
};
