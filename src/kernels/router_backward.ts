// The router's way back: from the gates and the two losses to the logits.
//
//   dp_e     = d(gates)/d(p_e) if e was chosen     +  c_B · s · experts · load[g,e] / (n_g · groups)
//   dlogit_e = p_e · (dp_e − Σ_i p_i dp_i)         +  c_z · s · 2 · logsumexp · p_e / (n_g · groups)
// with s the loss scale and n_g the denominator of the group's means. Normalised gates g_j = p_j / S, S the sum over
// the chosen, give dp_j = (dg_j − Σ_i dg_i g_i) / S. Gates are recomputed from the probabilities, so they need not be kept
// for the backward pass. A choice whose id is no expert's (a token an expert did not take) has no gate.

import { type Command, call, defineKernel, LINEAR_INDEX, madeOnce, read, spread, write } from "./kernel.ts";
import { STEP_SCALARS } from "./step_scalars.ts";
import { groupCount, type TokenGroups } from "./token_groups.ts";

const WORKGROUP = 64;

/** How gradient reaches the chosen probabilities: not at all (no dGates), as it is, or through the normalisation. */
type GatePath = "none" | "plain" | "normalized";

// d(loss)/d(probability of choice j), the losses apart.
const CHOICE_GRADIENT: Record<GatePath, string> = {
  none: "",
  plain: /* wgsl */ `
    let dp = d_gates[choice + j];`,
  normalized: /* wgsl */ `
    let dp = (d_gates[choice + j] - weighted / gate_sum) / gate_sum;`,
};

const NORMALIZATION = /* wgsl */ `
  var gate_sum = 0.0; // sum of the chosen probabilities
  var weighted = 0.0; // sum of d_gate * probability
  for (var j = 0u; j < params.top_k; j++) {
    if (expert_ids[choice + j] >= params.experts) { continue; }
    let p = probabilities[row + expert_ids[choice + j]];
    gate_sum += p;
    weighted += d_gates[choice + j] * p;
  }`;

function backwardKernel(path: GatePath) {
  const eachChoice = (body: string) =>
    path === "none"
      ? ""
      : /* wgsl */ `
  for (var j = 0u; j < params.top_k; j++) {
    let e = expert_ids[choice + j];
    if (e >= params.experts) { continue; }${CHOICE_GRADIENT[path]}
    ${body}
  }`;
  return defineKernel<string, string>({
    name: `router_backward_gates_${path}`,
    params: {
      tokens: "u32",
      tokens_per_group: "u32",
      groups: "u32",
      experts: "u32",
      top_k: "u32",
      balance_coefficient: "f32",
      z_coefficient: "f32",
    },
    buffers: {
      probabilities: read("f32"), // [tokens, experts]
      expert_ids: read("u32"), //    [tokens, top_k]
      ...(path === "none" ? {} : { d_gates: read("f32") }), // [tokens, top_k]
      log_sum_exp: read("f32"), //   [tokens]
      mask: read("u32"), //          [tokens]
      load: read("f32"), //          [groups, experts]
      group_tokens: read("f32"), //  [groups]
      step: { access: "read", type: "StepScalars" },
      d_logits: write("f32"), //     [tokens, experts]
    },
    wgsl: /* wgsl */ `${LINEAR_INDEX}${STEP_SCALARS}
const WORKGROUP = ${WORKGROUP}u;
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lane: u32) {
  let t = linear_index(wid, num) * WORKGROUP + lane;
  if (t >= params.tokens) { return; }
  let row = t * params.experts;
  let choice = t * params.top_k;
  if (mask[t] == 0u) {
    for (var e = 0u; e < params.experts; e++) { d_logits[row + e] = 0.0; }
    return;
  }
  let group = t / params.tokens_per_group;
  let loads = group * params.experts;
  let share = step.loss_scale / (group_tokens[group] * f32(params.groups));
  let balance = params.balance_coefficient * share * f32(params.experts);
  let z = params.z_coefficient * share * 2.0 * log_sum_exp[t];
${path === "normalized" ? NORMALIZATION : ""}
  var mean = 0.0; // sum of p * dp
  for (var e = 0u; e < params.experts; e++) { mean += probabilities[row + e] * balance * load[loads + e]; }
${eachChoice("mean += probabilities[row + e] * dp;")}
  for (var e = 0u; e < params.experts; e++) {
    d_logits[row + e] = probabilities[row + e] * (balance * load[loads + e] - mean + z);
  }
${eachChoice("d_logits[row + e] += probabilities[row + e] * dp;")}
}
`,
  });
}

const backward = madeOnce(backwardKernel);

/**
 * dLogits [tokens, experts] f32 of the gates and both losses; masked tokens exactly 0.
 * dGates [tokens, topK] carries the loss scale already; left out where nothing above the gates is differentiated.
 * load [groups, experts] and groupTokens [groups] are what `routerStatistics` wrote.
 */
export function routerBackward<T>(
  buffers: {
    probabilities: T;
    expertIds: T;
    dGates?: T;
    logSumExp: T;
    mask: T;
    load: T;
    groupTokens: T;
    step: T;
    dLogits: T;
  },
  dims: TokenGroups & {
    experts: number;
    topK: number;
    normalizeGates: boolean;
    balanceCoefficient: number;
    zCoefficient: number;
  },
): Command<T>[] {
  const { dGates } = buffers;
  const path = dGates === undefined ? "none" : dims.normalizeGates ? "normalized" : "plain";
  const bound: Record<string, T> = {
    probabilities: buffers.probabilities,
    expert_ids: buffers.expertIds,
    log_sum_exp: buffers.logSumExp,
    mask: buffers.mask,
    load: buffers.load,
    group_tokens: buffers.groupTokens,
    step: buffers.step,
    d_logits: buffers.dLogits,
  };
  if (dGates !== undefined) bound.d_gates = dGates;
  return [
    call(
      backward(path),
      {
        tokens: dims.tokens,
        tokens_per_group: dims.tokensPerGroup,
        groups: groupCount(dims),
        experts: dims.experts,
        top_k: dims.topK,
        balance_coefficient: dims.balanceCoefficient,
        z_coefficient: dims.zCoefficient,
      },
      bound,
      spread(Math.ceil(dims.tokens / WORKGROUP)),
    ),
  ];
}
