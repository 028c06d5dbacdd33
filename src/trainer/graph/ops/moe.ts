// The sparse layer: router, dispatch by stable sort, grouped expert matmuls, combine. Nothing is read back: the
// dispatch kernels write which rows belong to which expert, and the grouped matmuls over-dispatch a constant bound of
// row blocks that return early.

import { groupedMatmul, groupedWeightGradient } from "../../../kernels/grouped_matmul.ts";
import { moeCombine, moeCombineGatesGradient, moeCombineRowsGradient } from "../../../kernels/moe_combine.ts";
import { DROPLESS, moeDispatch, moeDispatchScratch, moeMaxRows } from "../../../kernels/moe_dispatch.ts";
import {
  routerBackward,
  routerForward,
  routerLosses,
  routerPool,
  routerPoolScratch,
  routerSoftmax,
  routerStatistics,
  routerStatisticsScratch,
} from "../../../kernels/router.ts";
import { expertChoice, priorityOrder } from "../../../kernels/routing_priority.ts";
import type { CapacityRule } from "../../types.ts";
import { type Graph, type Tensor, trainableSlots } from "../graph.ts";
import { reluBackward } from "./dense.ts";

export interface RouterOptions {
  readonly topK: number;
  /** Divide the chosen gates by their sum (`gate_normalization: top_k`). */
  readonly normalizeGates: boolean;
  /** `random`: choice i > 1 is used with probability min(1, gate_i / 0.2) (ST-MoE appendix D); for training only. */
  readonly secondExpertPolicy: "always" | "random";
  /** Who of a group takes a slot first: the token further left, or the one with the larger top-1 probability. */
  readonly priority: "position" | "batch_prioritized";
  /** Tokens choose experts, or each expert takes as many tokens as it has slots. */
  readonly choose: "tokens" | "experts";
  /** Groups of consecutive tokens that compete for slots and over which the losses are averaged. */
  readonly groups: number;
  readonly capacity: CapacityRule;
  /** f_e counts every choice (`all_k`) instead of the first (`top1`). */
  readonly countAll: boolean;
  /** Means over the tokens that may be routed, or over all of them (flaxformer). */
  readonly denominator: "routable" | "all";
  readonly balanceCoefficient: number;
  readonly zCoefficient: number;
  /** Whether the router losses send a gradient (training, and not switched off by the freeze plan). */
  readonly lossGradient: boolean;
  readonly step: Tensor;
}

/** What a router decided, as the expert layers and the telemetry need it. T tokens, k choices, E experts. */
export interface Routing {
  readonly experts: number;
  readonly topK: number;
  readonly maxRows: number;
  readonly rowTile: number;
  /** [T, k] u32; E where a choice is not used: padding, or a later expert that the random policy left out. */
  readonly expertIds: Tensor;
  /** [T, k] u32: what was chosen, used or not. */
  readonly chosenIds: Tensor;
  /** [T, k] f32 */
  readonly gates: Tensor;
  /** [T·k] u32: sorted row of each assignment, 0xffffffff when dropped or padding. */
  readonly rowOfAssignment: Tensor;
  readonly sourceOfRow: Tensor;
  readonly expertOfBlock: Tensor;
  readonly expertOffset: Tensor;
  /** [E] u32: rows each expert received. */
  readonly expertCount: Tensor;
  /** [E] u32: assignments before drops. */
  readonly demand: Tensor;
  /** [2] f32: load-balancing loss, z-loss. */
  readonly losses: Tensor;
  readonly statistics: RouterStatistics;
}

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

/** Rows per expert are padded to this many, the height of a grouped matmul's tile. */
const ROW_TILE = { software: 8, hardware: 64 } as const;

/** Slots per expert and group (moe-spec section 1, `capacity`). */
export function capacitySlots(rule: CapacityRule, tokensPerGroup: number, experts: number, topK: number): number {
  if (rule.rule === "dropless") return DROPLESS;
  if (rule.rule === "fixed") return rule.slots!;
  const tokens = rule.rule === "factor_k" ? tokensPerGroup * topK : tokensPerGroup;
  return Math.max(Math.round((rule.factor! * tokens) / experts), 4);
}

