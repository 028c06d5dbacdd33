// What a parameter is: its name, where a Hugging Face checkpoint keeps it, its shape, and its place in the model.
// Groups and selectors match on this structure, never on names (moe-spec section 6, trap 11).

import type { ParameterKind, Stack } from "../types.ts";

export interface ParameterSpec {
  /** Unique in the model: the Hugging Face key, without the expert's number for a stack of experts. */
  readonly name: string;
  readonly kind: ParameterKind;
  readonly stack?: Stack;
  /** Layer inside the stack, 0-based; absent for what belongs to no layer (embedding, final norm, head). */
  readonly layer?: number;
  /** Device shape; experts of a layer are one tensor with the expert axis first. */
  readonly shape: readonly number[];
  /** Length of the expert axis; absent when there is none. */
  readonly experts?: number;
  /** Hugging Face keys: one, or one per expert in order. */
  readonly keys: readonly string[];
}

/** Shape of the tensor behind one Hugging Face key. */
export const keyShape = (p: ParameterSpec): readonly number[] => (p.experts === undefined ? p.shape : p.shape.slice(1));
