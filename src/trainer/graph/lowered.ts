// A graph with its kernels chosen and its memory planned: everything that can be known before a device is touched.

import { type Command, type KernelCall, packParams } from "../../kernels/kernel.ts";
import type { Graph, Phase, Tensor } from "./graph.ts";
import { type MemoryPlan, planMemory } from "./memory_plan.ts";

export interface LoweredGraph {
  readonly graph: Graph;
  readonly memory: MemoryPlan;
  readonly commands: readonly Command<Tensor>[];
  /** Index of the optimizer's first command; all of them without one. */
  readonly updateStart: number;
  /** Bytes of the uniform buffer that holds the parameters of all calls. */
  readonly uniformBytes: number;
  readonly flops: Readonly<Record<Phase, number>>;
  readonly dispatches: number;
  /** Dispatches that write the gradient of a parameter, by parameter name. */
  readonly weightGradientDispatches: ReadonlyMap<string, number>;
}

export const isCall = <T>(command: Command<T>): command is KernelCall<T> => "kernel" in command;

/** Tensors a call may write. */
function writtenBy(c: KernelCall<Tensor>): Tensor[] {
  return Object.entries(c.buffers).flatMap(([name, t]) =>
    c.kernel.buffers[name]?.access === "read_write" && t ? [t] : [],
  );
}

/** `alignment` is the adapter's minimum offset of a uniform binding, bytes. */
export function lowerGraph(graph: Graph, alignment: number): LoweredGraph {
  const lowered = graph.nodes.map((node) => node.lower(graph.target));
  const commands = lowered.flat();
  const firstUpdate = graph.nodes.findIndex((node) => node.phase === "optimizer");
  const updateStart = (firstUpdate < 0 ? lowered : lowered.slice(0, firstUpdate)).flat().length;
  const calls = commands.filter(isCall);
  const weightGradientDispatches = new Map<string, number>();
  for (const c of calls)
    for (const t of writtenBy(c))
      if (t.parameter && (t.role === "gradient" || t.role === "gradient_sum" || t.role === "activation"))
        weightGradientDispatches.set(t.parameter.name, (weightGradientDispatches.get(t.parameter.name) ?? 0) + 1);
  const flops = { forward: 0, backward: 0, optimizer: 0 };
  for (const node of graph.nodes) flops[node.phase] += node.flops;
  const aligned = (bytes: number) => Math.ceil(bytes / alignment) * alignment;
  return {
    graph,
    memory: planMemory(graph),
    commands,
    updateStart,
    uniformBytes: calls.reduce((n, c) => n + aligned(packParams(c.kernel, c.params).length), 0),
    flops,
    dispatches: calls.length,
    weightGradientDispatches,
  };
}
