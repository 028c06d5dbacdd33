// Inverted dropout whose mask is a function of (seed, step, use, element) (see random.ts), so it is never stored: the
// gradient is `dropout` applied to dOut with the same `use` in the same step.
//
//   out = x / (1 - rate) where uniform_element(seed, step, use, element) >= rate, else 0

import type { Command } from "./kernel.ts";
import { uniformElement } from "./random.ts";
import { type RandomMapDims, randomMap } from "./random_map.ts";

const PARAMS = { rate: "f32", scale: "f32" } as const;
const KEPT = "select(Value(), load_x(at) * params.scale, draw >= Value(params.rate))";

const dropoutMap = randomMap("dropout", ["x"], PARAMS, KEPT);
const residualMap = randomMap("residual_dropout", ["x", "residual"], PARAMS, `load_residual(at) + ${KEPT}`);

export interface DropoutDims extends RandomMapDims {
  /** Share of elements dropped, in [0, 1). */
  readonly rate: number;
}

const paramsOf = ({ rate }: DropoutDims) => ({ rate, scale: 1 / (1 - rate) });

/** out = dropout(x), and dX = dropout(dOut) with the same `use`; x, out [count], step = the StepScalars. */
export const dropout = <T>(buffers: Record<"x" | "step" | "out", T>, dims: DropoutDims): Command<T>[] =>
  dropoutMap(buffers, dims, paramsOf(dims));

/** out = residual + dropout(x); all [count], step = the StepScalars. */
export const residualDropout = <T>(
  buffers: Record<"residual" | "x" | "step" | "out", T>,
  dims: DropoutDims,
): Command<T>[] => residualMap(buffers, dims, paramsOf(dims));

/** Dropout in float64 at a seed and a step. The rate is compared as the f32 that the device holds. */
export function dropoutReference(
  x: ArrayLike<number>,
  { rate, use }: { rate: number; use: number },
  { seed, step }: { seed: number; step: number },
): Float64Array {
  const keep = (i: number): boolean => uniformElement(seed, step, use, i) >= Math.fround(rate);
  return Float64Array.from(x, (value, i) => (keep(i) ? value / (1 - rate) : 0));
}
