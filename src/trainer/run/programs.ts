// A run's programs on the device: recorded for the plan in force, recorded anew when it changes.

import type { Device } from "../../kernels/device/device.ts";
import type { Batch } from "../data/batches.ts";
import { isCall } from "../graph/lowered.ts";
import type { InferenceGraph, TrainingGraph } from "../model/family.ts";
import type { DeviceMemory, RecordedGraph } from "./device_memory.ts";
import type { Planned, RunPlan } from "./plan.ts";
import { Readback } from "./readback.ts";

/** A program that can be run now. */
export interface Ready<G extends InferenceGraph> {
  readonly planned: Planned<G>;
  readonly recorded: RecordedGraph;
  readonly readback: Readback;
}

/**
 * Begins to compile what a plan's programs need, so that a model's values are uploaded meanwhile; whoever records the programs
 * waits for that, and is told of faults.
 */
export function beginCompiling(device: Device, { training, encoder, decoder }: RunPlan): void {
  for (const { lowered } of [...training, encoder, decoder])
    for (const { kernel } of lowered.commands.filter(isCall)) device.pipeline(kernel).catch(() => undefined);
}

export class Programs {
  readonly #memory: DeviceMemory;
  #plan: RunPlan | undefined;
  #training: readonly Ready<TrainingGraph>[] = [];
  #encoder: Ready<InferenceGraph> | undefined;
  #decoder: Ready<InferenceGraph> | undefined;

  constructor(memory: DeviceMemory) {
    this.#memory = memory;
  }

  /** Records a plan's programs; {@link release} must have been called for the ones before. */
  async install(plan: RunPlan): Promise<void> {
    const { training, encoder, decoder } = plan;
    await this.#memory.prepare([...training, encoder, decoder].map((p) => p.lowered));
    this.#plan = plan;
    for (const planned of training)
      this.#training = [...this.#training, await this.#record("training", planned, plan.sums)];
    this.#encoder = await this.#record("encoder", encoder);
    this.#decoder = await this.#record("decoder", decoder);
  }

  async #record<G extends InferenceGraph>(label: string, planned: Planned<G>, updateApart = false): Promise<Ready<G>> {
    return {
      planned,
      recorded: await this.#memory.record(label, planned.lowered, updateApart),
      readback: await Readback.create(this.#memory.device, [...planned.results, ...planned.routes]),
    };
  }

  /** Frees what belongs to the recorded programs, slots and gradients included; inputs and parameters stay. */
  release(): void {
    for (const program of [...this.#training, this.#encoder, this.#decoder]) {
      program?.recorded.destroy();
      program?.readback.destroy();
    }
    this.#memory.release();
    this.#training = [];
    this.#encoder = undefined;
    this.#decoder = undefined;
  }

  get plan(): RunPlan {
    return installed(this.#plan);
  }

  /** The program for batches of these lengths. Throws where there is none, as in a model opened for inference only. */
  training({ inputLength, targetLength }: Pick<Batch, "inputLength" | "targetLength">): Ready<TrainingGraph> {
    const { training } = this.plan;
    const index = training.findIndex(({ shape }) => shape.input === inputLength && shape.target === targetLength);
    return installed(this.#training[index]);
  }

  get encoder(): Ready<InferenceGraph> {
    return installed(this.#encoder);
  }

  get decoder(): Ready<InferenceGraph> {
    return installed(this.#decoder);
  }

  /** Kernels of the training program and how often a step dispatches each, with one batch of the longest shape. */
  get kernels(): ReadonlyMap<string, number> {
    const counts = new Map<string, number>();
    const { program, update } = installed(this.#training.at(-1)).recorded;
    for (const { kernel } of [...program.dispatches, ...(update?.dispatches ?? [])])
      counts.set(kernel, (counts.get(kernel) ?? 0) + 1);
    return counts;
  }
}

function installed<T>(part: T | undefined): T {
  if (part === undefined) throw new Error("the run has no such program");
  return part;
}
