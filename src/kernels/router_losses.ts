// What a router's losses are made of: load and mean probability per loss group, and the two losses themselves.
//
// Means over loss groups of consecutive tokens (flaxformer `routing.py`, ST-MoE section 3):
//   L_B = mean_g  experts · Σ_e load[g,e] · meanProbability[g,e]      load carries no gradient
//   L_z = mean_g  mean_t (logsumexp_e logits[t,e])²
// Load counts choices, not kept assignments: what capacity drops later is still load. Sums are two-stage and ordered:
// chunks of tokens first, then the chunks of a group.

import { type Command, call, defineKernel, LINEAR_INDEX, read, spread, write } from "./kernel.ts";
import { GROUP_BOUNDS, groupCount, type TokenGroups } from "./token_groups.ts";

const WORKGROUP = 64;
/** Tokens that one thread adds up before the second stage takes over. */
const CHUNK = 64;

const HEAD = /* wgsl */ `${LINEAR_INDEX}${GROUP_BOUNDS}
const WORKGROUP = ${WORKGROUP}u;
const CHUNK = ${CHUNK}u;
fn groups() -> u32 { return (params.tokens + params.tokens_per_group - 1u) / params.tokens_per_group; }
`;

// Scratch of the statistics, per (group, chunk): [0, experts) choices, [experts, 2·experts) probability sums, then the
// number of routable tokens and the sum of squared logsumexp.
const partialKernel = defineKernel({
  name: "router_statistics_partial",
  params: {
    tokens: "u32",
    tokens_per_group: "u32",
    experts: "u32",
    top_k: "u32",
    counted_choices: "u32",
    masked_z: "f32",
  },
  buffers: {
    probabilities: read("f32"),
    expert_ids: read("u32"),
    log_sum_exp: read("f32"),
    mask: read("u32"),
    scratch: write("f32"), // [groups, chunks, 2 * experts + 2]
  },
  wgsl: /* wgsl */ `${HEAD}
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lane: u32) {
  // One thread per (group, chunk, expert), and one more per (group, chunk) for what is not per expert.
  let thread = linear_index(wid, num) * WORKGROUP + lane;
  let chunks = (params.tokens_per_group + CHUNK - 1u) / CHUNK;
  let columns = params.experts + 1u;
  if (thread >= groups() * chunks * columns) { return; }
  let e = thread % columns;
  let chunk = (thread / columns) % chunks;
  let group = thread / (columns * chunks);
  let first = group_first(group) + chunk * CHUNK;
  let last = min(first + CHUNK, group_end(group));
  let at = (group * chunks + chunk) * (2u * params.experts + 2u);
  if (e < params.experts) {
    var choices = 0u;
    var probability = 0.0;
    for (var t = first; t < last; t++) {
      if (mask[t] != 0u) { probability += probabilities[t * params.experts + e]; }
      for (var j = 0u; j < params.counted_choices; j++) {
        choices += u32(expert_ids[t * params.top_k + j] == e);
      }
    }
    scratch[at + e] = f32(choices);
    scratch[at + params.experts + e] = probability;
  } else {
    var routable = 0u;
    var z = 0.0;
    for (var t = first; t < last; t++) {
      if (mask[t] != 0u) {
        routable++;
        z += log_sum_exp[t] * log_sum_exp[t];
      } else {
        z += params.masked_z;
      }
    }
    scratch[at + 2u * params.experts] = f32(routable);
    scratch[at + 2u * params.experts + 1u] = z;
  }
}
`,
});

const statisticsKernel = defineKernel({
  name: "router_statistics",
  params: { tokens: "u32", tokens_per_group: "u32", experts: "u32", all_tokens: "u32" },
  buffers: {
    scratch: read("f32"),
    load: write("f32"), //             [groups, experts]
    mean_probability: write("f32"), // [groups, experts]
    group_tokens: write("f32"), //     [groups]
    z_sum: write("f32"), //            [groups]
  },
  wgsl: /* wgsl */ `${HEAD}
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lane: u32) {
  let thread = linear_index(wid, num) * WORKGROUP + lane;
  let chunks = (params.tokens_per_group + CHUNK - 1u) / CHUNK;
  let columns = params.experts + 1u;
  if (thread >= groups() * columns) { return; }
  let e = thread % columns;
  let group = thread / columns;
  let stride = 2u * params.experts + 2u;
  // Two sums over the chunks: choices and probability of this expert, or (last column) nothing and z.
  var first_sum = 0.0;
  var second_sum = 0.0;
  var routable = 0.0;
  for (var c = 0u; c < chunks; c++) {
    let at = (group * chunks + c) * stride;
    routable += scratch[at + 2u * params.experts];
    if (e < params.experts) {
      first_sum += scratch[at + e];
      second_sum += scratch[at + params.experts + e];
    } else {
      second_sum += scratch[at + 2u * params.experts + 1u];
    }
  }
  let tokens = select(routable, f32(group_end(group) - group_first(group)), params.all_tokens != 0u);
  let inverse = select(0.0, 1.0 / max(tokens, 1.0), tokens > 0.0);
  if (e < params.experts) {
    load[group * params.experts + e] = first_sum * inverse;
    mean_probability[group * params.experts + e] = second_sum * inverse;
  } else {
    group_tokens[group] = tokens;
    z_sum[group] = second_sum * inverse;
  }
}
`,
});

