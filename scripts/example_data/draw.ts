// Seeded choices for the generator of the example data, and the split an example belongs to.

import { randomU32 } from "../../src/trainer/data/random.ts";

export interface Draw {
  /** An integer in [0, n). */
  below(n: number): number;
  pick<T>(list: readonly T[]): T;
  /** `count` different entries. */
  some<T>(list: readonly T[], count: number): T[];
  chance(probability: number): boolean;
}

/** One endless sequence of choices per (seed, stream). */
export function drawFrom(seed: number, stream: number): Draw {
  let counter = 0;
  const unit = (): number => randomU32(seed, stream, counter++) / 2 ** 32;
  const below = (n: number): number => Math.floor(unit() * n);
  return {
    below,
    pick: (list) => list[below(list.length)],
    some(list, count) {
      const rest = [...list];
      return Array.from({ length: count }, () => rest.splice(below(rest.length), 1)[0]);
    },
    chance: (probability) => unit() < probability,
  };
}

export const SPLITS = ["train", "validation", "test"] as const;
export type Split = (typeof SPLITS)[number];

/**
 * The split of everything that is about `key` (who, what, where): a combination of words belongs to one split, so the
 * test split asks about combinations that training has never shown. 70 % train, 15 % each of the others.
 */
export function splitOf(key: string): Split {
  let hash = 0;
  for (const character of key) hash = randomU32(hash, 0, character.charCodeAt(0));
  const share = hash / 2 ** 32;
  if (share < 0.7) return "train";
  return share < 0.85 ? "validation" : "test";
}

/** One example before it is numbered. */
export interface Generated {
  readonly key: string;
  readonly input: string;
  readonly target: string;
}