/** Routes by `logits` [tokens, experts]; `mask` [tokens] u32 is 1 where a token may be routed. */
export function route(g: Graph, name: string, logits: Tensor, mask: Tensor, o: RouterOptions): Routing {
  const [tokens, experts] = logits.shape;
  const { groups, step } = o;
  const byExperts = o.choose === "experts";
  // Where experts choose, every expert is a choice of every token, taken or not.
  const topK = byExperts ? experts : o.topK;
  const normalizeGates = o.normalizeGates && !byExperts;
  const tokensPerGroup = tokens / groups;
  const capacity = capacitySlots(o.capacity, tokensPerGroup, experts, o.topK);
  const probabilities = g.activation(`${name}_probabilities`, [tokens, experts]);
  const gates = g.activation(`${name}_gates`, [tokens, topK], [logits]);
  const expertIds = g.indices(`${name}_expert_ids`, [tokens, topK]);
  const logSumExp = g.activation(`${name}_log_sum_exp`, [tokens]);
  const load = g.activation(`${name}_load`, [groups, experts]);
  const groupTokens = g.activation(`${name}_group_tokens`, [groups]);
  const meanProbability = g.activation(`${name}_mean_probability`, [groups, experts]);
  const zSum = g.activation(`${name}_z_sum`, [groups]);
  const statistics: RouterStatistics = { groups, load, meanProbability, groupTokens, zSum };

  // Which experts were chosen, used or not: the gates' normalisation and its gradient need all of them.
  const random = o.secondExpertPolicy === "random" && o.topK > 1 && !byExperts;
  const chosenIds = random ? g.indices(`${name}_chosen_ids`, [tokens, topK]) : expertIds;
  const use = random ? g.nextUse() : 0;

  g.add({
    name: "router",
    reads: [logits, mask, random ? step : undefined],
    writes: [probabilities, expertIds, random ? chosenIds : undefined, gates, logSumExp],
    flops: 5 * tokens * experts,
    startsGradient: o.lossGradient && (o.balanceCoefficient > 0 || o.zCoefficient > 0),
    lower: () =>
      byExperts
        ? [
            ...routerSoftmax({ logits, probabilities, logSumExp }, { tokens, experts }),
            ...expertChoice({ probabilities, mask, expertIds, gates }, { tokens, tokensPerGroup, experts, capacity }),
          ]
        : routerForward(
            {
              logits,
              mask,
              probabilities,
              expertIds,
              gates,
              logSumExp,
              random: random ? { chosenIds, step } : undefined,
            },
            { tokens, experts, topK, normalizeGates, use },
          ),
    backward: (gradients) => {
      const dGates = gradients.of(gates);
      // Pooled statistics stand for one group that holds the tokens of every layer.
      const { pooled } = statistics;
      const lossLoad = pooled?.load ?? load;
      const lossTokens = pooled?.tokens ?? groupTokens;
      gradients.add(logits, false, (dLogits) =>
        g.add({
          name: "router_gradient",
          reads: [probabilities, chosenIds, dGates, logSumExp, mask, lossLoad, lossTokens, step],
          writes: [dLogits],
          flops: 8 * tokens * experts,
          lower: () =>
            routerBackward(
              {
                probabilities,
                expertIds: chosenIds,
                dGates,
                logSumExp,
                mask,
                load: lossLoad,
                groupTokens: lossTokens,
                step,
                dLogits,
              },
              {
                tokens,
                tokensPerGroup: pooled ? tokens : tokensPerGroup,
                groups: pooled ? 1 : groups,
                experts,
                topK,
                normalizeGates,
                balanceCoefficient: o.lossGradient && !byExperts ? o.balanceCoefficient : 0,
                zCoefficient: o.lossGradient ? o.zCoefficient : 0,
              },
            ),
        }),
      );
    },
  });

  const losses = g.activation(`${name}_losses`, [2]);
  const counted = { groups, tokensPerGroup, experts, topK, countAll: o.countAll, denominator: o.denominator };
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
        { groups, experts, outOffset: 0, balance: !byExperts },
      ),
    ],
  });

  const rowTile = ROW_TILE[g.target];
  const tokenOrder =
    o.priority === "batch_prioritized" && !byExperts ? g.indices(`${name}_token_order`, [tokens]) : undefined;
  if (tokenOrder)
    g.add({
      name: "routing_priority_order",
      reads: [probabilities, expertIds],
      writes: [tokenOrder],
      flops: tokens * tokensPerGroup,
      lower: () => priorityOrder({ probabilities, expertIds, tokenOrder }, { tokens, tokensPerGroup, experts, topK }),
    });
  const maxRows = moeMaxRows({ tokens, topK, experts, groups, capacity, rowTile });
  const rowOfAssignment = g.indices(`${name}_row_of_assignment`, [tokens, topK]);
  const sourceOfRow = g.indices(`${name}_source_of_row`, [maxRows]);
  const expertOfBlock = g.indices(`${name}_expert_of_block`, [maxRows / rowTile]);
  const expertOffset = g.indices(`${name}_expert_offset`, [experts + 1]);
  const expertCount = g.indices(`${name}_expert_count`, [experts]);
  const demand = g.indices(`${name}_demand`, [experts]);
  const dispatch = { tokens, groups, topK, experts, capacity, rowTile, maxRows };
  const dispatchScratch = g.indices("moe_dispatch_scratch", [moeDispatchScratch(dispatch)]);
  g.add({
    name: "moe_dispatch",
    reads: [expertIds, tokenOrder],
    writes: [rowOfAssignment, sourceOfRow, expertOfBlock, expertOffset, expertCount, demand],
    scratch: [dispatchScratch],
    lower: () =>
      moeDispatch(
        {
          expertIds,
          tokenOrder,
          scratch: dispatchScratch,
          rowOfAssignment,
          sourceOfRow,
          expertOfBlock,
          expertOffset,
          expertCount,
          demand,
        },
        dispatch,
      ),
  });

  g.keep(expertIds, chosenIds, gates, rowOfAssignment, expertCount, demand, losses);
  return {
    experts,
    topK,
    maxRows,
    rowTile,
    expertIds,
    chosenIds,
    gates,
    rowOfAssignment,
    sourceOfRow,
    expertOfBlock,
    expertOffset,
    expertCount,
    demand,
    losses,
    statistics,
  };
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

