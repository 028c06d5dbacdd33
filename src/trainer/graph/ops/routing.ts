// The router of a sparse layer, and the dispatch of its decisions: a stable sort of the assignments by expert. Nothing is
// read back: the dispatch kernels write which rows belong to which expert, for the experts (experts.ts) to read.

import {
  type DispatchDims,
  DROPLESS,
  moeDispatch,
  moeDispatchScratch,
  moeMaxRows,
} from "../../../kernels/moe_dispatch.ts";
import { routerBackward, routerForward, routerSoftmax } from "../../../kernels/router.ts";
import { expertChoice, priorityOrder } from "../../../kernels/routing_priority.ts";
import { type GroupSlots, groupCount, lastGroupTokens, type TokenGroups } from "../../../kernels/token_groups.ts";
import type { CapacityRule } from "../../types.ts";
import type { Graph, Tensor } from "../graph.ts";
import { countRouterLosses, declareStatistics, type RouterStatistics } from "./router_losses.ts";

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
  /** [experts] f32: tokens choose by probability + this, and weigh by the probability. */
  readonly selectionBias?: Tensor;
  /** [tokens, topK] u32: experts that tokens take whatever they would choose (kernels/router.ts); where tokens choose. */
  readonly forcedIds?: Tensor;
  /** Consecutive tokens that compete for slots and over which the losses are averaged; the last group may be shorter. */
  readonly tokensPerGroup: number;
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

/** Which rows the assignments of T tokens with k choices among E experts got. */
interface Dispatched {
  readonly maxRows: number;
  readonly rowTile: number;
  /** [T, k] u32: sorted row of each assignment, 0xffffffff when dropped or padding. */
  readonly rowOfAssignment: Tensor;
  readonly sourceOfRow: Tensor;
  readonly expertOfBlock: Tensor;
  readonly expertOffset: Tensor;
  /** [E] u32: rows each expert received. */
  readonly expertCount: Tensor;
  /** [E] u32: assignments before drops. */
  readonly demand: Tensor;
}

/** What a router decided, as the expert layers and the telemetry need it. */
export interface Routing extends Dispatched {
  readonly experts: number;
  /** Choices per token: all experts where experts choose. */
  readonly topK: number;
  readonly choose: RouterOptions["choose"];
  /** Assignments to expect, for counting work: of every token, or of every slot where experts choose. */
  readonly assignments: number;
  /**
   * [T, k] u32; E where a choice is not used: padding, a later expert that the random policy left out, one that did not
   * choose.
   */
  readonly expertIds: Tensor;
  /** [T, k] u32: what was chosen, used or not. */
  readonly chosenIds: Tensor;
  /** [T, k] f32 */
  readonly gates: Tensor;
  /** [2] f32: load-balancing loss, z-loss. */
  readonly losses: Tensor;
  /** [E] f32 */
  readonly selectionBias?: Tensor;
  /** [T, k] u32 */
  readonly forcedIds?: Tensor;
  readonly statistics: RouterStatistics;
}

/** Rows per expert are padded to this many, the height of a grouped matmul's tile. */
const ROW_TILE = { software: 8, hardware: 64 } as const;

/** Slots per expert in a group of `tokens` (moe-spec section 1, `capacity`). */
function slotsOf(rule: CapacityRule, tokens: number, experts: number, topK: number): number {
  if (rule.rule === "dropless") return DROPLESS;
  if (rule.rule === "fixed") return rule.slots!;
  const counted = rule.rule === "factor_k" ? tokens * topK : tokens;
  return Math.max(Math.round((rule.factor! * counted) / experts), 4);
}

/** Slots per expert in the groups of a batch. */
function groupSlots(rule: CapacityRule, groups: TokenGroups, experts: number, topK: number): Required<GroupSlots> {
  return {
    capacity: slotsOf(rule, groups.tokensPerGroup, experts, topK),
    lastCapacity: slotsOf(rule, lastGroupTokens(groups), experts, topK),
  };
}

