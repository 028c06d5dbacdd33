// A program: a list of kernel calls recorded once and encoded at every step.
//
// Recording does what is dear (compiling, packing parameters, creating bind groups, validating); encoding only walks a
// flat list of {pipeline, bind group, workgroups}, about 5 µs a dispatch. WebGPU command buffers cannot be replayed,
// so the list is encoded afresh each step, while the GPU is still busy with the step before.
//
// All parameters of all calls lie in one uniform buffer, each call's at its own aligned offset. What changes from step
// to step is not a parameter: it is read from a storage buffer (step_scalars.ts).

import { BUFFER_USAGE, type Device } from "./device/device.ts";
import { KernelError } from "./device/errors.ts";
import { type ClearCall, type Command, type KernelCall, packParams } from "./kernel.ts";

/** What stands for a device buffer in a recorded call: all of a buffer, or a part; `offset` a multiple of 256. */
export type BufferArgument = GPUBuffer | { readonly buffer: GPUBuffer; readonly offset: number; readonly size: number };

export interface Program {
  readonly label: string;
  /** Every dispatch in execution order (clears are not dispatches). */
  readonly dispatches: readonly { readonly kernel: string; readonly workgroups: readonly [number, number, number] }[];
  /** Size of the program's own buffer, which holds the parameters of its calls. */
  readonly uniformBytes: number;
  /**
   * Appends the program to an encoder: one compute pass per run of dispatches between clears, or, given `timestamps`,
   * one pass per dispatch, so that each can be timed.
   */
  encode(encoder: GPUCommandEncoder, timestamps?: (dispatch: number) => GPUComputePassTimestampWrites): void;
  /** Frees the parameter buffer; the buffers of the calls belong to the caller. */
  destroy(): void;
}

interface Dispatch {
  readonly pipeline: GPUComputePipeline;
  readonly bindGroup: GPUBindGroup;
  readonly workgroups: readonly [number, number, number];
}

type Step = Dispatch | { readonly clear: GPUBufferBinding };

/**
 * Compiles what is not compiled yet (in parallel), binds every call's buffers, and validates the whole.
 * @throws KernelError naming the kernel whose WGSL, buffers or workgroup counts are refused; OutOfMemoryError.
 */
export async function recordProgram(
  device: Device,
  label: string,
  commands: readonly Command<BufferArgument>[],
): Promise<Program> {
  const calls = commands.filter((c) => !isClear(c)) as KernelCall<BufferArgument>[];
  for (const c of calls) checkCall(device, c);
  const pipelines = await Promise.all(calls.map((c) => device.pipeline(c.kernel)));

  const alignment = device.capabilities.limits.minUniformBufferOffsetAlignment;
  const blocks = calls.map((c) => packParams(c.kernel, c.params));
  const offsets: number[] = [];
  let uniformBytes = 0;
  for (const block of blocks) {
    offsets.push(uniformBytes);
    uniformBytes += Math.ceil(block.length / alignment) * alignment;
  }
  const packed = new Uint8Array(uniformBytes);
  blocks.forEach((block, i) => {
    packed.set(block, offsets[i]);
  });
  const uniforms = await device.createBuffer({
    label: `${label} parameters`,
    bytes: uniformBytes,
    usage: BUFFER_USAGE.UNIFORM | BUFFER_USAGE.COPY_DST,
  });
  device.upload(uniforms, packed);

  const bind = (i: number): Dispatch => {
    const { kernel, buffers, workgroups } = calls[i];
    const names = Object.keys(kernel.buffers);
    const entries: GPUBindGroupEntry[] = names.map((name, k) => ({ binding: k + 1, resource: binding(buffers[name]) }));
    if (blocks[i].length > 0) {
      entries.unshift({ binding: 0, resource: { buffer: uniforms, offset: offsets[i], size: blocks[i].length } });
    }
    const layout = device.layout(kernel);
    const bindGroup = device.gpu.createBindGroup({ label: kernel.name, layout, entries });
    return { pipeline: pipelines[i], bindGroup, workgroups };
  };
  const bindAll = (): Step[] => {
    let i = 0;
    return commands.map((c) => (isClear(c) ? { clear: binding(c.clear) } : bind(i++)));
  };
  /** Encodes steps to nowhere: WebGPU reports what it dislikes when the encoder finishes. */
  const tryOut = (steps: readonly Step[]) => {
    const encoder = device.gpu.createCommandEncoder({ label });
    encodeSteps(encoder, steps);
    encoder.finish();
  };

  let steps: Step[];
  try {
    steps = await device.validated(label, () => {
      const bound = bindAll();
      tryOut(bound);
      return bound;
    });
  } catch (error) {
    // One call is at fault; try each alone to name it.
    try {
      for (let i = 0; i < calls.length; i++) await device.validated(calls[i].kernel.name, () => tryOut([bind(i)]));
    } finally {
      device.destroyBuffer(uniforms);
    }
    throw error;
  }

  return {
    label,
    dispatches: calls.map((c) => ({ kernel: c.kernel.name, workgroups: c.workgroups })),
    uniformBytes: uniforms.size,
    encode: (encoder, timestamps) => encodeSteps(encoder, steps, timestamps),
    destroy: () => device.destroyBuffer(uniforms),
  };
}

