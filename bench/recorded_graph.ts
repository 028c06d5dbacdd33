// A graph of one layer on the device, by itself: forward, and backward from a given gradient of its output.

import { mixedProducts, type Products } from "../src/kernels/capabilities.ts";
import type { Device } from "../src/kernels/device/device.ts";
import { DTYPE_BYTES } from "../src/kernels/kernel.ts";
import { packStepScalars, STEP_SCALARS_BYTES } from "../src/kernels/step_scalars.ts";
import { float16ToFloat32 } from "../src/trainer/formats/float_conversion.ts";
import { differentiate } from "../src/trainer/graph/autodiff.ts";
import { elements, Graph, type Tensor } from "../src/trainer/graph/graph.ts";
import { lowerGraph } from "../src/trainer/graph/lowered.ts";
import { optimizerNodes, optimizerScalars } from "../src/trainer/graph/ops/optimizer.ts";
import { DeviceMemory, type RecordedGraph } from "../src/trainer/run/device_memory.ts";
import { OptimizerState } from "../src/trainer/run/optimizer_state.ts";
import { type OperationTime, profileGraph } from "../src/trainer/run/profile.ts";
import type { AdamW } from "../src/trainer/types.ts";
import { fillWithNoise, type Noise } from "./noise.ts";
import { median, repeated, secondsOf, warmUp } from "./timing.ts";

export const ADAMW: AdamW = { kind: "adamw", beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0.01 };

/** A layer under construction. */
export interface LayerBuild {
  readonly graph: Graph;
  /** Step scalars, an input. */
  readonly step: Tensor;
  /** An input of f32 that gradients flow back to, filled with noise. */
  input(name: string, shape: readonly number[], noise?: Noise): Tensor;
  /** An input of numbers that are given. */
  given(name: string, shape: readonly number[], data: Uint32Array<ArrayBuffer> | Int32Array<ArrayBuffer>): Tensor;
  /** A trained parameter [experts, out, in] or [out, in], filled with noise. */
  parameter(name: string, shape: readonly number[], noise: Noise, experts?: number): Tensor;
}

export interface Layer {
  /** What its backward pass begins at, unless the layer ends in a loss of its own. */
  readonly output?: Tensor;
  /** Read after the program has run. */
  readonly kept?: readonly Tensor[];
}

export interface RecordedLayer {
  /** The noise behind each input and parameter, and the gradient of the output (`d_output`). */
  readonly noise: ReadonlyMap<string, Noise>;
  /** Median times of the operations, in order. */
  profile(): Promise<OperationTime[]>;
  /** Median seconds of the whole, submitted again and again. */
  seconds(): Promise<number>;
  /** Elements of a tensor, all or so many from one on. */
  readF32(t: Tensor, first?: number, count?: number): Promise<Float32Array>;
  readU32(t: Tensor): Promise<Uint32Array>;
  /** Elements of a parameter's gradient. */
  gradient(name: string, first?: number, count?: number): Promise<Float32Array>;
  destroy(): void;
}

/**
 * Records what `build` builds, with its backward pass and, where `optimizer` says so, AdamW behind it, and runs it once.
 * @throws KernelError, OutOfMemoryError
 */
