// How the sparse layers of a model route under a run's options: which options go together, and what each layer is told.

import type { RouterOptions } from "../../graph/ops/routing.ts";
import type { LossOptions, Problem, RoutingOptions, Stack } from "../../types.ts";
import { capacityOf, groupTokens } from "../family.ts";
import { type SwitchConfig, sparseLayers } from "./config.ts";
import type { SwitchBuild } from "./model.ts";
import { selectionBiasKey } from "./parameters.ts";

type Config = Pick<
  SwitchConfig,
  | "experts"
  | "topK"
  | "gateNormalization"
  | "sparseLayout"
  | "encoderLayers"
  | "decoderLayers"
  | "encoderSparseStep"
  | "decoderSparseStep"
>;

/** What the model's layers cannot do of it, and what does not go together. */
export function routingProblems(c: Config, routing: RoutingOptions, losses: LossOptions): Problem[] {
  const problems: Problem[] = [];
  const refuse = (wrong: boolean, field: string, message: string) => wrong && problems.push({ field, message });
  const inEncoder = sparseLayers(c, "encoder") > 0;
  const inDecoder = sparseLayers(c, "decoder") > 0;
  const sparse = inEncoder || inDecoder;
  const { topK = c.topK, gateNormalization = c.gateNormalization } = routing;

  refuse(sparse && topK > c.experts, "routing.top_k", `is ${topK}; the model has ${c.experts} experts`);
  refuse(
    routing.secondExpertPolicy === "random" && topK > 1 && gateNormalization === "none",
    "routing.second_expert_policy",
    "random draws by the normalised gate (ST-MoE, appendix D) and needs gate_normalization top_k; here it is none",
  );
  const needsEncoder = "needs a sparse encoder layer, and the model has none; a decoder would see its future";
  const prioritized = routing.priority === "batch_prioritized";
  refuse(prioritized && !inEncoder, "routing.priority", `batch_prioritized ${needsEncoder}`);
  if (routing.encoderChoice !== "experts") return problems;

  refuse(!inEncoder, "routing.encoder_choice", `experts ${needsEncoder}`);
  refuse(prioritized && inEncoder, "routing.priority", "is the experts' own where they choose: leave it at position");
  for (const [field, { rule }] of [
    ["train_capacity", routing.trainCapacity],
    ["eval_capacity", routing.evalCapacity],
  ] as const)
    refuse(
      rule === "dropless",
      `routing.${field}`,
      "an expert that chooses takes as many tokens as it has slots; dropless, every expert would take every token",
    );
  refuse(
    routing.selectionBias !== undefined && !inDecoder,
    "routing.selection_bias",
    "balances what tokens choose; in this model only experts would",
  );
  refuse(
    losses.layerReduction === "pooled",
    "losses.layer_reduction",
    "pooled needs layers that route alike; where experts choose there is no load to balance",
  );
  return problems;
}

/** What the router of the sparse layer `mlp`, of `tokens` tokens, is told. */
export function routerOptions(
  { graph: g, config: c, options: o, step }: Pick<SwitchBuild, "graph" | "config" | "options" | "step">,
  { stack, mlp, tokens }: { readonly stack: Stack; readonly mlp: string; readonly tokens: number },
): RouterOptions {
  const { routing, losses } = o;
  const share = losses.layerReduction === "mean" ? 1 / (sparseLayers(c, "encoder") + sparseLayers(c, "decoder")) : 1;
  // In a decoder, a place that depends on later tokens would leak them.
  const causal = stack === "decoder";
  const choose = causal ? "tokens" : (routing.encoderChoice ?? "tokens");
  const biasKey = selectionBiasKey(mlp);
  const biased = choose === "tokens" && (routing.selectionBias !== undefined || c.selectionBiases.has(biasKey));
  const topK = routing.topK ?? c.topK;
  const forced = o.replay && choose === "tokens";
  return {
    topK,
    forcedIds: forced ? g.input(`forced_experts.${mlp}`, [tokens, topK], "u32") : undefined,
    normalizeGates: (routing.gateNormalization ?? c.gateNormalization) === "top_k",
    tokensPerGroup: groupTokens(o, tokens),
    capacity: capacityOf(o),
    secondExpertPolicy: o.train ? (routing.secondExpertPolicy ?? "always") : "always",
    priority: causal ? "position" : (routing.priority ?? "position"),
    choose,
    selectionBias: biased ? g.input(biasKey, [c.experts], "f32") : undefined,
    countAll: losses.fCounts === "all_k",
    denominator: "routable",
    balanceCoefficient: losses.balanceCoefficient * share,
    zCoefficient: losses.zCoefficient * share,
    lossGradient: o.lossGradient,
    step,
  };
}
