// Where the time of a recorded graph goes: each operation's dispatches, timed by the adapter, beside the work that it counts
// and the bytes that it touches, so that a time can be held against what the adapter could do.

import type { Device } from "../../kernels/device/device.ts";
import { type Program, profileProgram } from "../../kernels/program.ts";
import { type Node, type Phase, tensorBytes } from "../graph/graph.ts";
import { isCall } from "../graph/lowered.ts";
import type { RecordedGraph } from "./device_memory.ts";

/** One operation of a graph, as it ran. */
export interface OperationTime {
  /** The graph's name of it, e.g. `expert_linear`. */
  readonly operation: string;
  readonly phase: Phase;
  /** Its dispatches in order. */
  readonly kernels: readonly { readonly kernel: string; readonly seconds: number }[];
  readonly seconds: number;
  /** Multiplications and additions, as plans count them; 0 where they do not. */
  readonly flops: number;
  /** Its tensors, each once; what a kernel reads again, or not at all, is not told apart. */
  readonly bytes: number;
}

/**
 * Runs a recorded graph once, every dispatch in a pass of its own; its optimizer too unless that is a program apart and left
 * out of `recorded`.
 * @throws Error when the adapter has no timestamp queries
 */
export async function profileGraph(device: Device, recorded: RecordedGraph): Promise<OperationTime[]> {
  const programs: Program[] = [recorded.program, ...(recorded.update ? [recorded.update] : [])];
  const times: { kernel: string; seconds: number }[] = [];
  for (const program of programs) times.push(...(await profileProgram(device, program)));
  const { graph } = recorded.lowered;
  let next = 0;
  return graph.nodes.flatMap((node) => {
    const { length } = node.lower(graph.target).filter(isCall);
    if (next + length > times.length) return []; // of an optimizer that has not run
    const kernels = times.slice(next, next + length);
    next += length;
    const seconds = kernels.reduce((sum, kernel) => sum + kernel.seconds, 0);
    return [{ operation: node.name, phase: node.phase, kernels, seconds, flops: node.flops, bytes: touched(node) }];
  });
}

const touched = ({ reads, writes }: Node): number =>
  [...new Set([...reads, ...writes])].reduce((bytes, t) => bytes + tensorBytes(t), 0);