export async function recordLayer(
  device: Device,
  precision: "f32" | "mixed",
  build: (b: LayerBuild) => Layer,
  optimizer = false,
): Promise<RecordedLayer> {
  const products: Products = precision === "f32" ? "f32" : mixedProducts(device.capabilities);
  const graph = new Graph(device.target, products, products === "f32" ? "f32" : "f16");
  const noise = new Map<string, Noise>();
  const data = new Map<string, Uint32Array<ArrayBuffer> | Int32Array<ArrayBuffer>>();
  const step = graph.input("step_scalars", [STEP_SCALARS_BYTES / 4], "f32");
  const noisy = (name: string, given: Noise = {}): void =>
    void noise.set(name, { start: 100_003 * noise.size, ...given });
  const { output, kept = [] } = build({
    graph,
    step,
    input(name, shape, given) {
      noisy(name, given);
      return graph.tensor({ name, shape, role: "input", requiresGradient: true });
    },
    given(name, shape, values) {
      data.set(name, values);
      return graph.input(name, shape, values instanceof Int32Array ? "i32" : "u32");
    },
    parameter(name, shape, given, experts) {
      noisy(name, given);
      const keys = Array.from({ length: experts ?? 1 }, (_, e) => `${name}.${e}`);
      const parameter = { name, kind: experts ? "expert" : "ffn", shape, experts, keys } as const;
      const tensor = graph.tensor({ name, shape, role: "parameter", requiresGradient: true, parameter });
      graph.parameters.set(name, tensor);
      return tensor;
    },
  });
  if (output) beginGradient(graph, output, noisy);
  graph.keep(output, ...kept);
  const gradients = differentiate(graph);
  const entries = optimizer ? optimizerNodes(graph, gradients, step, ADAMW) : undefined;

  const lowered = lowerGraph(graph, device.capabilities.limits.minUniformBufferOffsetAlignment);
  const memory = new DeviceMemory(device);
  let recorded: RecordedGraph | undefined;
  try {
    await memory.createParameters(graph.parameters);
    await new OptimizerState(memory).change(entries?.entries ?? [], "keep");
    await memory.prepare([lowered]);
    recorded = await memory.record("layer", lowered);
    for (const [name, given] of noise) {
      const buffer = memory.parameters.get(name)?.buffer ?? memory.inputs.get(name);
      if (buffer) await fillWithNoise(device, buffer, given);
    }
    for (const [name, values] of data) device.upload(memory.inputs.get(name)!, values);
    const scalars = { step: 0, seed: 0, lossScale: 1, inverseTargetCount: 1, maxGradientNorm: 1 };
    const stepBuffer = memory.inputs.get(step.name);
    if (stepBuffer) device.upload(stepBuffer, packStepScalars(scalars));
    if (entries) {
      const rows = entries.entries.flatMap(({ slots }) => slots.flatMap(() => optimizerScalars(ADAMW, 1e-6, 1)));
      device.upload(memory.inputs.get(entries.scalars.name)!, Float32Array.from(rows));
    }
    await secondsOf(device, recorded.program, 1);
  } catch (error) {
    recorded?.destroy();
    memory.destroy();
    throw error;
  }
  const { program, range } = recorded;
  const read = (t: Tensor, first = 0, count = elements(t.shape)) => {
    const { buffer, offset } = range(t);
    const bytes = DTYPE_BYTES[t.dtype];
    return device.read(buffer, bytes * count, offset + bytes * first);
  };
  const readFloats = async (t: Tensor, first = 0, count = elements(t.shape)) => {
    if (t.dtype !== "f16") return new Float32Array(await read(t, first, count));
    // Two to a word.
    const [begin, pairs] = [first - (first % 2), Math.ceil((count + (first % 2)) / 2)];
    const values = new Float32Array(2 * pairs);
    float16ToFloat32(new Uint8Array(await read(t, begin, 2 * pairs)), values);
    return values.subarray(first - begin, first - begin + count);
  };
  return {
    noise,
    profile: async () => {
      await warmUp(device, program);
      return medians(await repeated(() => profileGraph(device, recorded)));
    },
    seconds: async () => {
      await warmUp(device, program);
      return median(await repeated(() => secondsOf(device, program, 3)));
    },
    readF32: readFloats,
    readU32: async (t) => new Uint32Array(await read(t)),
    gradient: (name, first, count) => readFloats(gradients.get(name)!, first, count),
    destroy() {
      recorded.destroy();
      memory.destroy();
    },
  };
}

/** Lets the backward pass begin at `output` with the input `d_output`. */
function beginGradient(graph: Graph, output: Tensor, noisy: (name: string) => void): void {
  noisy("d_output");
  const dOutput = graph.input("d_output", output.shape, "f32");
  const begun = graph.activation("begun", [1]);
  graph.add({
    name: "begin",
    reads: [output],
    writes: [begun],
    startsGradient: true,
    lower: () => [],
    backward: (gradients) => gradients.addTensor(output, dOutput, false),
  });
}

/** Each operation with the median of its times. */
function medians(profiles: readonly (readonly OperationTime[])[]): OperationTime[] {
  return profiles[0].map((operation, i) => ({
    ...operation,
    seconds: median(profiles.map((profile) => profile[i].seconds)),
  }));
}
