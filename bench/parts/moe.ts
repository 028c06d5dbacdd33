// Sparse layers forward and backward, router and permutation included. SwiGLU of the models that these shapes are from is
// not in thaw: GEGLU has the same products and differs in one function of each hidden element.

import { mixedProducts } from "../../src/kernels/capabilities.ts";
import { imbalance, type MoeShape, moeError, moeFlops, moeLayer, moeName } from "../moe_layer.ts";
import { type Bench, type Part, type Scale, shareOf, workRate } from "../part.ts";
import { recordLayer } from "../recorded_graph.ts";

const shape = (tokens: number, dModel: number, dFf: number, experts: number, topK: number): MoeShape => ({
  tokens,
  dModel,
  dFf,
  experts,
  topK,
});

export const SHAPES: Readonly<Record<Scale, readonly MoeShape[]>> = {
  small: [shape(128, 32, 64, 4, 1), shape(64, 32, 48, 8, 2)],
  gpu: [shape(16384, 768, 3072, 8, 1), shape(16384, 2048, 1024, 64, 8), shape(4096, 4096, 14336, 8, 2)],
};

/**
 * The forward pass goes through two products behind another and an activation, the gradient through three. In f32 each is
 * off by some 2^-24·sqrt(terms); with operands rounded to f16, nothing else matters: some 2^-11 for each of six rounded
 * operands.
 */
const BOUND = { f32: 1e-4, mixed: 6 * 2 ** -11 } as const;

async function measure({ scale, ceilings, device: open, report }: Bench): Promise<void> {
  const device = await open();
  for (const precision of ["mixed", "f32"] as const)
    for (const size of SHAPES[scale]) {
      let built: ReturnType<typeof moeLayer> | undefined;
      const layer = await recordLayer(device, precision, (b) => {
        built = moeLayer(b, size);
        return built;
      });
      const error = await moeError(layer, size, built!);
      const seconds = await layer.seconds();
      const profile = await layer.profile();
      const stamped = (phase: string) => profile.reduce((n, o) => n + (o.phase === phase ? o.seconds : 0), 0);
      const [forward, backward] = [stamped("forward"), stamped("backward")];
      const products = precision === "f32" ? "f32" : mixedProducts(device.capabilities);
      const { rate, value } = workRate(scale, 3 * moeFlops(size), seconds);
      report({
        name: `${moeName(size)} ${precision}`,
        figures: {
          "forward, ms": 1e3 * forward,
          "backward, ms": 1e3 * backward,
          "both, ms": 1e3 * seconds,
          [`forward ${rate}`]: workRate(scale, moeFlops(size), forward).value,
          [rate]: value,
          ...shareOf(value, ceilings[products]),
          "largest load / mean": await imbalance(layer, built!),
          "error, forward": error.forward,
          "error, backward": error.backward,
        },
        rate,
        wrong: !(error.forward <= BOUND[precision] && error.backward <= BOUND[precision]),
      });
      layer.destroy();
    }
}

export const moe: Part = {
  name: "moe",
  title:
    "sparse layers (tokens, d_model, d_ff, experts, top_k) with GEGLU; forward and backward by timestamps, both by the clock",
  seconds: { small: 30, gpu: 80 },
  measure,
};
