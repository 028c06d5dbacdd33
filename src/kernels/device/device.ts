// A device: buffers that are counted, pipelines that are cached, and errors that arrive as exceptions with a name.
//
// WebGPU reports most faults out of band; here every one of them surfaces. Creating a buffer or a pipeline waits for
// its error scope. A fault found later, when commands are submitted, is kept and thrown by the next `read`, which is
// where its wrong numbers would have been seen.

import { failpoint } from "../../failpoints.ts";
import { type Capabilities, type KernelTarget, kernelTarget } from "../capabilities.ts";
import { boundAccess, type Kernel } from "../kernel.ts";
import { DeviceLostError, KernelError, OutOfMemoryError } from "./errors.ts";

/** The values of `GPUBufferUsage`, which Dawn does not make global. */
export const BUFFER_USAGE = {
  MAP_READ: 0x1,
  COPY_SRC: 0x4,
  COPY_DST: 0x8,
  UNIFORM: 0x40,
  STORAGE: 0x80,
  QUERY_RESOLVE: 0x200,
} as const;

const MAP_MODE_READ = 1;
const COMPUTE_STAGE = 4;
const STORAGE = BUFFER_USAGE.STORAGE | BUFFER_USAGE.COPY_SRC | BUFFER_USAGE.COPY_DST;

export interface Device {
  readonly gpu: GPUDevice;
  readonly capabilities: Capabilities;
  readonly target: KernelTarget;
  /**
   * A buffer of at least `bytes` (rounded up to 4, never below 16, so that an empty tensor can be bound), zero-filled,
   * by default a storage buffer that can be copied from and to. Calls may run in parallel.
   * @throws OutOfMemoryError when it does not fit.
   */
  createBuffer(wanted: { label: string; bytes: number; usage?: number }): Promise<GPUBuffer>;
  /** Frees a buffer of {@link createBuffer}; a second call does nothing. */
  destroyBuffer(buffer: GPUBuffer): void;
  /** Bytes of all live buffers of {@link createBuffer}. */
  readonly allocatedBytes: number;
  /** Grows with every buffer made, kernel compiled and result read: as long as it does, the device gets on. */
  readonly activity: number;
  /** Queues a copy of `data` into `buffer` at byte `offset`, a multiple of 4. A tail that fills no word is zero-padded. */
  upload(buffer: GPUBuffer, data: ArrayBufferView, offset?: number): void;
  /**
   * Bytes `offset … offset + bytes` of a buffer, both multiples of 4, after everything submitted so far.
   * @throws KernelError for a fault in anything submitted before; DeviceLostError; OutOfMemoryError.
   */
  read(buffer: GPUBuffer, bytes?: number, offset?: number): Promise<ArrayBuffer>;
  /** The first `bytes` of a MAP_READ buffer of the caller's, once everything submitted so far has run. Throws as `read`. */
  readMapped(staging: GPUBuffer, bytes: number): Promise<ArrayBuffer>;
  /** The bind group layout of a kernel's declaration; kernels with equal accesses share one. */
  layout(kernel: Kernel): GPUBindGroupLayout;
  /** Compiles a kernel, or returns the pipeline compiled before for the same WGSL. @throws KernelError */
  pipeline(kernel: Kernel): Promise<GPUComputePipeline>;
  /** Submits recorded commands. */
  submit(commands: GPUCommandBuffer): void;
  /** Runs `work` and throws the validation error it caused, as a KernelError of `name`. */
  validated<R>(name: string, work: () => R): Promise<Awaited<R>>;
  /** Resolves when the device is lost; never because of {@link destroy}. */
  readonly lost: Promise<DeviceLostError>;
  destroy(): void;
}

