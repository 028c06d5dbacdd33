// The buffers of a run. Parameters, sums of gradients, optimizer state and inputs belong to the run, all but the inputs in
// arenas (graph/arenas.ts); slots of activations and gradients are shared by its programs, which run one after another: a
// program's largest slot is the pool's largest, and so on down. Constants belong to the program that uses them.

import type { Device } from "../../kernels/device/device.ts";
import type { Command } from "../../kernels/kernel.ts";
import { type Program, recordProgram, runProgram } from "../../kernels/program.ts";
import { elementBytes, type Tensor, tensorBytes, whole, wholes } from "../graph/graph.ts";
import type { LoweredGraph } from "../graph/lowered.ts";
import { isCall } from "../graph/lowered.ts";
import { roundingOfCopies } from "../graph/ops/weights.ts";

/** Bytes a run needs, by what they are for. */
export interface PlannedBytes {
  /** Weights, and the copies of them that last. */
  readonly parameter: number;
  /** Gradients, in slots or summed outside. */
  readonly gradient: number;
  readonly optimizer: number;
  /** What the slots, shared by all programs, need besides the gradients that come to lie in them. */
  readonly activation: number;
  /** Batch inputs, constants, call parameters and staging buffers. */
  readonly other: number;
  readonly total: number;
}

/** Slot sizes that serve every program: entry i is the largest of their i-th largest slots. */
function sharedSlots(graphs: readonly LoweredGraph[]): number[] {
  const slots: number[] = [];
  for (const { memory } of graphs)
    memory.slotBytes.forEach((bytes, i) => {
      slots[i] = Math.max(slots[i] ?? 0, bytes);
    });
  return slots;
}

/** Whole tensors of a role that some node of some graph touches, one per name, the largest where sizes differ. */
function distinct(graphs: readonly LoweredGraph[], role: Tensor["role"]): Map<string, Tensor> {
  const byName = new Map<string, Tensor>();
  for (const { graph } of graphs)
    for (const node of graph.nodes)
      for (const t of [...node.reads, ...node.writes].map(whole)) {
        if (t.role !== role) continue;
        const known = byName.get(t.name);
        if (!known || tensorBytes(t) > tensorBytes(known)) byName.set(t.name, t);
      }
  return byName;
}

const total = (tensors: Iterable<Tensor>): number => [...tensors].reduce((n, t) => n + tensorBytes(t), 0);

/** What a run with these programs allocates; `stagingBytes` are its readback buffers. */
export function planRun(graphs: readonly LoweredGraph[], stagingBytes: number): PlannedBytes {
  const parameter = total(wholes(graphs[0].graph.parameters.values())) + total(distinct(graphs, "copy").values());
  const inSlots = Math.max(...graphs.map(({ memory }) => memory.bytes.gradient));
  const gradient = inSlots + total(distinct(graphs, "gradient_sum").values());
  const optimizer = total(distinct(graphs, "optimizer").values());
  const activation = sharedSlots(graphs).reduce((n, bytes) => n + bytes, 0) - inSlots;
  const constants = graphs.reduce((n, g) => n + g.memory.bytes.constant + Math.max(16, g.uniformBytes), 0);
  const other = total(distinct(graphs, "input").values()) + constants + stagingBytes;
  return {
    parameter,
    gradient,
    optimizer,
    activation,
    other,
    total: parameter + gradient + optimizer + activation + other,
  };
}

/** Part of a buffer, in bytes. */
export interface BufferRange {
  readonly buffer: GPUBuffer;
  readonly offset: number;
  readonly size: number;
}

/** A graph recorded on the device. */
export interface RecordedGraph {
  readonly lowered: LoweredGraph;
  readonly program: Program;
  /** The optimizer, where it does not run with every batch; `program` is then what comes before it. */
  readonly update?: Program;
  /** Where a tensor of this graph lies. */
  range(t: Tensor): BufferRange;
  /** Frees what belongs to this program alone: constants, call parameters. */
  destroy(): void;
}

