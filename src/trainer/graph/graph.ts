// A computation graph over device tensors, built once for a freeze plan and a batch shape.
//
// A node is one operation: its tensors, how it is lowered to kernel calls, and what it adds to the graph when
// gradients flow back through it. Nodes are kept in execution order; the backward pass and the optimizer append to the
// same list, so one walk over it plans memory, counts work and records a program.
//
// `requiresGradient` is decided while the forward pass is built: a parameter requires one when the plan trains it, an
// activation when any of its float inputs does. An operation emits a backward node only for an input that requires a
// gradient, so whatever the plan freezes is never written down: no dispatch, no saved activation, no buffer.

import type { KernelTarget, Products } from "../../kernels/capabilities.ts";
import { type Command, DTYPE_BYTES, type DType } from "../../kernels/kernel.ts";
import type { ParameterSpec } from "../model/parameters.ts";

export type TensorRole =
  /** Model weights; live as long as the run. */
  | "parameter"
  /** f16 copies of weights that last from step to step: see ops/weights.ts. */
  | "copy"
  /** Weight gradients: written by the backward pass, read by the optimizer of the same program. */
  | "gradient"
  /** Weight gradients summed over the batches of a step, which outlive a program. */
  | "gradient_sum"
  /** Optimizer state; lives from thaw to freeze. */
  | "optimizer"
  /** What a batch uploads: ids, masks, labels. */
  | "input"
  /** Uploaded once when the program is recorded. */
  | "constant"
  /** Everything computed in between; shares buffer slots by lifetime, as gradients do. */
  | "activation";

export interface Tensor {
  readonly id: number;
  readonly name: string;
  readonly shape: readonly number[];
  readonly dtype: DType;
  /** A parameter's gradient is an activation until the backward pass knows which tensor holds the whole of it. */
  role: TensorRole;
  readonly requiresGradient: boolean;
  /** An activation that must outlive the program's last node, because it is read back. */
  kept: boolean;
  /** Whether an activation is a ReLU's output, so that its gradient may be masked by it where it is written. */
  rectified?: boolean;
  /** The ReLU's output by which a gradient is masked already. */
  maskedBy?: Tensor;
  /** Emits a node that makes an activation anew in `out`, where that is cheaper than keeping it for the backward pass. */
  remake?: (out: Tensor) => void;
  /** The arena (arenas.ts) that the tensor is a range of, from `offset` bytes on. */
  part?: { readonly of: Tensor; readonly offset: number };
  /** The parameter this tensor is, or is the gradient or optimizer state of. */
  readonly parameter?: ParameterSpec;
  /** Trainable entries of a parameter's expert axis, ascending; gradients and optimizer state are compact over it. */
  readonly slots?: readonly number[];
  /** Contents of a constant. */
  readonly data?: Uint32Array<ArrayBuffer> | Float32Array<ArrayBuffer>;
}

export type Phase = "forward" | "backward" | "optimizer";

export interface Node {
  readonly name: string;
  readonly phase: Phase;
  /** Every tensor the node reads, writes, or uses as scratch. */
  readonly reads: readonly Tensor[];
  readonly writes: readonly Tensor[];
  readonly scratch: readonly Tensor[];
  /** The parameter whose gradient (backward) or update (optimizer) this node computes. */
  readonly parameter?: ParameterSpec;
  readonly flops: number;
  readonly lower: (target: KernelTarget) => Command<Tensor>[];
  /** Emits gradient nodes for the inputs that require one; see {@link differentiate}. */
  readonly backward?: (gradients: Gradients) => void;
  /** True when the node starts a gradient of its own (a loss), whatever flows into its outputs. */
  readonly startsGradient: boolean;
}

/** What a node's `backward` works with. */
export interface Gradients {
  /** The gradient that reached an output of the node; undefined when none did. */
  of(output: Tensor): Tensor | undefined;
  /** An activation as the backward pass reads it: itself, or made anew where it can be ({@link Tensor.remake}). */
  saved(t: Tensor): Tensor;
  /**
   * Adds to the gradient of `input`. `emit` writes the contribution into `out`: it adds to what is there when
   * `accumulate` is true, which is only asked of it when `canAccumulate`.
   */
  add(input: Tensor, canAccumulate: boolean, emit: (out: Tensor, accumulate: boolean) => void): void;
  /**
   * Adds to the gradient of `input` in a tensor of its own: `emit` writes there the contribution and what there was, `base`.
   */
  sum(input: Tensor, emit: (out: Tensor, base: Tensor | undefined) => void): void;
  /** Adds an existing tensor to the gradient of `input`; `owned` says nobody else reads it later. */
  addTensor(input: Tensor, gradient: Tensor, owned: boolean): void;
}

export interface NodeDeclaration {
  name: string;
  reads: readonly (Tensor | undefined)[];
  writes: readonly (Tensor | undefined)[];
  scratch?: readonly Tensor[];
  parameter?: ParameterSpec;
  flops?: number;
  lower: (target: KernelTarget) => Command<Tensor>[];
  backward?: (gradients: Gradients) => void;
  startsGradient?: boolean;
}

