// The router in float64 on plain arrays: the definition that the kernels are tested against.

import { groupCount, type TokenGroups } from "./token_groups.ts";

export interface RouterForward {
  probabilities: Float64Array; // [tokens, experts]
  expertIds: Uint32Array; //      [tokens, topK]; `experts` where masked
  gates: Float64Array; //         [tokens, topK]
  logSumExp: Float64Array; //     [tokens]
}

/**
 * Softmax over experts, then the topK largest logits per routable token (of probability + bias, where there is one), ties to
 * the lower id.
 */
export function routerForwardReference(
  logits: ArrayLike<number>, // [tokens, experts]
  mask: ArrayLike<number>, //   [tokens]
  dims: { tokens: number; experts: number; topK: number; normalizeGates: boolean },
  selectionBias?: ArrayLike<number>, // [experts]
): RouterForward {
  const { tokens, experts, topK, normalizeGates } = dims;
  const probabilities = new Float64Array(tokens * experts);
  const expertIds = new Uint32Array(tokens * topK).fill(experts);
  const gates = new Float64Array(tokens * topK);
  const logSumExp = new Float64Array(tokens);
  for (let t = 0; t < tokens; t++) {
    const row = Array.from({ length: experts }, (_, e) => logits[t * experts + e]);
    const largest = row.reduce((a, b) => Math.max(a, b));
    const sum = row.reduce((total, x) => total + Math.exp(x - largest), 0);
    logSumExp[t] = largest + Math.log(sum);
    row.forEach((x, e) => {
      probabilities[t * experts + e] = Math.exp(x - largest) / sum;
    });
    if (!mask[t]) continue;
    const scores = selectionBias ? row.map((_, e) => probabilities[t * experts + e] + selectionBias[e]) : row;
    const order = row.map((_, e) => e).sort((a, b) => scores[b] - scores[a] || a - b);
    const chosen = order.slice(0, topK).map((e) => probabilities[t * experts + e]);
    const scale = normalizeGates ? chosen.reduce((a, b) => a + b) : 1;
    for (let j = 0; j < topK; j++) {
      expertIds[t * topK + j] = order[j];
      gates[t * topK + j] = chosen[j] / scale;
    }
  }
  return { probabilities, expertIds, gates, logSumExp };
}

export interface RouterStatistics {
  load: Float64Array; //            [groups, experts]
  meanProbability: Float64Array; // [groups, experts]
  groupTokens: Float64Array; //     [groups]
  zSum: Float64Array; //            [groups]
}

/** Means over each loss group; see `routerStatistics` for the two denominators. */
export function routerStatisticsReference(
  forward: RouterForward,
  mask: ArrayLike<number>,
  dims: TokenGroups & {
    experts: number;
    topK: number;
    countAll: boolean;
    denominator?: "routable" | "all";
  },
): RouterStatistics {
  const { tokens, tokensPerGroup, experts, topK } = dims;
  const groups = groupCount(dims);
  const all = dims.denominator === "all";
  const load = new Float64Array(groups * experts);
  const meanProbability = new Float64Array(groups * experts);
  const groupTokens = new Float64Array(groups);
  const zSum = new Float64Array(groups);
  for (let t = 0; t < tokens; t++) {
    const g = Math.floor(t / tokensPerGroup);
    if (!mask[t]) {
      if (all) zSum[g] += Math.log(experts) ** 2;
      continue;
    }
    groupTokens[g] += 1;
    zSum[g] += forward.logSumExp[t] ** 2;
    for (let e = 0; e < experts; e++) meanProbability[g * experts + e] += forward.probabilities[t * experts + e];
    for (let j = 0; j < (dims.countAll ? topK : 1); j++) load[g * experts + forward.expertIds[t * topK + j]] += 1;
  }
  for (let g = 0; g < groups; g++) {
    if (all) groupTokens[g] = Math.min(tokensPerGroup, tokens - g * tokensPerGroup);
    const scale = groupTokens[g] > 0 ? 1 / groupTokens[g] : 0;
    zSum[g] *= scale;
    for (let e = 0; e < experts; e++) {
      load[g * experts + e] *= scale;
      meanProbability[g * experts + e] *= scale;
    }
  }
  return { load, meanProbability, groupTokens, zSum };
}

/** [L_B, L_z] of one layer, means over groups. */
export function routerLossesReference(
  statistics: RouterStatistics,
  dims: { groups: number; experts: number },
): [number, number] {
  const { load, meanProbability, zSum } = statistics;
  const balance = load.reduce((sum, f, i) => sum + f * meanProbability[i], 0);
  return [(dims.experts * balance) / dims.groups, zSum.reduce((a, b) => a + b, 0) / dims.groups];
}

/** dLogits [tokens, experts] of the gates (when dGates is given) and of both losses. */
export function routerBackwardReference(
  forward: RouterForward,
  statistics: RouterStatistics,
  mask: ArrayLike<number>,
  dGates: ArrayLike<number> | undefined, // [tokens, topK]
  dims: TokenGroups & {
    experts: number;
    topK: number;
    normalizeGates: boolean;
    balanceCoefficient: number;
    zCoefficient: number;
    lossScale: number;
  },
): Float64Array {
  const { tokens, tokensPerGroup, experts, topK, lossScale } = dims;
  const groups = groupCount(dims);
  const dLogits = new Float64Array(tokens * experts);
  for (let t = 0; t < tokens; t++) {
    if (!mask[t]) continue;
    const g = Math.floor(t / tokensPerGroup);
    const p = forward.probabilities.subarray(t * experts, (t + 1) * experts);
    const ids = forward.expertIds.subarray(t * topK, (t + 1) * topK);
    const share = lossScale / (statistics.groupTokens[g] * groups);
    const dp = Array.from(p, (_, e) => dims.balanceCoefficient * share * experts * statistics.load[g * experts + e]);
    if (dGates) {
      const sum = dims.normalizeGates ? ids.reduce((total, e) => total + p[e], 0) : 1;
      const mean = dims.normalizeGates ? ids.reduce((m, e, j) => m + dGates[t * topK + j] * (p[e] / sum), 0) : 0;
      ids.forEach((e, j) => {
        dp[e] += (dGates[t * topK + j] - mean) / sum;
      });
    }
    const mean = dp.reduce((m, d, e) => m + d * p[e], 0);
    const z = dims.zCoefficient * share * 2 * forward.logSumExp[t];
    for (let e = 0; e < experts; e++) dLogits[t * experts + e] = p[e] * (dp[e] - mean + z);
  }
  return dLogits;
}

/** [L_B, L_z] pooled over layers, weighted by their groups' tokens, and what `routerBackwardReference` needs for it. */
export function routerPoolReference(
  layers: readonly RouterStatistics[],
  experts: number,
): { losses: [number, number]; load: Float64Array; tokens: number } {
  const load = new Float64Array(experts);
  const probability = new Float64Array(experts);
  const tokens = layers.reduce((sum, layer) => sum + layer.groupTokens.reduce((a, b) => a + b, 0), 0);
  let z = 0;
  for (const layer of layers)
    layer.groupTokens.forEach((n, g) => {
      z += (n / tokens) * layer.zSum[g];
      for (let e = 0; e < experts; e++) {
        load[e] += (n / tokens) * layer.load[g * experts + e];
        probability[e] += (n / tokens) * layer.meanProbability[g * experts + e];
      }
    });
  const balance = load.reduce((sum, f, e) => sum + f * probability[e], 0);
  return { losses: [experts * balance, z], load, tokens };
}
