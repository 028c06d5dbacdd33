// Seeded choices, so that a case that failed can be run again by its seed.

import process from "node:process";

/** Seeds of this run: THAW_FAULT_SEEDS of them, from THAW_FAULT_SEED on; `npm run test:faults` sets both. */
export const SEEDS = Array.from(
  { length: Number(process.env.THAW_FAULT_SEEDS ?? 50) },
  (_, i) => Number(process.env.THAW_FAULT_SEED ?? 1) + i,
);

export interface Random {
  /** A whole number from 0 below `bound`. */
  below(bound: number): number;
  pick<T>(from: readonly T[]): T;
}

/** Mulberry32. */
export function random(seed: number): Random {
  let state = Math.imul(seed, 0x9e3779b9) >>> 0;
  const below = (bound: number): number => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((((mixed ^ (mixed >>> 14)) >>> 0) * bound) / 2 ** 32) | 0;
  };
  return { below, pick: (from) => from[below(from.length)] };
}