/** Buffers that belong to somebody else. */
export interface Lent {
  readonly parameters: ReadonlyMap<string, BufferRange>;
  readonly inputs: ReadonlyMap<string, GPUBuffer>;
}

export class DeviceMemory {
  readonly device: Device;
  /** By the name of a parameter, and by that of an arena. */
  readonly parameters = new Map<string, BufferRange>();
  /** Copies of parameters that last, by name: never stale, since {@link prepare} and the optimizer alone write them. */
  readonly #copies = new Map<string, GPUBuffer>();
  /** Arenas of optimizer state, by name. */
  readonly optimizer = new Map<string, GPUBuffer>();
  /** By input name. */
  readonly inputs = new Map<string, GPUBuffer>();
  /** Arenas, by name: the training programs of several batch shapes add to the same gradients. */
  readonly #gradients = new Map<string, GPUBuffer>();
  #slots: GPUBuffer[] = [];
  /** Buffers of another owner, used and never freed here. */
  readonly #lent: ReadonlySet<GPUBuffer>;

  /** `lent` are parameters and inputs of another owner, found here by the same names. */
  constructor(device: Device, lent: Lent = { parameters: new Map(), inputs: new Map() }) {
    this.device = device;
    for (const [name, range] of lent.parameters) this.parameters.set(name, range);
    for (const [name, buffer] of lent.inputs) this.inputs.set(name, buffer);
    this.#lent = new Set([...buffersOf(lent.parameters), ...lent.inputs.values()]);
  }

  async create(t: { name: string; bytes: number }): Promise<GPUBuffer> {
    return this.device.createBuffer({ label: t.name, bytes: t.bytes });
  }

  /** Allocates what a graph's parameters lie in. */
  async createParameters(parameters: ReadonlyMap<string, Tensor>): Promise<void> {
    for (const arena of wholes(parameters.values())) {
      const buffer = await this.create({ name: arena.name, bytes: tensorBytes(arena) });
      this.parameters.set(arena.name, partOf(buffer, arena));
    }
    for (const [name, t] of parameters)
      this.parameters.set(name, partOf(this.parameters.get(whole(t).name)!.buffer, t));
  }

  /** Where optimizer state lies. */
  state(t: Tensor): BufferRange {
    return partOf(this.optimizer.get(whole(t).name)!, t);
  }

