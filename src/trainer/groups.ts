// Which parameters train: presets, selectors, and what they match (moe-spec section 4).

import { elements } from "./graph/graph.ts";
import { keyShape, type ParameterSpec } from "./model/parameters.ts";
import {
  type GroupDescription,
  InputError,
  type MatchedTensor,
  PARAMETER_KINDS,
  type ParameterKind,
  type Preset,
  type Problem,
  type Selector,
  type TrainableSelection,
} from "./types.ts";

const MOE: readonly ParameterKind[] = ["expert", "router"];

/** The kinds each preset trains. */
export const PRESET_KINDS: Readonly<Record<Preset, readonly ParameterKind[]>> = {
  all: PARAMETER_KINDS,
  non_moe: PARAMETER_KINDS.filter((kind) => !MOE.includes(kind)),
  moe: MOE,
  attention: ["attention.self", "attention.cross"],
  ffn: ["ffn"],
};

/** Trainable parameters by name: their trainable experts, ascending, or `true` for the whole tensor. */
export type TrainableSet = ReadonlyMap<string, true | readonly number[]>;

/** Experts of `p` a selector matches; undefined when it does not match at all. */
function match(p: ParameterSpec, s: Selector): true | readonly number[] | undefined {
  if (s.kinds.length > 0 && !s.kinds.includes(p.kind)) return undefined;
  if (s.stacks.length > 0 && (p.stack === undefined || !s.stacks.includes(p.stack))) return undefined;
  if (s.layers && (p.layer === undefined || p.layer < s.layers.first || p.layer > s.layers.last)) return undefined;
  if (s.experts.length === 0) return true;
  if (p.experts === undefined) return undefined;
  const experts = [...new Set(s.experts)].filter((e) => e >= 0 && e < p.experts!).sort((a, b) => a - b);
  return experts.length > 0 ? experts : undefined;
}

/**
 * Resolves a selection against a model's parameters: preset, then `add`, then `remove`, then the router switch.
 * Throws InputError naming every selector that matches nothing, a preset that matches nothing, and an empty result.
 */
export function resolveTrainable(
  parameters: readonly ParameterSpec[],
  selection: TrainableSelection,
  field = "trainable",
): TrainableSet {
  const problems: Problem[] = [];
  const chosen = new Map<string, Set<number>>(); // parameter name → entries of its expert axis; [0] without one
  const entries = (p: ParameterSpec, m: true | readonly number[]) =>
    m === true ? Array.from({ length: p.experts ?? 1 }, (_, e) => e) : m;

  const apply = (selector: Selector, path: string, change: (set: Set<number>, entry: number) => void): void => {
    let matched = false;
    for (const p of parameters) {
      const m = match(p, selector);
      if (m === undefined) continue;
      matched = true;
      const set = chosen.get(p.name) ?? new Set();
      for (const entry of entries(p, m)) change(set, entry);
      chosen.set(p.name, set);
    }
    if (!matched) problems.push({ field: path, message: "matches no parameter of this model" });
  };
  const include = (set: Set<number>, entry: number) => void set.add(entry);
  const exclude = (set: Set<number>, entry: number) => void set.delete(entry);
  const kinds = (list: readonly ParameterKind[]): Selector => ({ kinds: list, stacks: [], experts: [] });

  if (selection.preset) apply(kinds(PRESET_KINDS[selection.preset]), `${field}.preset`, include);
  for (const [i, s] of selection.add.entries()) apply(s, `${field}.add[${i}]`, include);
  for (const [i, s] of selection.remove.entries()) apply(s, `${field}.remove[${i}]`, exclude);
  if (selection.router !== undefined) apply(kinds(["router"]), `${field}.router`, selection.router ? include : exclude);

  const result = new Map<string, true | readonly number[]>();
  for (const p of parameters) {
    const set = chosen.get(p.name);
    if (!set || set.size === 0) continue;
    result.set(p.name, set.size === (p.experts ?? 1) ? true : [...set].sort((a, b) => a - b));
  }
  if (problems.length === 0 && result.size === 0)
    problems.push({ field, message: "the selection trains nothing; choose a preset or add a selector" });
  if (problems.length > 0) throw new InputError(problems);
  return result;
}

/** The tensors of a trainable set, in model order. */
export function matchedTensors(parameters: readonly ParameterSpec[], set: TrainableSet): MatchedTensor[] {
  return parameters.flatMap((p) => {
    const entry = set.get(p.name);
    return entry === undefined ? [] : [matchedTensor(p, entry)];
  });
}

/** One parameter as reports show it. */
export function matchedTensor(p: ParameterSpec, entry: true | readonly number[] = true): MatchedTensor {
  const count = entry === true ? elements(p.shape) : entry.length * elements(keyShape(p));
  return {
    name: p.name,
    kind: p.kind,
    stack: p.stack,
    layer: p.layer,
    shape: p.shape,
    experts: entry === true ? undefined : entry,
    parameters: count,
  };
}

/** Parameters of a model by kind, kinds in their standard order, empty kinds left out. */
export function describeGroups(parameters: readonly ParameterSpec[]): GroupDescription[] {
  return PARAMETER_KINDS.flatMap((kind) => {
    const members = parameters.filter((p) => p.kind === kind);
    const count = members.reduce((n, p) => n + elements(p.shape), 0);
    return members.length > 0 ? [{ kind, tensors: members.length, parameters: count, bytes: 4 * count }] : [];
  });
}