/** Elements (f32) of the scratch buffer of {@link routerStatistics}. */
export const routerStatisticsScratch = (dims: TokenGroups & { experts: number }): number =>
  groupCount(dims) * Math.ceil(dims.tokensPerGroup / CHUNK) * (2 * dims.experts + 2);

/**
 * What the losses need, per group of tokens. Writes load [groups, experts] = choices of e (first choices only, all k when
 * `countAll`) / denominator; meanProbability [groups, experts] = Σ over routable tokens of p / denominator; zSum [groups] =
 * Σ logSumExp² / denominator; groupTokens [groups] f32 = the denominator. It is the number of routable tokens (`"routable"`,
 * default; a group without any has all statistics 0), or all tokens of the group (`"all"`: flaxformer, where a masked token
 * also enters z with logits of zero, log(experts)²).
 */
export function routerStatistics<T>(
  buffers: {
    probabilities: T;
    expertIds: T;
    logSumExp: T;
    mask: T;
    scratch: T;
    load: T;
    meanProbability: T;
    groupTokens: T;
    zSum: T;
  },
  dims: TokenGroups & {
    experts: number;
    topK: number;
    countAll: boolean;
    denominator?: "routable" | "all";
  },
): Command<T>[] {
  const { tokens, tokensPerGroup, experts, topK, countAll, denominator = "routable" } = dims;
  const all = denominator === "all";
  const groups = groupCount(dims);
  const chunks = Math.ceil(tokensPerGroup / CHUNK);
  return [
    call(
      partialKernel,
      {
        tokens,
        tokens_per_group: tokensPerGroup,
        experts,
        top_k: topK,
        counted_choices: countAll ? topK : 1,
        masked_z: all ? Math.log(experts) ** 2 : 0,
      },
      {
        probabilities: buffers.probabilities,
        expert_ids: buffers.expertIds,
        log_sum_exp: buffers.logSumExp,
        mask: buffers.mask,
        scratch: buffers.scratch,
      },
      spread(Math.ceil((groups * chunks * (experts + 1)) / WORKGROUP)),
    ),
    call(
      statisticsKernel,
      { tokens, tokens_per_group: tokensPerGroup, experts, all_tokens: Number(all) },
      {
        scratch: buffers.scratch,
        load: buffers.load,
        mean_probability: buffers.meanProbability,
        group_tokens: buffers.groupTokens,
        z_sum: buffers.zSum,
      },
      spread(Math.ceil((groups * (experts + 1)) / WORKGROUP)),
    ),
  ];
}

const lossesKernel = defineKernel({
  name: "router_losses",
  params: { groups: "u32", experts: "u32", out_offset: "u32", balance: "u32" },
  buffers: { load: read("f32"), mean_probability: read("f32"), z_sum: read("f32"), out: write("f32") },
  wgsl: /* wgsl */ `
const WORKGROUP = ${WORKGROUP}u;
var<workgroup> partial: array<vec2f, WORKGROUP>;
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32) {
  var sums = vec2f(0.0);
  for (var i = lane; i < params.groups * params.experts; i += WORKGROUP) { sums.x += load[i] * mean_probability[i]; }
  for (var g = lane; g < params.groups; g += WORKGROUP) { sums.y += z_sum[g]; }
  partial[lane] = sums;
  workgroupBarrier();
  if (lane == 0u) {
    for (var i = 1u; i < WORKGROUP; i++) { sums += partial[i]; }
    out[params.out_offset] = sums.x * f32(params.experts * params.balance) / f32(params.groups);
    out[params.out_offset + 1u] = sums.y / f32(params.groups);
  }
}
`,
});

/**
 * One layer's losses from its statistics: out[outOffset] = L_B, out[outOffset + 1] = L_z, without coefficients. Where
 * experts choose, loads are balanced by construction and L_B is 0 (`balance` false).
 */
export function routerLosses<T>(
  buffers: { load: T; meanProbability: T; zSum: T; out: T },
  dims: { groups: number; experts: number; outOffset: number; balance?: boolean },
): Command<T>[] {
  const { groups, experts, outOffset, balance = true } = dims;
  return [
    call(
      lossesKernel,
      { groups, experts, out_offset: outOffset, balance: Number(balance) },
      { load: buffers.load, mean_probability: buffers.meanProbability, z_sum: buffers.zSum, out: buffers.out },
      [1],
    ),
  ];
}