export class Graph {
  readonly nodes: Node[] = [];
  readonly tensors: Tensor[] = [];
  readonly parameters = new Map<string, Tensor>();
  /** f16 copies of weights and of their arenas, which products read: `weightOperand` of ops/weights.ts makes them. */
  readonly roundedCopies = new Map<Tensor, Tensor>();
  /** Kernel variants are chosen for this target; sizes that depend on tiles ask it too. */
  readonly target: KernelTarget;
  /** How matrix products take their operands. */
  readonly products: Products;
  /** How what feeds them is kept: see {@link operand}. */
  readonly operands: "f32" | "f16";
  /** Whether copies of weights last (role `copy`), instead of being made anew by each run of the program. */
  readonly copiesLast: boolean;
  phase: Phase = "forward";
  #nextUse = 1;

  /** f16 operands need last axes that are multiples of 8, but for those of weights. */
  constructor(
    target: KernelTarget,
    products: Products = "f32",
    operands: "f32" | "f16" = "f32",
    copiesLast: boolean = false,
  ) {
    this.target = target;
    this.products = products;
    this.operands = operands;
    this.copiesLast = copiesLast;
  }

  /** A number that tells the random streams of two operations apart. */
  nextUse(): number {
    return this.#nextUse++;
  }

  /** Declares a tensor. */
  tensor(t: {
    name: string;
    shape: readonly number[];
    role: TensorRole;
    dtype?: DType;
    requiresGradient?: boolean;
    parameter?: ParameterSpec;
    slots?: readonly number[];
    data?: Uint32Array<ArrayBuffer> | Float32Array<ArrayBuffer>;
  }): Tensor {
    const tensor: Tensor = {
      ...t,
      id: this.tensors.length,
      dtype: t.dtype ?? "f32",
      requiresGradient: t.requiresGradient ?? false,
      kept: false,
    };
    this.tensors.push(tensor);
    return tensor;
  }

  /** An f32 activation that requires a gradient when one of `from` does. */
  activation(name: string, shape: readonly number[], from: readonly (Tensor | undefined)[] = []): Tensor {
    return this.tensor({ name, shape, role: "activation", requiresGradient: from.some((t) => t?.requiresGradient) });
  }

  /**
   * An activation that products read, or that they write for one of these: f16 in mixed precision, to which products would
   * round it anyway. Like {@link activation} else, and when `precise`.
   */
  operand(name: string, shape: readonly number[], from: readonly (Tensor | undefined)[] = [], precise = false): Tensor {
    const requiresGradient = from.some((t) => t?.requiresGradient);
    const dtype = precise ? "f32" : this.operands;
    return this.tensor({ name, shape, role: "activation", dtype, requiresGradient });
  }

  /** A u32 activation (indices, counts); never differentiable. */
  indices(name: string, shape: readonly number[]): Tensor {
    return this.tensor({ name, shape, role: "activation", dtype: "u32" });
  }

  input(name: string, shape: readonly number[], dtype: DType): Tensor {
    return this.tensor({ name, shape, role: "input", dtype });
  }

  constant(name: string, data: Uint32Array<ArrayBuffer> | Float32Array<ArrayBuffer>): Tensor {
    const dtype = data instanceof Uint32Array ? "u32" : "f32";
    return this.tensor({ name, shape: [data.length], role: "constant", dtype, data });
  }

  /** Marks activations that the host reads after the program has run. */
  keep(...tensors: (Tensor | undefined)[]): void {
    for (const t of tensors) if (t) t.kept = true;
  }

  add(declaration: NodeDeclaration): void {
    const present = (list: readonly (Tensor | undefined)[]) => list.filter((t): t is Tensor => t !== undefined);
    this.nodes.push({
      name: declaration.name,
      phase: this.phase,
      reads: present(declaration.reads),
      writes: present(declaration.writes),
      scratch: declaration.scratch ?? [],
      parameter: declaration.parameter,
      flops: declaration.flops ?? 0,
      lower: declaration.lower,
      backward: declaration.backward,
      startsGradient: declaration.startsGradient ?? false,
    });
  }
}

/** Trainable entries of a parameter's expert axis, ascending; [0] for a parameter that has none. */
export const trainableSlots = ({ slots, parameter }: Tensor): readonly number[] =>
  slots ?? Array.from({ length: parameter?.experts ?? 1 }, (_, e) => e);

/** Of the tensors bound to a kernel, the names of those that hold f16. */
export const halvesOf = (buffers: Readonly<Record<string, Tensor | undefined>>): string[] =>
  Object.keys(buffers).filter((name) => buffers[name]?.dtype === "f16");

export const elements = (shape: readonly number[]): number => shape.reduce((n, d) => n * d, 1);

/** What a tensor's memory is part of: its arena, or itself. */
export const whole = (t: Tensor): Tensor => t.part?.of ?? t;

export const wholes = (tensors: Iterable<Tensor>): Set<Tensor> => new Set([...tensors].map(whole));

/** Bytes of a tensor's elements, in whole words. */
export const elementBytes = (t: Tensor): number => Math.ceil((elements(t.shape) * DTYPE_BYTES[t.dtype]) / 4) * 4;

/** Bytes of a tensor's buffer, which is never smaller than 16. */
export const tensorBytes = (t: Tensor): number => Math.max(16, elementBytes(t));
