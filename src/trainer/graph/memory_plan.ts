// Where every tensor of a graph lives, decided before anything is allocated.
//
// Activations, scratch and gradients share slots by lifetime: tensors are placed largest first, of equal ones the
// longest-lived, each into the first slot in which no other tensor is alive at the same time. A slot is a buffer of its own
// rather than a range of one arena, because Dawn tracks barriers per buffer and refuses a buffer bound read and read_write
// at once. Parameters, gradients and optimizer state lie in arenas (arenas.ts); inputs and constants have buffers of their
// own. An arena of gradients lives from the first of them to the end of the program, so it takes the place of activations
// that the backward pass is done with.

import type { Graph, Tensor, TensorRole } from "./graph.ts";
import { tensorBytes, whole } from "./graph.ts";

export interface MemoryPlan {
  /** Bytes of each activation slot, descending. */
  readonly slotBytes: readonly number[];
  /** Slot of every activation, and of every arena of gradients, that some node touches. */
  readonly slotOf: ReadonlyMap<Tensor, number>;
  /** Bytes of the tensors outside the slots, by role, and of the gradients inside. */
  readonly bytes: Readonly<Record<Exclude<TensorRole, "activation">, number>>;
}

interface Lifetime {
  tensor: Tensor;
  first: number;
  last: number;
}

/** Lifetimes in node indices, both ends inclusive: a node's inputs and outputs never share a slot. */
function lifetimes(graph: Graph): Lifetime[] {
  const spans = new Map<Tensor, Lifetime>();
  graph.nodes.forEach((node, index) => {
    for (const tensor of [...node.reads, ...node.writes, ...node.scratch].map(whole)) {
      if (tensor.role !== "activation" && tensor.role !== "gradient") continue;
      const span = spans.get(tensor);
      if (span) span.last = index;
      else spans.set(tensor, { tensor, first: index, last: index });
    }
  });
  for (const span of spans.values())
    if (span.tensor.kept || span.tensor.role === "gradient") span.last = graph.nodes.length;
  return [...spans.values()];
}

export function planMemory(graph: Graph): MemoryPlan {
  const slots: { bytes: number; taken: Lifetime[] }[] = [];
  const slotOf = new Map<Tensor, number>();
  const length = ({ first, last }: Lifetime) => last - first;
  const order = lifetimes(graph).sort(
    (a, b) => tensorBytes(b.tensor) - tensorBytes(a.tensor) || length(b) - length(a) || a.tensor.id - b.tensor.id,
  );
  for (const life of order) {
    const free = (slot: { taken: Lifetime[] }) =>
      slot.taken.every((other) => other.last < life.first || life.last < other.first);
    let index = slots.findIndex(free);
    if (index < 0) index = slots.push({ bytes: tensorBytes(life.tensor), taken: [] }) - 1;
    slots[index].taken.push(life);
    slotOf.set(life.tensor, index);
  }
  const bytes = { parameter: 0, copy: 0, gradient: 0, gradient_sum: 0, optimizer: 0, input: 0, constant: 0 };
  const used = new Set(graph.nodes.flatMap((node) => [...node.reads, ...node.writes].map(whole)));
  for (const tensor of graph.tensors) {
    if (tensor.role === "activation" || tensor.part) continue;
    if (tensor.role === "parameter" || used.has(tensor)) bytes[tensor.role] += tensorBytes(tensor);
  }
  return { slotBytes: slots.map((slot) => slot.bytes), slotOf, bytes };
}
