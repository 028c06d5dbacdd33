// What a router's losses are made of, as graph nodes: a layer's statistics and its two losses, and the losses pooled over
// layers. Their gradient is part of the router's own (routing.ts).

import {
  routerLosses,
  routerPool,
  routerPoolScratch,
  routerStatistics,
  routerStatisticsScratch,
} from "../../../kernels/router.ts";
import type { Graph, Tensor } from "../graph.ts";
import type { RouterOptions, Routing } from "./routing.ts";

/** What a layer's losses are made of, per loss group. */
export interface RouterStatistics {
  readonly groups: number;
  /** [groups, E] f32 */
  readonly load: Tensor;
  /** [groups, E] f32 */
  readonly meanProbability: Tensor;
  /** [groups] f32 */
  readonly groupTokens: Tensor;
  /** [groups] f32 */
  readonly zSum: Tensor;
  /** Set by {@link poolRouterLosses}: the statistics whose losses are differentiated instead of the layer's own. */
  pooled?: { readonly load: Tensor; readonly tokens: Tensor };
}

/** What the statistics are taken of. */
interface Routed {
  readonly probabilities: Tensor;
  readonly expertIds: Tensor;
  readonly logSumExp: Tensor;
  readonly mask: Tensor;
}

/**
 * Declares a layer's statistics, so that the router's gradient can name them before {@link countRouterLosses} fills them.
 */
export function declareStatistics(g: Graph, name: string, groups: number, experts: number): RouterStatistics {
  return {
    groups,
    load: g.activation(`${name}_load`, [groups, experts]),
    meanProbability: g.activation(`${name}_mean_probability`, [groups, experts]),
    groupTokens: g.activation(`${name}_group_tokens`, [groups]),
    zSum: g.activation(`${name}_z_sum`, [groups]),
  };
}

/** Fills a layer's statistics; returns its losses, [2] f32: load balancing (0 where experts choose) and z. */
export function countRouterLosses(
  g: Graph,
  name: string,
  routed: Routed,
  statistics: RouterStatistics,
  { tokensPerGroup, topK }: { tokensPerGroup: number; topK: number },
  o: Pick<RouterOptions, "choose" | "countAll" | "denominator">,
): Tensor {
  const { probabilities, expertIds, logSumExp, mask } = routed;
  const { groups, load, meanProbability, groupTokens, zSum } = statistics;
  const [tokens, experts] = probabilities.shape;
  const losses = g.activation(`${name}_losses`, [2]);
  const counted = { tokens, tokensPerGroup, experts, topK, countAll: o.countAll, denominator: o.denominator };
  const scratch = g.activation("router_statistics_scratch", [routerStatisticsScratch(counted)]);
  g.add({
    name: "router_statistics",
    reads: [probabilities, expertIds, logSumExp, mask],
    writes: [load, meanProbability, groupTokens, zSum, losses],
    scratch: [scratch],
    flops: 4 * tokens * experts,
    lower: () => [
      ...routerStatistics(
        { probabilities, expertIds, logSumExp, mask, scratch, load, meanProbability, groupTokens, zSum },
        counted,
      ),
      ...routerLosses(
        { load, meanProbability, zSum, out: losses },
        { groups, experts, outOffset: 0, balance: o.choose === "tokens" },
      ),
    ],
  });
  return losses;
}

/**
 * Pools the losses of several routers over all their tokens (`layer_reduction: pooled`): returns [2] f32, L_B and L_z,
 * and makes every router's gradient that of the pooled losses, by its own coefficients. Call it before
 * differentiating; each layer's own losses are still reported.
 * @throws RangeError when the routers differ in experts.
 */
export function poolRouterLosses(g: Graph, routings: readonly Routing[]): Tensor {
  const { experts } = routings[0];
  if (routings.some((r) => r.experts !== experts))
    throw new RangeError("losses are pooled only over layers with the same number of experts");
  const load = g.activation("pooled_load", [experts]);
  const tokens = g.activation("pooled_tokens", [1]);
  const losses = g.activation("pooled_losses", [2]);
  const sums = g.activation("router_pool_scratch", [routerPoolScratch(experts)]);
  const layers = routings.map((r) => r.statistics);
  g.add({
    name: "router_pool",
    reads: layers.flatMap((s) => [s.load, s.meanProbability, s.groupTokens, s.zSum]),
    writes: [load, tokens, losses],
    scratch: [sums],
    lower: () => routerPool(layers, { sums, load, tokens, losses }, experts),
  });
  for (const s of layers) s.pooled = { load, tokens };
  g.keep(losses);
  return losses;
}
