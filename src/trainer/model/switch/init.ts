// What a model starts from before any training: small truncated normals (moe-spec section 3; Switch Transformers
// §2.4 and Table 3: a tenth of the usual variance, or training is unstable). A pure function of (seed, parameter).

import { randomU32 } from "../../data/random.ts";
import { elements } from "../../graph/graph.ts";
import type { ParameterSpec } from "../parameters.ts";

/** Scale s of sqrt(s / fan_in). */
const SCALE = 0.1;
/** Standard deviation of routers, and of the relative position biases, which Switch leaves open. */
const SMALL = 0.02;

interface Distribution {
  readonly std: number;
  /** Draws farther from 0 than this many `std` are drawn again; Infinity keeps all. */
  readonly cut: number;
}

/**
 * How a parameter starts; undefined for norms and the experts' biases, which are ones. Matrices are [out, in], so fan_in is
 * the last axis.
 */
function distributionOf(p: ParameterSpec): Distribution | undefined {
  if (p.kind === "norm" || (p.kind === "expert" && p.shape.length === 2)) return undefined;
  if (p.kind === "embedding") return { std: 1, cut: Number.POSITIVE_INFINITY };
  if (p.kind === "router" || p.name.endsWith(".relative_attention_bias.weight"))
    return { std: SMALL, cut: Number.POSITIVE_INFINITY };
  // As the paper writes it: the cut distribution's own deviation is 0.88 of this (jax's initialisers correct for that).
  return { std: Math.sqrt(SCALE / p.shape[p.shape.length - 1]), cut: 2 };
}

/** A standard normal number by Box and Muller, from draws `counter` and `counter + 1`. */
function normal(seed: number, stream: number, counter: number): number {
  const u = (randomU32(seed, stream, counter) + 1) / 2 ** 32; // (0, 1]
  const v = randomU32(seed, stream, counter + 1) / 2 ** 32;
  return Math.sqrt(-2 * Math.log(u)) * Math.cos(2 * Math.PI * v);
}

/**
 * Starting values of one parameter, row-major, `elements(p.shape)` of them.
 * @param stream one per parameter, for instance its place in the model
 */
export function initialValues(p: ParameterSpec, seed: number, stream: number): Float32Array<ArrayBuffer> {
  const values = new Float32Array(elements(p.shape)).fill(1);
  const distribution = distributionOf(p);
  if (!distribution) return values;
  const { std, cut } = distribution;
  let counter = 0;
  for (let i = 0; i < values.length; i++) {
    let z: number;
    do {
      z = normal(seed, stream, counter);
      counter += 2;
    } while (Math.abs(z) > cut);
    values[i] = z * std;
  }
  return values;
}
