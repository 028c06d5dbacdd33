// Compares an optimizer with its reference implementation: the graph's optimizer nodes and the run's optimizer state are
// fed the fixture's gradients step by step, and every parameter is compared after every step.
// Format: the reference fixtures' optimizer folders (case.json, trajectory.safetensors).

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import type { Device } from "../../kernels/device/device.ts";
import { runProgram } from "../../kernels/program.ts";
import { packStepScalars, STEP_SCALARS_BYTES } from "../../kernels/step_scalars.ts";
import { inputError } from "../formats/problems.ts";
import { openSafetensors } from "../formats/safetensors.ts";
import { arenaLimit, declareParameters } from "../graph/arenas.ts";
import { Graph } from "../graph/graph.ts";
import { lowerGraph } from "../graph/lowered.ts";
import { optimizerNodes } from "../graph/ops/optimizer.ts";
import type { TrainableSet } from "../groups.ts";
import type { ParameterSpec } from "../model/parameters.ts";
import { DeviceMemory } from "../run/device_memory.ts";
import { OptimizerState } from "../run/optimizer_state.ts";
import type { OptimizerAlgorithm, OptimizerOptions } from "../types.ts";
import type { ErrorTable } from "./table.ts";

const LIMITS = {
  /** Of a parameter. */
  parameters: 1e-5,
  /** Of what all steps so far have moved it by: a parameter itself hardly shows a wrong step. */
  displacements: 1e-4,
};

interface Case {
  readonly optimizer: string;
  readonly learning_rate: number;
  readonly weight_decay: number;
  /** Clip by global norm; absent: off. */
  readonly max_grad_norm?: number;
  readonly steps: number;
  readonly shapes: Readonly<Record<string, readonly number[]>>;
  readonly [setting: string]: unknown;
}

export async function optimizerParity(device: Device, directory: string, table: ErrorTable): Promise<void> {
  const settings: Case = JSON.parse(await readFile(join(directory, "case.json"), "utf8"));
  const options: OptimizerOptions = {
    algorithm: algorithmOf(settings),
    learningRate: settings.learning_rate,
    maxGradientNorm: settings.max_grad_norm ?? 0,
    schedule: "constant",
    warmupSteps: 0,
  };
  const g = new Graph(device.target);
  const step = g.input("step_scalars", [STEP_SCALARS_BYTES / 4], "f32");
  const specs = Object.entries(settings.shapes).map(([name, shape]) => specOf(name, shape));
  const everything: TrainableSet = new Map(specs.map(({ name }) => [name, true]));
  declareParameters(g, specs, everything, arenaLimit(device.capabilities));
  const gradients = new Map(
    specs.map(({ name, shape }) => [name, g.tensor({ name: `d_${name}`, shape, role: "gradient" })]),
  );
  const { entries, scalars } = optimizerNodes(g, gradients, step, options.algorithm);

  const memory = new DeviceMemory(device);
  const trajectory = await openSafetensors(join(directory, "trajectory.safetensors"));
  const read = async (name: string) => (await trajectory.read(name)) as Float32Array<ArrayBuffer>;
  try {
    await memory.createParameters(g.parameters);
    for (const name of g.parameters.keys()) {
      const { buffer, offset } = memory.parameters.get(name)!;
      device.upload(buffer, await read(`param/0/${name}`), offset);
    }
    const state = new OptimizerState(memory);
    await state.change(entries, "keep");
    const lowered = lowerGraph(g, device.capabilities.limits.minUniformBufferOffsetAlignment);
    await memory.prepare([lowered]);
    const recorded = await memory.record("optimizer parity", lowered);
    for (let t = 1; t <= settings.steps; t++) {
      const { maxGradientNorm } = options;
      const scalar = packStepScalars({ step: t - 1, seed: 0, lossScale: 1, inverseTargetCount: 1, maxGradientNorm });
      device.upload(memory.inputs.get(step.name)!, scalar);
      device.upload(memory.inputs.get(scalars.name)!, state.nextScalars(options, options.learningRate));
      for (const [name, gradient] of gradients) {
        const { buffer, offset } = recorded.range(gradient);
        device.upload(buffer, await read(`grad/${t}/${name}`), offset);
      }
      runProgram(device, recorded.program);
      for (const name of gradients.keys()) {
        const expected = await read(`param/${t}/${name}`);
        const { buffer, offset } = memory.parameters.get(name)!;
        const actual = new Float32Array(await device.read(buffer, expected.byteLength, offset));
        const start = await read(`param/0/${name}`);
        const moved = (values: Float32Array) => values.map((x, i) => x - start[i]);
        const where = `${name} after step ${t}`;
        table.compare("parameters", where, actual, expected, LIMITS.parameters);
        table.compare("displacements", where, moved(actual), moved(expected), LIMITS.displacements);
      }
    }
    recorded.destroy();
  } finally {
    memory.destroy();
    await trajectory.close();
  }
}

function algorithmOf(c: Case): OptimizerAlgorithm {
  const number = (setting: string): number => {
    const value = c[setting];
    if (typeof value !== "number") throw inputError("case.json", [`${setting} is not a number`]);
    return value;
  };
  switch (c.optimizer) {
    case "adamw":
      return {
        kind: "adamw",
        beta1: number("b1"),
        beta2: number("b2"),
        epsilon: number("eps"),
        weightDecay: c.weight_decay,
      };
    case "adafactor":
      if (c.momentum !== null || c.multiply_by_parameter_scale !== true)
        throw inputError("case.json", ["Adafactor with momentum or without parameter scale is not supported"]);
      return {
        kind: "adafactor",
        decayRate: number("decay_rate"),
        clipThreshold: number("clipping_threshold"),
        epsilon: number("eps"),
        minParameterScale: number("min_parameter_scale"),
        minDimensionToFactor: number("min_dim_size_to_factor"),
        weightDecay: c.weight_decay,
      };
    case "sgd":
      return { kind: "sgd", momentum: number("momentum"), weightDecay: c.weight_decay };
    default:
      throw inputError("case.json", [`optimizer ${c.optimizer} is not supported`]);
  }
}

/** A parameter; three dimensions are a stack of experts. */
function specOf(name: string, shape: readonly number[]): ParameterSpec {
  const experts = shape.length === 3 ? shape[0] : undefined;
  const keys = experts === undefined ? [name] : Array.from({ length: experts }, (_, e) => `${name}.${e}`);
  return { name, kind: experts === undefined ? "ffn" : "expert", shape, experts, keys };
}