  /** Frees the slots and gradients of the programs before. */
  release(): void {
    for (const buffer of [...this.#slots, ...this.#gradients.values()]) this.device.destroyBuffer(buffer);
    this.#slots = [];
    this.#gradients.clear();
  }

  /**
   * Makes the shared buffers that these programs need and do not have yet; slots and gradients are made anew. Lasting copies
   * of parameters are rounded from what these hold now.
   */
  async prepare(graphs: readonly LoweredGraph[]): Promise<void> {
    this.release();
    for (const [i, bytes] of sharedSlots(graphs).entries())
      this.#slots.push(await this.create({ name: `slot ${i}`, bytes }));
    for (const [name, t] of distinct(graphs, "gradient_sum"))
      this.#gradients.set(name, await this.create({ name, bytes: tensorBytes(t) }));
    await this.#fit(this.inputs, distinct(graphs, "input"));
    await this.#fit(this.#copies, distinct(graphs, "copy"));
    await this.#roundCopies(graphs);
  }

  /** Keeps of `buffers` what is wanted in its size, frees the others and makes what is missing. */
  async #fit(buffers: Map<string, GPUBuffer>, wanted: ReadonlyMap<string, Tensor>): Promise<void> {
    for (const [name, buffer] of buffers) {
      if (this.#lent.has(buffer)) continue;
      const t = wanted.get(name);
      if (t && buffer.size === tensorBytes(t)) continue;
      this.device.destroyBuffer(buffer);
      buffers.delete(name);
    }
    for (const [name, t] of wanted)
      if (!buffers.has(name)) buffers.set(name, await this.create({ name, bytes: tensorBytes(t) }));
  }

  async #roundCopies(graphs: readonly LoweredGraph[]): Promise<void> {
    const rounding = roundingOfCopies(graphs.map(({ graph }) => graph));
    if (rounding.length === 0) return;
    const held = (t: Tensor) => partOf(this.#held(t)!, t);
    const commands = rounding.map((command) => resolve(command, held));
    const program = await recordProgram(this.device, "rounded weights", commands);
    runProgram(this.device, program);
    program.destroy();
  }

  /** The buffer of what all programs share by name. */
  #held(t: Tensor): GPUBuffer | undefined {
    switch (t.role) {
      case "parameter":
        return this.parameters.get(t.name)?.buffer;
      case "copy":
        return this.#copies.get(t.name);
      case "gradient_sum":
        return this.#gradients.get(t.name);
      case "optimizer":
        return this.optimizer.get(t.name);
      case "input":
        return this.inputs.get(t.name);
      default:
        return undefined;
    }
  }

  /**
   * Records a program over the shared buffers; {@link prepare} must have been called for it. `updateApart` makes the
   * optimizer a program of its own.
   */
  async record(label: string, lowered: LoweredGraph, updateApart = false): Promise<RecordedGraph> {
    const { device } = this;
    const own = new Map<Tensor, GPUBuffer>();
    for (const { reads, writes } of lowered.graph.nodes)
      for (const t of [...reads, ...writes]) {
        if (t.role !== "constant" || own.has(t)) continue;
        const buffer = await this.create({ name: t.name, bytes: tensorBytes(t) });
        own.set(t, buffer);
        if (t.data) device.upload(buffer, t.data);
      }
    const shared = (t: Tensor): GPUBuffer | undefined => {
      switch (t.role) {
        case "activation":
        case "gradient":
          return this.#slots[lowered.memory.slotOf.get(t) ?? -1];
        default:
          return own.get(t) ?? this.#held(t);
      }
    };
    const range = (t: Tensor): BufferRange => {
      const found = shared(whole(t));
      if (!found) throw new Error(`${label}: no buffer for ${t.role} ${t.name}`);
      return partOf(found, t);
    };
    const commands = lowered.commands.map((c) => resolve(c, range));
    const end = updateApart ? lowered.updateStart : commands.length;
    const program = await recordProgram(device, label, commands.slice(0, end));
    const update = updateApart ? await recordProgram(device, `${label} update`, commands.slice(end)) : undefined;
    return {
      lowered,
      program,
      update,
      range,
      destroy: () => {
        program.destroy();
        update?.destroy();
        for (const b of own.values()) device.destroyBuffer(b);
      },
    };
  }

  destroy(): void {
    this.release();
    const all = [
      ...buffersOf(this.parameters),
      ...this.#copies.values(),
      ...this.optimizer.values(),
      ...this.inputs.values(),
    ];
    for (const buffer of all) if (!this.#lent.has(buffer)) this.device.destroyBuffer(buffer);
  }
}

const partOf = (buffer: GPUBuffer, t: Tensor): BufferRange => ({
  buffer,
  offset: t.part?.offset ?? 0,
  size: tensorBytes(t),
});

const buffersOf = (ranges: ReadonlyMap<string, BufferRange>): Set<GPUBuffer> =>
  new Set([...ranges.values()].map(({ buffer }) => buffer));

function resolve(command: Command<Tensor>, range: (t: Tensor) => BufferRange): Command<BufferRange> {
  if (!isCall(command)) return { clear: { ...range(command.clear), size: elementBytes(command.clear) } };
  const buffers = Object.entries(command.buffers)
    .filter(([, t]) => t !== undefined)
    .map(([name, t]) => [name, range(t)] as const);
  return { ...command, buffers: Object.fromEntries(buffers) };
}