/** Routes by `logits` [tokens, experts]; `mask` [tokens] u32 is 1 where a token may be routed. */
export function route(g: Graph, name: string, logits: Tensor, mask: Tensor, o: RouterOptions): Routing {
  const [tokens, experts] = logits.shape;
  const { step, selectionBias, forcedIds } = o;
  const byExperts = o.choose === "experts";
  // Where experts choose, every expert is a choice of every token, taken or not.
  const topK = byExperts ? experts : o.topK;
  const normalizeGates = o.normalizeGates && !byExperts;
  const tokensPerGroup = Math.min(o.tokensPerGroup, tokens);
  const grouped = { tokens, tokensPerGroup };
  const slots = groupSlots(o.capacity, grouped, experts, o.topK);
  const probabilities = g.activation(`${name}_probabilities`, [tokens, experts]);
  const gates = g.activation(`${name}_gates`, [tokens, topK], [logits]);
  const expertIds = g.indices(`${name}_expert_ids`, [tokens, topK]);
  const logSumExp = g.activation(`${name}_log_sum_exp`, [tokens]);
  const statistics = declareStatistics(g, name, groupCount(grouped), experts);

  // Which experts were chosen, used or not: the gates' normalisation and its gradient need all of them.
  const random = o.secondExpertPolicy === "random" && o.topK > 1 && !byExperts;
  const chosenIds = random ? g.indices(`${name}_chosen_ids`, [tokens, topK]) : expertIds;
  const use = random ? g.nextUse() : 0;

  g.add({
    name: "router",
    reads: [logits, mask, selectionBias, forcedIds, random ? step : undefined],
    writes: [probabilities, expertIds, random ? chosenIds : undefined, gates, logSumExp],
    flops: 5 * tokens * experts,
    startsGradient: o.lossGradient && (o.balanceCoefficient > 0 || o.zCoefficient > 0),
    lower: () =>
      byExperts
        ? [
            ...routerSoftmax({ logits, probabilities, logSumExp }, { tokens, experts }),
            ...expertChoice({ probabilities, mask, expertIds, gates }, { ...grouped, ...slots, experts }),
          ]
        : routerForward(
            {
              logits,
              mask,
              selectionBias,
              forcedIds,
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
      const lossLoad = pooled?.load ?? statistics.load;
      const lossTokens = pooled?.tokens ?? statistics.groupTokens;
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

  const routed = { probabilities, expertIds, logSumExp, mask };
  const losses = countRouterLosses(g, name, routed, statistics, { tokensPerGroup, topK }, o);
  const tokenOrder =
    o.priority === "batch_prioritized" && !byExperts
      ? priorityNode(g, name, probabilities, expertIds, tokensPerGroup)
      : undefined;
  const dispatched = dispatch(g, name, expertIds, tokenOrder, { ...grouped, ...slots, topK, experts });

  g.keep(expertIds, chosenIds, gates, dispatched.rowOfAssignment, dispatched.expertCount, dispatched.demand, losses);
  const perExpert = Math.min(tokensPerGroup, slots.capacity) * groupCount(grouped);
  const assignments = byExperts ? experts * Math.min(tokens, perExpert) : tokens * topK;
  return {
    experts,
    topK,
    choose: o.choose,
    assignments,
    ...dispatched,
    expertIds,
    chosenIds,
    gates,
    losses,
    selectionBias: byExperts ? undefined : selectionBias,
    forcedIds,
    statistics,
  };
}

/** The order in which tokens take slots: [tokens] u32, by descending probability of their first choice. */
function priorityNode(
  g: Graph,
  name: string,
  probabilities: Tensor,
  expertIds: Tensor,
  tokensPerGroup: number,
): Tensor {
  const [tokens, experts] = probabilities.shape;
  const topK = expertIds.shape[1];
  const tokenOrder = g.indices(`${name}_token_order`, [tokens]);
  g.add({
    name: "routing_priority_order",
    reads: [probabilities, expertIds],
    writes: [tokenOrder],
    flops: tokens * tokensPerGroup,
    lower: () => priorityOrder({ probabilities, expertIds, tokenOrder }, { tokens, tokensPerGroup, experts, topK }),
  });
  return tokenOrder;
}

/** Sorts the assignments by expert and gives each its row. */
function dispatch(
  g: Graph,
  name: string,
  expertIds: Tensor,
  tokenOrder: Tensor | undefined,
  sizes: Omit<DispatchDims, "rowTile">,
): Dispatched {
  const { tokens, topK, experts } = sizes;
  const rowTile = ROW_TILE[g.target];
  const maxRows = moeMaxRows({ ...sizes, rowTile });
  const written = {
    rowOfAssignment: g.indices(`${name}_row_of_assignment`, [tokens, topK]),
    sourceOfRow: g.indices(`${name}_source_of_row`, [maxRows]),
    expertOfBlock: g.indices(`${name}_expert_of_block`, [maxRows / rowTile]),
    expertOffset: g.indices(`${name}_expert_offset`, [experts + 1]),
    expertCount: g.indices(`${name}_expert_count`, [experts]),
    demand: g.indices(`${name}_demand`, [experts]),
  };
  const dims = { ...sizes, rowTile, maxRows };
  const scratch = g.indices("moe_dispatch_scratch", [moeDispatchScratch(dims)]);
  g.add({
    name: "moe_dispatch",
    reads: [expertIds, tokenOrder],
    writes: Object.values(written),
    scratch: [scratch],
    lower: () => moeDispatch({ expertIds, tokenOrder, scratch, ...written }, dims),
  });
  return { rowTile, maxRows, ...written };
}
