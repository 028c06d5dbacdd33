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
