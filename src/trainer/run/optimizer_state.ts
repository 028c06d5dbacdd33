// Optimizer state across freezes and thaws, expert by expert.
//
// An algorithm remembers some named tensors of each parameter (AdamW: m and v), on the device compact over its trainable
// entries. When the freeze plan changes, entries that go on training keep their state, entries that freeze move to the
// host (`keep`) or are forgotten (`drop`), and entries that thaw get back what the host holds, or start from zero with
// their own step count.

import { elements, type Tensor, tensorBytes } from "../graph/graph.ts";
import { type OptimizerEntry, optimizerScalars } from "../graph/ops/optimizer.ts";
import { InputError, type OptimizerOptions, type OptimizerStatePolicy, type TrainableReport } from "../types.ts";
import type { DeviceMemory } from "./device_memory.ts";

/** State of one entry (an expert, or a whole parameter as entry 0). */
export interface EntryState {
  /** By the name of the state tensor. */
  readonly tensors: ReadonlyMap<string, Float32Array<ArrayBuffer>>;
  /** Updates it has had. */
  readonly updates: number;
}

/** Parameter name → entry → state. */
export type HostState = Map<string, Map<number, EntryState>>;

/**
 * Refuses host state that another algorithm, or the same one set otherwise, has left.
 * @throws InputError naming the first parameter whose state it is
 */
function checkState(entries: readonly OptimizerEntry[], kept: HostState): void {
  const sizes = (tensors: readonly (readonly [string, number])[]) =>
    tensors.map(([name, size]) => `${name} [${size}]`).join(", ") || "none";
  for (const entry of entries) {
    const wanted = sizes(entry.state.map(({ name, tensor }) => [name, slotSize(entry, tensor)]));
    const name = entry.parameter.name;
    for (const slot of entry.slots) {
      const state = kept.get(name)?.get(slot);
      const held = state ? sizes([...state.tensors].map(([kind, data]) => [kind, data.length])) : wanted;
      if (held === wanted) continue;
      const message = `the state of ${name} is ${held}, this optimizer's is ${wanted}: it is another optimizer's state`;
      throw new InputError([{ field: "optimizer.algorithm", message }]);
    }
  }
}

/**
 * What a change of plan does to the state of each parameter; a parameter can stand in several lists.
 * @throws InputError when the host keeps state of another optimizer for what thaws
 */
export function planStateChange(
  before: readonly OptimizerEntry[],
  after: readonly OptimizerEntry[],
  kept: HostState,
  policy: OptimizerStatePolicy,
): TrainableReport["state"] {
  checkState(after, kept);
  const state = { restored: [] as string[], fresh: [] as string[], kept: [] as string[], dropped: [] as string[] };
  const slotsOf = (entries: readonly OptimizerEntry[]) => new Map(entries.map((e) => [e.parameter.name, e.slots]));
  const old = slotsOf(before);
  const next = slotsOf(after);
  for (const [name, slots] of next) {
    const thawed = slots.filter((slot) => !old.get(name)?.includes(slot));
    if (thawed.some((slot) => kept.get(name)?.has(slot))) state.restored.push(name);
    if (thawed.some((slot) => !kept.get(name)?.has(slot))) state.fresh.push(name);
  }
  for (const [name, slots] of old) {
    if (slots.every((slot) => next.get(name)?.includes(slot))) continue;
    (policy === "keep" ? state.kept : state.dropped).push(name);
  }
  return state;
}

const slotSize = (entry: OptimizerEntry, t: Tensor): number => elements(t.shape) / entry.slots.length;

export class OptimizerState {
  readonly #memory: DeviceMemory;
  /** State of frozen entries. */
  readonly kept: HostState = new Map();
  /** Updates of each trainable entry, in the order of the parameter's slots. */
  readonly #updates = new Map<string, number[]>();
  #entries: readonly OptimizerEntry[] = [];

