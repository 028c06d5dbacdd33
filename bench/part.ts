// What a part of the bench is. It runs in a process of its own (part_process.ts), which may crash or run out of time: what
// it has reported by then is kept.

import type { Device } from "../src/kernels/device/device.ts";
import type { Row } from "./rows.ts";

/** `small`: any machine, SwiftShader included, in seconds. `gpu`: the sizes that are reported. */
export type Scale = "small" | "gpu";

/** What the adapter was measured to do, by name: `copy` in GB/s, kinds of products as `workRate` says. */
export type Ceilings = Readonly<Partial<Record<string, number>>>;

export interface Bench {
  readonly scale: Scale;
  /** As measured in this run by the part `ceilings`, which goes first. */
  readonly ceilings: Ceilings;
  /** Opens the GPU in this process. A part whose server has the GPU does not ask for it. */
  device(): Promise<Device>;
  /** Seconds until the part is ended, however far it has come. */
  secondsLeft(): number;
  report(row: Row): void;
}

export interface Part {
  readonly name: string;
  /** What is measured, and how: one line. */
  readonly title: string;
  /** Its time limit. */
  readonly seconds: Readonly<Record<Scale, number>>;
  measure(bench: Bench): Promise<void>;
}

/** The unit of a rate of work, so that figures have digits before the point. */
export const UNIT = { small: { rate: "GFLOP/s", flops: 1e9 }, gpu: { rate: "TFLOP/s", flops: 1e12 } } as const;

/** Work per second in the unit of the scale. */
export const workRate = (scale: Scale, flops: number, seconds: number): { rate: string; value: number } => ({
  rate: UNIT[scale].rate,
  value: flops / seconds / UNIT[scale].flops,
});

/** `value` as a share of a ceiling in percent, for a column `of ceiling, %`. */
export const shareOf = (value: number, ceiling: number | undefined): Record<string, number> =>
  ceiling === undefined ? {} : { "of ceiling, %": (100 * value) / ceiling };

/**
 * What bounds an operation, and its share of that: as long as its work takes at the rate of products, or its bytes at that
 * of a copy, whichever is longer. (Roofline: Williams et al. 2009.)
 */
export function roofline(
  { scale, ceilings }: Pick<Bench, "scale" | "ceilings">,
  products: string,
  { flops, bytes, seconds }: { readonly flops: number; readonly bytes: number; readonly seconds: number },
): Record<string, number | string> {
  const { copy, [products]: work } = ceilings;
  if (copy === undefined || work === undefined) return {};
  const least = { work: flops / (work * UNIT[scale].flops), bytes: bytes / (copy * 1e9) };
  const bound = least.work > least.bytes ? "work" : "bytes";
  return { bound, "of bound, %": (100 * least[bound]) / seconds };
}
