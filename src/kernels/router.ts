// The router of a sparse layer, forward: softmax over experts and the top-k choice.
//
// Everything is f32 whatever the compute type (Switch Transformers, "selective precision"). The choice compares logits,
// not probabilities: softmax is monotone, and two distinct logits whose probabilities round to one f32 are still told
// apart. Equal logits give the lower expert id, on every adapter, every time.
//
// One thread per token: experts are few, and this is noise beside the expert matmuls. The losses are in
// router_losses.ts, the way back in router_backward.ts.

import { type Command, call, defineKernel, LINEAR_INDEX, read, spread, write } from "./kernel.ts";

export { routerBackward } from "./router_backward.ts";
export { routerLosses, routerStatistics, routerStatisticsScratch } from "./router_losses.ts";

export const MAX_TOP_K = 16;

const WORKGROUP = 64;

const forwardKernel = (normalizeGates: boolean) =>
  defineKernel({
    name: normalizeGates ? "router_forward_normalized" : "router_forward",
    params: { tokens: "u32", experts: "u32", top_k: "u32" },
    buffers: {
      logits: read("f32"), //        [tokens, experts]
      mask: read("u32"), //          [tokens]
      probabilities: write("f32"), // [tokens, experts]
      expert_ids: write("u32"), //   [tokens, top_k]
      gates: write("f32"), //        [tokens, top_k]
      log_sum_exp: write("f32"), //  [tokens]
    },
    wgsl: /* wgsl */ `${LINEAR_INDEX}
const WORKGROUP = ${WORKGROUP}u;
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lane: u32) {
  let t = linear_index(wid, num) * WORKGROUP + lane;
  if (t >= params.tokens) { return; }
  let row = t * params.experts;

  // Softmax.
  var largest = logits[row];
  for (var e = 1u; e < params.experts; e++) { largest = max(largest, logits[row + e]); }
  var sum = 0.0;
  for (var e = 0u; e < params.experts; e++) {
    let p = exp(logits[row + e] - largest);
    probabilities[row + e] = p;
    sum += p;
  }
  for (var e = 0u; e < params.experts; e++) { probabilities[row + e] /= sum; }
  log_sum_exp[t] = largest + log(sum);

  // Top-k: choice j is the largest logit after choice j-1 in the order (logit descending, id ascending).
  let routable = mask[t] != 0u;
  var previous = 0.0;
  var previous_id = params.experts;
  var gate_sum = 0.0;
  for (var j = 0u; j < params.top_k; j++) {
    var best = 0.0;
    var best_id = params.experts;
    if (routable) {
      for (var e = 0u; e < params.experts; e++) {
        let x = logits[row + e];
        let remains = j == 0u || x < previous || (x == previous && e > previous_id);
        if (remains && (best_id == params.experts || x > best)) {
          best = x;
          best_id = e;
        }
      }
    }
    var gate = 0.0;
    if (best_id < params.experts) { gate = probabilities[row + best_id]; }
    expert_ids[t * params.top_k + j] = best_id;
    gates[t * params.top_k + j] = gate;
    gate_sum += gate;
    previous = best;
    previous_id = best_id;
  }
${
  normalizeGates
    ? /* wgsl */ `
  if (gate_sum > 0.0) {
    for (var j = 0u; j < params.top_k; j++) { gates[t * params.top_k + j] /= gate_sum; }
  }`
    : ""
}
}
`,
  });

/**
 * Softmax and top-k choice.
 * Reads logits [tokens, experts] f32, mask [tokens] u32 (1 = routable). Writes probabilities [tokens, experts] (every
 * token), expertIds [tokens, topK] u32 (`experts` for masked tokens), gates [tokens, topK] f32 (0 for masked tokens;
 * divided by their sum when `normalizeGates`), logSumExp [tokens] f32.
 * @throws RangeError when topK is not in 1..min(experts, 16).
 */
export function routerForward<T>(
  buffers: { logits: T; mask: T; probabilities: T; expertIds: T; gates: T; logSumExp: T },
  dims: { tokens: number; experts: number; topK: number; normalizeGates: boolean },
): Command<T>[] {
  const { tokens, experts, topK } = dims;
  checkTopK(topK, experts);
  return [
    call(
      forwardKernel(dims.normalizeGates),
      { tokens, experts, top_k: topK },
      {
        logits: buffers.logits,
        mask: buffers.mask,
        probabilities: buffers.probabilities,
        expert_ids: buffers.expertIds,
        gates: buffers.gates,
        log_sum_exp: buffers.logSumExp,
      },
      spread(Math.ceil(tokens / WORKGROUP)),
    ),
  ];
}

function checkTopK(topK: number, experts: number): void {
  if (!(topK >= 1 && topK <= Math.min(experts, MAX_TOP_K)))
    throw new RangeError(`top_k must be between 1 and ${Math.min(experts, MAX_TOP_K)}, got ${topK}`);
}