  constructor(memory: DeviceMemory) {
    this.#memory = memory;
  }

  get entries(): readonly OptimizerEntry[] {
    return this.#entries;
  }

  /**
   * Makes the device hold state for `entries` and for nothing else.
   * @throws InputError when the host keeps state of another optimizer for them; nothing is changed then
   */
  async change(entries: readonly OptimizerEntry[], policy: OptimizerStatePolicy): Promise<void> {
    checkState(entries, this.kept);
    const next = new Map(entries.map((e) => [e.parameter.name, e]));
    for (const old of this.#entries) {
      const name = old.parameter.name;
      const same = next.get(name)?.slots.join() === old.slots.join();
      if (same) continue;
      const going = new Set(next.get(name)?.slots ?? []);
      const states = await this.read(old);
      const held = this.kept.get(name) ?? new Map<number, EntryState>();
      old.slots.forEach((slot, i) => {
        // What goes on training passes through the host too: its place in the compact tensor changes.
        if (policy === "keep" || going.has(slot)) held.set(slot, states[i]);
      });
      if (held.size > 0) this.kept.set(name, held);
      for (const { tensor: t } of old.state) {
        this.#memory.device.destroyBuffer(this.#memory.optimizer.get(t.name)!);
        this.#memory.optimizer.delete(t.name);
      }
      this.#updates.delete(name);
    }
    for (const entry of entries) {
      const name = entry.parameter.name;
      if (this.#updates.has(name)) continue;
      await this.#create(entry);
    }
    this.#entries = entries;
  }

  async #create(entry: OptimizerEntry): Promise<void> {
    const name = entry.parameter.name;
    const held = this.kept.get(name);
    for (const { name: kind, tensor } of entry.state) {
      const size = slotSize(entry, tensor);
      const buffer = await this.#memory.create({ name: tensor.name, bytes: tensorBytes(tensor) });
      this.#memory.optimizer.set(tensor.name, buffer);
      entry.slots.forEach((slot, i) => {
        const state = held?.get(slot);
        if (state) this.#memory.device.upload(buffer, state.tensors.get(kind)!, i * size * 4);
      });
    }
    this.#updates.set(
      name,
      entry.slots.map((slot) => held?.get(slot)?.updates ?? 0),
    );
    for (const slot of entry.slots) held?.delete(slot);
    if (held?.size === 0) this.kept.delete(name);
  }

  /** The state of an entry's slots, in their order. */
  async read(entry: OptimizerEntry): Promise<EntryState[]> {
    const { device, optimizer } = this.#memory;
    const all: { name: string; size: number; values: Float32Array<ArrayBuffer> }[] = [];
    for (const { name, tensor } of entry.state) {
      const values = new Float32Array(await device.read(optimizer.get(tensor.name)!));
      all.push({ name, size: slotSize(entry, tensor), values });
    }
    const updates = this.#updates.get(entry.parameter.name)!;
    return entry.slots.map((_, i) => ({
      tensors: new Map(all.map(({ name, size, values }) => [name, values.slice(i * size, (i + 1) * size)])),
      updates: updates[i],
    }));
  }

  /**
   * Counts one update of every trainable entry and returns what the optimizer's kernels read, [rows, 4]. A step that the
   * kernels skip, because its gradient is not finite, counts too: the host learns of it only after the next is submitted.
   */
  nextScalars({ algorithm }: OptimizerOptions, learningRate: number): Float32Array<ArrayBuffer> {
    const rows = this.#entries.reduce((n, e) => n + e.slots.length, 0);
    const scalars = new Float32Array(rows * 4);
    for (const { parameter, scalarOffset } of this.#entries) {
      const updates = this.#updates.get(parameter.name)!;
      updates.forEach((done, i) => {
        updates[i] = done + 1;
        scalars.set(optimizerScalars(algorithm, learningRate, done + 1), (scalarOffset + i) * 4);
      });
    }
    return scalars;
  }
}
