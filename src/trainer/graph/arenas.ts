// Arenas: large tensors that hold many. The parameters of a model lie in a few arenas, in the order of the model; the
// gradients and the optimizer state of what trains lie in arenas of their own, one of each kind for each arena of
// parameters that has something to train. So one dispatch updates all parameters of an arena, however many they are.
//
// A member is bound as the range of its arena's buffer that it is. No kernel but the optimizer's writes a parameter, and
// none reads one gradient while it writes another: WebGPU refuses a buffer that a dispatch both reads and writes.
// What lies between two members is zero: nobody writes it, and where an arena's memory has served something else before,
// as that of gradients has (memory_plan.ts), it is cleared.

import type { Capabilities } from "../../kernels/capabilities.ts";
import type { TrainableSet } from "../groups.ts";
import type { ParameterSpec } from "../model/parameters.ts";
import { elementBytes, type Graph, type Tensor, type TensorRole, tensorBytes } from "./graph.ts";

/** Offsets of members, bytes: what WebGPU allows a storage binding to begin at on every adapter. */
const ALIGNMENT = 256;
/** Of parameters twice that, so that it holds in a copy of the arena in f16 too (ops/weights.ts). */
const PARAMETER_ALIGNMENT = 2 * ALIGNMENT;

/** Small enough that the gradients of an arena need not be there before the backward pass reaches its parameters. */
const LARGEST = 2 ** 26;

/** Bytes of an arena at most, unless one member alone needs more. */
export const arenaLimit = ({ limits }: Pick<Capabilities, "limits">): number =>
  Math.floor(Math.min(limits.maxBufferSize, limits.maxStorageBufferBindingSize, LARGEST) / ALIGNMENT) * ALIGNMENT;

const aligned = (bytes: number, alignment: number): number => Math.ceil(bytes / alignment) * alignment;

/** Puts f32 tensors behind one another into an arena made for them, and returns it: [elements] f32, whole vec4f. */
export function arenaOf(g: Graph, name: string, role: TensorRole, members: readonly Tensor[]): Tensor {
  const alignment = role === "parameter" ? PARAMETER_ALIGNMENT : ALIGNMENT;
  let end = 0;
  const offsets = members.map((t) => {
    const offset = aligned(end, alignment);
    end = offset + tensorBytes(t);
    return offset;
  });
  const arena = g.tensor({ name, shape: [4 * Math.ceil(end / 16)], role });
  for (const [i, t] of members.entries()) t.part = { of: arena, offset: offsets[i] };
  return arena;
}

/** The stretches of an arena that belong to none of its members, which are given in order, as members of their own. */
export function gapsOf(g: Graph, arena: Tensor, members: readonly Tensor[]): Tensor[] {
  const gaps: Tensor[] = [];
  let end = 0;
  const until = (begin: number) => {
    if (begin === end) return;
    const gap = g.tensor({ name: `gap of ${arena.name}`, shape: [(begin - end) / 4], role: arena.role });
    gap.part = { of: arena, offset: end };
    gaps.push(gap);
  };
  for (const t of members) {
    until(t.part!.offset);
    end = t.part!.offset + elementBytes(t);
  }
  until(elementBytes(arena));
  return gaps;
}

/** Declares a model's parameters in arenas of at most `arenaBytes`; those in `trainable` require gradients. */
export function declareParameters(
  g: Graph,
  specs: readonly ParameterSpec[],
  trainable: TrainableSet,
  arenaBytes: number,
): void {
  const arenas: Tensor[][] = [];
  let end = Number.POSITIVE_INFINITY;
  for (const spec of specs) {
    const entry = trainable.get(spec.name);
    const parameter = g.tensor({
      name: spec.name,
      shape: spec.shape,
      role: "parameter",
      requiresGradient: entry !== undefined,
      parameter: spec,
      slots: entry === true ? undefined : entry,
    });
    g.parameters.set(spec.name, parameter);
    const bytes = tensorBytes(parameter);
    if (aligned(end, PARAMETER_ALIGNMENT) + bytes > arenaBytes) {
      arenas.push([]);
      end = 0;
    }
    arenas[arenas.length - 1].push(parameter);
    end = aligned(end, PARAMETER_ALIGNMENT) + bytes;
  }
  for (const [i, members] of arenas.entries()) arenaOf(g, `parameters ${i}`, "parameter", members);
}
