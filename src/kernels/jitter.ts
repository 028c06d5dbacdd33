// Multiplicative router noise (Switch Transformers, section 2.4): out = x · u, u uniform in [1 - epsilon, 1 + epsilon],
// from counter-based random numbers, so the backward pass draws the same u again.

import type { Command } from "./kernel.ts";
import { uniformElement } from "./random.ts";
import { type RandomMapDims, randomMap } from "./random_map.ts";

const NOISY = "load_x(at) * (1.0 + params.epsilon * (2.0 * draw - 1.0))";
const jitterMap = randomMap("jitter", ["x"], { epsilon: "f32" }, NOISY);

/** x, out [count]; `use` tells this site's random numbers from others'. Its gradient is itself, applied to dOut. */
export const jitter = <T>(
  buffers: Record<"x" | "step" | "out", T>,
  dims: RandomMapDims & { readonly epsilon: number },
): Command<T>[] => jitterMap(buffers, dims, { epsilon: dims.epsilon });

export function jitterReference(
  x: ArrayLike<number>,
  dims: { epsilon: number; use: number },
  random: { seed: number; step: number },
): Float64Array {
  return Float64Array.from(x, (value, i) => {
    const u = uniformElement(random.seed, random.step, dims.use, i);
    return value * (1 + dims.epsilon * (2 * u - 1));
  });
}