/** Wraps a freshly requested GPUDevice. */
export function wrapDevice(gpu: GPUDevice, capabilities: Capabilities): Device {
  const live = new Map<GPUBuffer, number>(); // → bytes
  const layouts = new Map<string, GPUBindGroupLayout>(); // by access signature
  const pipelines = new Map<string, Promise<GPUComputePipeline>>(); // by WGSL
  let allocatedBytes = 0;
  let activity = 0;
  let destroyed = false;
  let lostError: DeviceLostError | undefined;
  let fault: KernelError | undefined;

  const lost = new Promise<DeviceLostError>((resolve) => {
    gpu.lost.then((info) => {
      lostError ??= new DeviceLostError(`the GPU device was lost (${info.reason}): ${info.message}`);
      if (!destroyed) resolve(lostError);
    });
  });
  gpu.addEventListener("uncapturederror", (event) => {
    event.preventDefault();
    const { message } = (event as GPUUncapturedErrorEvent).error;
    fault ??= new KernelError(labelIn(message), message);
  });

  async function createBuffer(wanted: { label: string; bytes: number; usage?: number }): Promise<GPUBuffer> {
    if (lostError) throw lostError;
    const { label, usage = STORAGE } = wanted;
    const bytes = Math.max(16, Math.ceil(wanted.bytes / 4) * 4);
    const limit = capabilities.limits.maxBufferSize;
    failpoint("device.out_of_memory", () => new OutOfMemoryError(label, bytes, "a failpoint says so"));
    if (bytes > limit) throw new OutOfMemoryError(label, bytes, `the adapter allows ${limit} bytes in one buffer`);
    gpu.pushErrorScope("validation");
    gpu.pushErrorScope("out-of-memory");
    const buffer = gpu.createBuffer({ label, size: bytes, usage });
    const [full, invalid] = await Promise.all([gpu.popErrorScope(), gpu.popErrorScope()]);
    if (full) throw new OutOfMemoryError(label, bytes, `does not fit beside ${allocatedBytes} bytes: ${full.message}`);
    if (invalid) throw lostError ?? new KernelError(label, invalid.message);
    activity++;
    live.set(buffer, bytes);
    allocatedBytes += bytes;
    return buffer;
  }

  function destroyBuffer(buffer: GPUBuffer): void {
    allocatedBytes -= live.get(buffer) ?? 0;
    live.delete(buffer);
    buffer.destroy();
  }

  function upload(buffer: GPUBuffer, data: ArrayBufferView, offset = 0): void {
    const whole = data.byteLength - (data.byteLength % 4);
    const source = data.buffer as ArrayBuffer;
    if (whole > 0) gpu.queue.writeBuffer(buffer, offset, source, data.byteOffset, whole);
    if (whole < data.byteLength) {
      const tail = new Uint8Array(4);
      tail.set(new Uint8Array(source, data.byteOffset + whole, data.byteLength - whole));
      gpu.queue.writeBuffer(buffer, offset + whole, tail);
    }
  }

  async function read(buffer: GPUBuffer, bytes = buffer.size, offset = 0): Promise<ArrayBuffer> {
    if (lostError) throw lostError;
    if (bytes === 0) return new ArrayBuffer(0);
    const usage = BUFFER_USAGE.MAP_READ | BUFFER_USAGE.COPY_DST;
    const staging = await createBuffer({ label: `read ${buffer.label}`, bytes, usage });
    try {
      const encoder = gpu.createCommandEncoder({ label: `read ${buffer.label}` });
      encoder.copyBufferToBuffer(buffer, offset, staging, 0, bytes);
      gpu.queue.submit([encoder.finish()]);
      return await readMapped(staging, bytes);
    } finally {
      destroyBuffer(staging);
    }
  }

  async function readMapped(staging: GPUBuffer, bytes: number): Promise<ArrayBuffer> {
    failpoint("device.lost", () => {
      gpu.destroy();
      return new DeviceLostError("a failpoint lost the GPU device");
    });
    try {
      await staging.mapAsync(MAP_MODE_READ, 0, bytes);
      activity++;
      if (fault) throw takeFault();
      const copy = staging.getMappedRange(0, bytes).slice(0);
      staging.unmap();
      return copy;
    } catch (error) {
      throw lostError ?? (fault ? takeFault() : error);
    }
  }

  function takeFault(): KernelError | undefined {
    const taken = fault;
    fault = undefined;
    return taken;
  }

  function layout(kernel: Kernel): GPUBindGroupLayout {
    const hasParams = Object.keys(kernel.params).length > 0;
    const accesses = Object.values(kernel.buffers).map(boundAccess);
    const key = `${hasParams} ${accesses.join(" ")}`;
    let found = layouts.get(key);
    if (!found) {
      const entries: GPUBindGroupLayoutEntry[] = accesses.map((access, i) => ({
        binding: i + 1,
        visibility: COMPUTE_STAGE,
        buffer: { type: access === "read" ? "read-only-storage" : "storage" },
      }));
      if (hasParams) entries.unshift({ binding: 0, visibility: COMPUTE_STAGE, buffer: { type: "uniform" } });
      found = gpu.createBindGroupLayout({ label: key, entries });
      layouts.set(key, found);
    }
    return found;
  }

  async function validated<R>(name: string, work: () => R): Promise<Awaited<R>> {
    gpu.pushErrorScope("validation");
    let result: R;
    let scope: Promise<GPUError | null>;
    try {
      result = work();
    } finally {
      scope = gpu.popErrorScope();
    }
    const settled = Promise.allSettled([result]);
    const error = await scope;
    const [outcome] = await settled;
    activity++;
    if (lostError) throw lostError;
    if (error) throw new KernelError(name, error.message);
    if (outcome.status === "rejected") throw new KernelError(name, String(outcome.reason?.message ?? outcome.reason));
    return outcome.value;
  }

  const compile = (kernel: Kernel): Promise<GPUComputePipeline> =>
    validated(kernel.name, () =>
      gpu.createComputePipelineAsync({
        label: kernel.name,
        layout: gpu.createPipelineLayout({ label: kernel.name, bindGroupLayouts: [layout(kernel)] }),
        compute: { module: gpu.createShaderModule({ label: kernel.name, code: kernel.wgsl }), entryPoint: "main" },
      }),
    );

  function pipeline(kernel: Kernel): Promise<GPUComputePipeline> {
    let found = pipelines.get(kernel.wgsl);
    if (!found) {
      found = compile(kernel);
      pipelines.set(kernel.wgsl, found);
    }
    return found;
  }

  return {
    gpu,
    capabilities,
    target: kernelTarget(capabilities),
    createBuffer,
    destroyBuffer,
    get allocatedBytes() {
      return allocatedBytes;
    },
    get activity() {
      return activity;
    },
    upload,
    read,
    readMapped,
    layout,
    pipeline,
    submit: (commands) => gpu.queue.submit([commands]),
    validated,
    lost,
    destroy() {
      destroyed = true;
      lostError ??= new DeviceLostError("the GPU device was lost (destroyed): by its owner");
      gpu.destroy();
    },
  };
}

/** The label of the first object a validation message names, e.g. `[BindGroup "matmul_nn"]`. */
const labelIn = (message: string): string => /["'`]([^"'`\n]+)["'`]/.exec(message)?.[1] ?? "submitted commands";
