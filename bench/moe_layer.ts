// One sparse layer as a graph of its own: router, dispatch, the experts' GEGLU and its down-projection, combination. Inputs
// have a mean, so that the router is unbalanced as trained ones are.

import type { Graph, Tensor } from "../src/trainer/graph/graph.ts";
import { linear } from "../src/trainer/graph/ops/dense.ts";
import { combine, expertLinear } from "../src/trainer/graph/ops/experts.ts";
import { gatedGelu } from "../src/trainer/graph/ops/feed_forward.ts";
import { type Routing, route } from "../src/trainer/graph/ops/routing.ts";
import { type Noise, noiseAt } from "./noise.ts";
import type { Layer, LayerBuild, RecordedLayer } from "./recorded_graph.ts";

export interface MoeShape {
  readonly tokens: number;
  readonly dModel: number;
  readonly dFf: number;
  readonly experts: number;
  readonly topK: number;
}

/** As issue and twin name it: T, D, F, E, K. */
export const moeName = ({ tokens, dModel, dFf, experts, topK }: MoeShape): string =>
  `${tokens}, ${dModel}, ${dFf}, ${experts}, ${topK}`;

/** Of the forward pass: three products for every choice of every token. */
export const moeFlops = ({ tokens, dModel, dFf, topK }: MoeShape): number => 6 * tokens * topK * dModel * dFf;

/** Weights that keep the size of what they multiply: uniform noise has a third of its squared scale as variance. */
const weight = (fanIn: number): Noise => ({ scale: Math.sqrt(3 / fanIn) });

/** Builds the layer; `routing` tells what it decided. */
export function moeLayer(b: LayerBuild, shape: MoeShape): Layer & { readonly routing: Routing } {
  const { tokens, dModel, dFf, experts, topK } = shape;
  const { graph: g } = b;
  const x = b.input("x", [tokens, dModel], { offset: 0.2 });
  const router = b.parameter("router", [experts, dModel], weight(dModel));
  const gate = b.parameter("gate", [experts, dFf, dModel], weight(dModel), experts);
  const up = b.parameter("up", [experts, dFf, dModel], weight(dModel), experts);
  const down = b.parameter("down", [experts, dModel, dFf], weight(dFf), experts);
  const mask = b.given("mask", [tokens], new Uint32Array(tokens).fill(1));
  const routing = routed(g, linear(g, "logits", x, router, { precise: true }), mask, b.step, topK);
  const first = (name: string, w: Tensor) => expertLinear(g, name, x, w, routing, { gather: true, relu: false });
  const hidden = gatedGelu(g, "hidden", first("gated", gate), first("upped", up));
  const rows = expertLinear(g, "rows", hidden, down, routing, { gather: false, relu: false, precise: true });
  const output = combine(g, "output", rows, routing);
  return { output, kept: [routing.chosenIds, routing.gates, routing.expertCount], routing };
}

const routed = (g: Graph, logits: Tensor, mask: Tensor, step: Tensor, topK: number): Routing =>
  route(g, "router", logits, mask, {
    topK,
    normalizeGates: topK > 1,
    secondExpertPolicy: "always",
    priority: "position",
    choose: "tokens",
    tokensPerGroup: Number.MAX_SAFE_INTEGER,
    capacity: { rule: "dropless" },
    countAll: false,
    denominator: "routable",
    balanceCoefficient: 1e-2,
    zCoefficient: 1e-3,
    lossGradient: true,
    step,
  });

/** The largest expert's share of the assignments, over an even share. */
export async function imbalance(layer: RecordedLayer, { routing }: { routing: Routing }): Promise<number> {
  const counts = await layer.readU32(routing.expertCount);
  return (Math.max(...counts) * counts.length) / counts.reduce((a, b) => a + b, 0);
}

const SAMPLED_TOKENS = 2;
const SAMPLED_FEATURES = 8;

/**
 * ‖out - exact‖ / ‖exact‖ over sampled entries of the output and of the gradient of `down`, in float64 from the choices and
 * gates that the device made.
 */
export async function moeError(layer: RecordedLayer, shape: MoeShape, built: ReturnType<typeof moeLayer>) {
  const { tokens, dModel, dFf, topK } = shape;
  const chosen = await layer.readU32(built.routing.chosenIds);
  const gates = await layer.readF32(built.routing.gates);
  const noise = (name: string) => layer.noise.get(name)!;
  const [x, gate, up, down, dOutput] = ["x", "gate", "up", "down", "d_output"].map(noise);
  const dot = (token: number, w: Noise, expert: number, f: number): number => {
    let sum = 0;
    const row = (expert * dFf + f) * dModel;
    for (let d = 0; d < dModel; d++) sum += noiseAt(x, token * dModel + d) * noiseAt(w, row + d);
    return sum;
  };
  const hidden = (token: number, expert: number, f: number): number =>
    gelu(dot(token, gate, expert, f)) * dot(token, up, expert, f);
  const difference = squares();
  for (let sample = 0; sample < SAMPLED_TOKENS; sample++) {
    const token = Math.floor(((sample + 0.5) / SAMPLED_TOKENS) * tokens);
    const exact = new Float64Array(SAMPLED_FEATURES);
    for (let choice = token * topK; choice < (token + 1) * topK; choice++)
      for (let f = 0; f < dFf; f++) {
        const value = gates[choice] * hidden(token, chosen[choice], f);
        exact.forEach((_, d) => {
          exact[d] += value * noiseAt(down, (chosen[choice] * dModel + d) * dFf + f);
        });
      }
    const output = await layer.readF32(built.output!, token * dModel, SAMPLED_FEATURES);
    exact.forEach((value, d) => void difference.add(output[d], value));
  }
  // Column f of the gradient of one expert's matrix: every token that chose it counts.
  const forward = difference.relative();
  const backward = squares();
  const [expert, f] = [chosen[0], dFf >> 1];
  const exact = new Float64Array(SAMPLED_FEATURES);
  for (let choice = 0; choice < tokens * topK; choice++) {
    if (chosen[choice] !== expert) continue;
    const token = Math.floor(choice / topK);
    const value = gates[choice] * hidden(token, expert, f);
    exact.forEach((_, d) => {
      exact[d] += value * noiseAt(dOutput, token * dModel + d);
    });
  }
  for (const [d, value] of exact.entries()) {
    const [actual] = await layer.gradient("down", (expert * dModel + d) * dFf + f, 1);
    backward.add(actual, value);
  }
  return { forward, backward: backward.relative() };
}

/** Sums up ‖actual - exact‖ / ‖exact‖. */
export function squares() {
  let difference = 0;
  let norm = 0;
  return {
    add(actual: number, exact: number) {
      difference += (actual - exact) ** 2;
      norm += exact ** 2;
    },
    relative: () => Math.sqrt(difference / norm),
  };
}

/** In its tanh approximation, as kernels/gated_gelu.ts. */
const gelu = (x: number): number => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));