/**
 * One linear map per expert over sorted rows: weight [experts, n, k]. `gather` reads x [tokens, k] through the routing;
 * otherwise x is [maxRows, k]. Returns [maxRows, n], after ReLU when `relu`.
 */
export function expertLinear(
  g: Graph,
  name: string,
  x: Tensor,
  weight: Tensor,
  r: Routing,
  options: { gather: boolean; relu: boolean },
): Tensor {
  const [, n, k] = weight.shape;
  const { maxRows, rowTile, topK, expertOfBlock, expertOffset, expertCount } = r;
  const tokens = r.expertIds.shape[0];
  const gatherTopK = options.gather ? topK : undefined;
  const sourceOfRow = options.gather ? r.sourceOfRow : undefined;
  const out = g.activation(name, [maxRows, n], [x, weight]);
  const flops = 2 * tokens * topK * n * k;
  g.add({
    name: "expert_linear",
    reads: [x, weight, expertOfBlock, sourceOfRow],
    writes: [out],
    flops,
    lower: (target) =>
      groupedMatmul(
        { x, weight, out, expertOfBlock, sourceOfRow },
        { maxRows, rowTile, n, k, transposeWeight: true, gatherTopK, relu: options.relu },
        target,
      ),
    backward: (gradients) => {
      let dy = gradients.of(out)!;
      if (options.relu) dy = reluBackward(g, out, dy);
      gradients.add(x, false, (dX) => {
        const rows = options.gather ? g.activation(`d_${name}_rows`, [maxRows, k]) : dX;
        g.add({
          name: "expert_input_gradient",
          reads: [dy, weight, expertOfBlock],
          writes: [rows],
          flops,
          lower: (target) =>
            groupedMatmul(
              { x: dy, weight, out: rows, expertOfBlock },
              { maxRows, rowTile, n: k, k: n, transposeWeight: false },
              target,
            ),
        });
        if (options.gather)
          g.add({
            name: "moe_gather_gradient",
            reads: [rows, r.rowOfAssignment],
            writes: [dX],
            flops: tokens * topK * k,
            lower: () => moeCombine({ rows, rowOfAssignment: r.rowOfAssignment, out: dX }, { tokens, topK, width: k }),
          });
      });
      gradients.add(weight, false, (dWeight) => {
        const slots = trainableSlots(weight);
        const trainableExperts = g.constant("trainable_experts", Uint32Array.from(slots));
        g.add({
          name: "expert_weight_gradient",
          reads: [x, dy, expertOffset, expertCount, trainableExperts, sourceOfRow],
          writes: [dWeight],
          parameter: weight.parameter,
          flops: (flops * slots.length) / r.experts,
          lower: (target) =>
            groupedWeightGradient(
              { x, dy, out: dWeight, expertOffset, expertCount, trainableExperts, sourceOfRow },
              { slots: slots.length, n, k, gatherTopK },
              target,
            ),
        });
      });
    },
  });
  return out;
}

/** Each token's gate-weighted sum of its experts' rows; a dropped choice contributes exactly 0. */
export function combine(g: Graph, name: string, rows: Tensor, r: Routing): Tensor {
  const width = rows.shape[1];
  const { gates, rowOfAssignment, sourceOfRow, topK, maxRows } = r;
  const tokens = r.expertIds.shape[0];
  const out = g.activation(name, [tokens, width], [rows, gates]);
  g.add({
    name: "moe_combine",
    reads: [rows, gates, rowOfAssignment],
    writes: [out],
    flops: 2 * tokens * topK * width,
    lower: () => moeCombine({ rows, gates, rowOfAssignment, out }, { tokens, topK, width }),
    backward: (gradients) => {
      const dOut = gradients.of(out)!;
      gradients.add(gates, false, (dGates) =>
        g.add({
          name: "moe_combine_gates_gradient",
          reads: [dOut, rows, rowOfAssignment],
          writes: [dGates],
          flops: 2 * tokens * topK * width,
          lower: () => moeCombineGatesGradient({ dOut, rows, rowOfAssignment, dGates }, { tokens, topK, width }),
        }),
      );
      gradients.add(rows, false, (dRows) =>
        g.add({
          name: "moe_combine_rows_gradient",
          reads: [dOut, gates, sourceOfRow],
          writes: [dRows],
          flops: maxRows * width,
          lower: () => moeCombineRowsGradient({ dOut, gates, sourceOfRow, dRows }, { maxRows, topK, width }),
        }),
      );
    },
  });
  return out;
}