/** Encodes and submits a program once. */
export function runProgram(device: Device, program: Program): void {
  const encoder = device.gpu.createCommandEncoder({ label: program.label });
  program.encode(encoder);
  device.submit(encoder.finish());
}

/** Most timestamps in one query set (WebGPU's limit is 4096). */
const QUERIES = 4096;

/**
 * Runs a program once with every dispatch in a pass of its own and says how long each took, in seconds. Passes of their
 * own cost a little, so the sum exceeds the time of a plain run.
 * @throws Error when the device has no timestamp queries.
 */
export async function profileProgram(device: Device, program: Program): Promise<{ kernel: string; seconds: number }[]> {
  const { gpu } = device;
  if (!device.capabilities.timestampQuery) throw new Error("this adapter has no timestamp queries");
  const stamps = program.dispatches.length * 2;
  const sets = Array.from({ length: Math.ceil(stamps / QUERIES) }, () =>
    gpu.createQuerySet({ type: "timestamp", count: QUERIES }),
  );
  const usage = BUFFER_USAGE.QUERY_RESOLVE | BUFFER_USAGE.COPY_SRC;
  const resolved = await device.createBuffer({ label: "timestamps", bytes: sets.length * QUERIES * 8, usage });
  const encoder = gpu.createCommandEncoder({ label: `${program.label} profile` });
  program.encode(encoder, (dispatch) => ({
    querySet: sets[Math.floor((dispatch * 2) / QUERIES)],
    beginningOfPassWriteIndex: (dispatch * 2) % QUERIES,
    endOfPassWriteIndex: (dispatch * 2 + 1) % QUERIES,
  }));
  sets.forEach((set, i) => {
    encoder.resolveQuerySet(set, 0, Math.min(QUERIES, stamps - i * QUERIES), resolved, i * QUERIES * 8);
  });
  device.submit(encoder.finish());
  const nanoseconds = new BigUint64Array(await device.read(resolved));
  device.destroyBuffer(resolved);
  for (const set of sets) set.destroy();
  return program.dispatches.map(({ kernel }, i) => ({
    kernel,
    seconds: Number(nanoseconds[2 * i + 1] - nanoseconds[2 * i]) / 1e9,
  }));
}

function encodeSteps(
  encoder: GPUCommandEncoder,
  steps: readonly Step[],
  timestamps?: Parameters<Program["encode"]>[1],
) {
  let pass: GPUComputePassEncoder | undefined;
  let current: GPUComputePipeline | undefined;
  let dispatch = 0;
  const endPass = () => {
    pass?.end();
    pass = undefined;
    current = undefined;
  };
  for (const step of steps) {
    if ("clear" in step) {
      endPass();
      encoder.clearBuffer(step.clear.buffer, step.clear.offset, step.clear.size);
      continue;
    }
    if (timestamps) endPass();
    pass ??= encoder.beginComputePass({ timestampWrites: timestamps?.(dispatch) });
    if (step.pipeline !== current) pass.setPipeline(step.pipeline);
    current = step.pipeline;
    pass.setBindGroup(0, step.bindGroup);
    pass.dispatchWorkgroups(...step.workgroups);
    dispatch++;
  }
  endPass();
}

const isClear = (command: Command<BufferArgument>): command is ClearCall<BufferArgument> => "clear" in command;

const binding = (argument: BufferArgument): GPUBufferBinding =>
  "buffer" in argument ? argument : { buffer: argument };

/** What WebGPU would report late, without a name, or not at all. */
function checkCall(device: Device, { kernel, buffers, workgroups }: KernelCall<BufferArgument>): void {
  const { limits } = device.capabilities;
  const most = limits.maxComputeWorkgroupsPerDimension;
  if (workgroups.some((n) => !Number.isInteger(n) || n < 0 || n > most)) {
    throw new KernelError(kernel.name, `workgroups ${workgroups.join("×")} are not integers of at most ${most}`);
  }
  const count = Object.keys(kernel.buffers).length;
  if (count > limits.maxStorageBuffersPerShaderStage) {
    throw new KernelError(
      kernel.name,
      `${count} buffers; the adapter allows ${limits.maxStorageBuffersPerShaderStage}`,
    );
  }
  for (const name of Object.keys(kernel.buffers)) {
    if (!buffers[name]) throw new KernelError(kernel.name, `no buffer for ${name}`);
  }
}
