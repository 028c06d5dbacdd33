// Optimizer state across freezes and thaws, expert by expert.
//
// An algorithm remembers some named tensors of each parameter (AdamW: m and v), on the device compact over its trainable
// entries. When the freeze plan changes, its arenas are made anew: entries that go on training keep their state, which never
// leaves the device, entries that freeze move to the host (`keep`) or are forgotten (`drop`), and entries that thaw get
// back what the host holds, or start from zero with their own step count.

import { elements, type Tensor, tensorBytes, whole, wholes } from "../graph/graph.ts";
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

const tensorOf = ({ state }: OptimizerEntry, kind: string): Tensor | undefined =>
  state.find(({ name }) => name === kind)?.tensor;

const tensorsOf = (entries: readonly OptimizerEntry[], kind: string): Tensor[] =>
  entries.map((entry) => tensorOf(entry, kind)).filter((t) => t !== undefined);

export class OptimizerState {
  readonly #memory: DeviceMemory;
  /** State of frozen entries. */
  readonly kept: HostState = new Map();
  /** Updates of each trainable entry, in the order of the parameter's slots. */
  #updates = new Map<string, number[]>();
  #entries: readonly OptimizerEntry[] = [];

  constructor(memory: DeviceMemory) {
    this.#memory = memory;
  }

  get entries(): readonly OptimizerEntry[] {
    return this.#entries;
  }

  /**
   * Makes the device hold state for `entries` and for nothing else. It needs no more memory for that than the larger of
   * both plans: while the new arenas of a kind stand beside the old ones, there are no gradients, which are as large.
   * @throws InputError when the host keeps state of another optimizer for them; nothing is changed then
   */
  async change(entries: readonly OptimizerEntry[], policy: OptimizerStatePolicy): Promise<void> {
    checkState(entries, this.kept);
    const before = new Map(this.#entries.map((e) => [e.parameter.name, e]));
    const after = new Map(entries.map((e) => [e.parameter.name, e]));
    const same = (a: OptimizerEntry, b?: OptimizerEntry) => a.slots.join() === b?.slots.join();
    if (before.size === after.size && entries.every((e) => same(e, before.get(e.parameter.name)))) {
      this.#entries = entries;
      return;
    }
    if (policy === "keep")
      for (const old of this.#entries) await this.#keepFrozen(old, new Set(after.get(old.parameter.name)?.slots));
    await this.#lay(entries, before);
    const updates = entries.map((entry): [string, number[]] => {
      const name = entry.parameter.name;
      const old = before.get(name)?.slots ?? [];
      const done = (slot: number) =>
        this.#updates.get(name)?.[old.indexOf(slot)] ?? this.#held(name, slot)?.updates ?? 0;
      return [name, entry.slots.map(done)];
    });
    this.#updates = new Map(updates);
    for (const { parameter, slots } of entries) this.#forget(parameter.name, slots);
    this.#entries = entries;
  }

  #held(name: string, slot: number): EntryState | undefined {
    return this.kept.get(name)?.get(slot);
  }

  #forget(name: string, slots: readonly number[]): void {
    const held = this.kept.get(name);
    for (const slot of slots) held?.delete(slot);
    if (held?.size === 0) this.kept.delete(name);
  }

  /** Takes to the host what of an entry does not go on training. */
  async #keepFrozen(entry: OptimizerEntry, going: ReadonlySet<number>): Promise<void> {
    const name = entry.parameter.name;
    if (entry.slots.every((slot) => going.has(slot))) return;
    const states = await this.read(entry);
    const held = this.kept.get(name) ?? new Map<number, EntryState>();
    for (const [i, slot] of entry.slots.entries()) if (!going.has(slot)) held.set(slot, states[i]);
    this.kept.set(name, held);
  }

  /** Lays the state of `entries` out anew, one kind after another. */
  async #lay(entries: readonly OptimizerEntry[], before: ReadonlyMap<string, OptimizerEntry>): Promise<void> {
    const { device, optimizer } = this.#memory;
    const kindsOf = (list: readonly OptimizerEntry[]) => list.flatMap(({ state }) => state.map(({ name }) => name));
    for (const kind of new Set([...kindsOf(this.#entries), ...kindsOf(entries)])) {
      const old = wholes(tensorsOf(this.#entries, kind));
      const made = new Map<string, GPUBuffer>();
      try {
        for (const arena of wholes(tensorsOf(entries, kind)))
          made.set(arena.name, await this.#memory.create({ name: arena.name, bytes: tensorBytes(arena) }));
      } catch (error) {
        for (const buffer of made.values()) device.destroyBuffer(buffer);
        throw error;
      }
      for (const entry of entries) this.#fill(entry, before.get(entry.parameter.name), kind, made);
      for (const { name } of old) {
        device.destroyBuffer(optimizer.get(name)!);
        optimizer.delete(name);
      }
      for (const [name, buffer] of made) optimizer.set(name, buffer);
    }
  }

  /** Fills what `entry` has in the new arenas `made`: from the old ones what it had before, and from the host. */
  #fill(
    entry: OptimizerEntry,
    before: OptimizerEntry | undefined,
    kind: string,
    made: ReadonlyMap<string, GPUBuffer>,
  ): void {
    const { device } = this.#memory;
    const [to, old] = [tensorOf(entry, kind), before && tensorOf(before, kind)];
    if (!to) return;
    const buffer = made.get(whole(to).name)!;
    const bytes = 4 * slotSize(entry, to);
    const encoder = device.gpu.createCommandEncoder({ label: to.name });
    for (const [i, slot] of entry.slots.entries()) {
      const offset = (to.part?.offset ?? 0) + i * bytes;
      const place = before?.slots.indexOf(slot) ?? -1;
      const held = this.#held(entry.parameter.name, slot);
      if (old && place >= 0) {
        const from = this.#memory.state(old);
        encoder.copyBufferToBuffer(from.buffer, from.offset + place * bytes, buffer, offset, bytes);
      } else if (held) device.upload(buffer, held.tensors.get(kind)!, offset);
    }
    device.submit(encoder.finish());
  }

  /** The state of an entry's slots, in their order. */
  async read(entry: OptimizerEntry): Promise<EntryState[]> {
    const { device } = this.#memory;
    const all: { name: string; size: number; values: Float32Array<ArrayBuffer> }[] = [];
    for (const { name, tensor } of entry.state) {
      const { buffer, offset, size: bytes } = this.#memory.state(tensor);
      const values = new Float32Array(await device.read(buffer, bytes, offset));
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
