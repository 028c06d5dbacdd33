// The router of a sparse layer, forward: softmax over experts and the top-k choice.
//
// Everything is f32 whatever the compute type (Switch Transformers, "selective precision"). The choice compares logits,
// not probabilities: softmax is monotone, and two distinct logits whose probabilities round to one f32 are still told
// apart. With a selection bias it compares probability + bias. Equals give the lower expert id, on every adapter, every
// time.
//
// One thread per token: experts are few, and this is noise beside the expert matmuls. The losses are in
// router_losses.ts, the way back in router_backward.ts.

import { type Command, call, defineKernel, LINEAR_INDEX, madeOnce, read, spread, write } from "./kernel.ts";
import { PHILOX } from "./random.ts";
import { STEP_SCALARS } from "./step_scalars.ts";

export { routerBackward } from "./router_backward.ts";
export { routerLosses, routerStatistics, routerStatisticsScratch } from "./router_losses.ts";
export { type PooledLayer, routerPool, routerPoolScratch } from "./router_pool.ts";

export const MAX_TOP_K = 16;

const WORKGROUP = 64;

const SOFTMAX = /* wgsl */ `
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
  log_sum_exp[t] = largest + log(sum);`;

/** In `forcedIds`, of every choice of a token: it chooses by itself. */
export const CHOOSES_FREELY = 0xffffffff;

const forwardKernel = (normalizeGates: boolean, biased: boolean, forced: boolean) =>
  defineKernel<"tokens" | "experts" | "top_k", string>({
    name: `router_forward${normalizeGates ? "_normalized" : ""}${biased ? "_biased" : ""}${forced ? "_forced" : ""}`,
    params: { tokens: "u32", experts: "u32", top_k: "u32" },
    buffers: {
      logits: read("f32"), //        [tokens, experts]
      mask: read("u32"), //          [tokens]
      ...(biased ? { selection_bias: read("f32") } : {}), // [experts]
      ...(forced ? { forced_ids: read("u32") } : {}), // [tokens, top_k]
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

${SOFTMAX}

  // Top-k: choice j is the largest score after choice j-1 in the order (score descending, id ascending).
  let routable = mask[t] != 0u;
  var previous = 0.0;
  var previous_id = params.experts;
  var gate_sum = 0.0;
  for (var j = 0u; j < params.top_k; j++) {
    var best = 0.0;
    var best_id = params.experts;
    if (routable) {
      for (var e = 0u; e < params.experts; e++) {
        let x = ${biased ? "probabilities[row + e] + selection_bias[e]" : "logits[row + e]"};
        let remains = j == 0u || x < previous || (x == previous && e > previous_id);
        if (remains && (best_id == params.experts || x > best)) {
          best = x;
          best_id = e;
        }
      }
    }
${
  forced
    ? /* wgsl */ `
    let forced = forced_ids[t * params.top_k + j];
    if (routable && forced != ${CHOOSES_FREELY}u) { best_id = min(forced, params.experts); }`
    : ""
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

const forward = madeOnce(forwardKernel);

/** A gate of at least this always uses its expert under the `random` policy (ST-MoE, appendix D). */
export const RANDOM_POLICY_THRESHOLD = 0.2;

// A later expert is used with probability min(1, gate / threshold).
const randomKernel = defineKernel({
  name: "router_random_later_experts",
  params: { assignments: "u32", experts: "u32", top_k: "u32", use_id: "u32" },
  buffers: {
    chosen_ids: read("u32"), //  [tokens, top_k]
    step: { access: "read", type: "StepScalars" },
    expert_ids: write("u32"), // [tokens, top_k]
    gates: write("f32"), //      [tokens, top_k]
  },
  wgsl: /* wgsl */ `${LINEAR_INDEX}${STEP_SCALARS}${PHILOX}
const WORKGROUP = ${WORKGROUP}u;
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lane: u32) {
  let a = linear_index(wid, num) * WORKGROUP + lane;
  if (a >= params.assignments) { return; }
  let later = a % params.top_k > 0u;
  if (later && uniform_element(step.seed, step.step, params.use_id, a) * ${RANDOM_POLICY_THRESHOLD} >= gates[a]) {
    expert_ids[a] = params.experts;
    gates[a] = 0.0;
  } else {
    expert_ids[a] = chosen_ids[a];
  }
}
`,
});

/**
 * Softmax and top-k choice.
 * Reads logits [tokens, experts] f32, mask [tokens] u32 (1 = routable). Writes probabilities [tokens, experts] (every
 * token), expertIds [tokens, topK] u32 (`experts` for masked tokens), gates [tokens, topK] f32 (0 for masked tokens;
 * divided by their sum when `normalizeGates`), logSumExp [tokens] f32. With selectionBias [experts] f32 the choice is by
 * probability + bias, the gates are the probabilities all the same (arXiv 2408.15664). With forcedIds [tokens, topK] u32 a
 * token takes the experts given there, with the gates that its own logits give them, unless they are CHOOSES_FREELY: all
 * choices of a token are given, or none. With `random`, a later choice is
 * used with probability min(1, gate / 0.2), drawn from the step's random numbers under `use`: an unused one has id
 * `experts` and gate 0, and chosenIds [tokens, topK] u32 holds what was chosen, used or not.
 * @throws RangeError when topK is not in 1..min(experts, 16).
 */
export function routerForward<T>(
  buffers: {
    logits: T;
    mask: T;
    selectionBias?: T;
    forcedIds?: T;
    probabilities: T;
    expertIds: T;
    gates: T;
    logSumExp: T;
    random?: { chosenIds: T; step: T };
  },
  dims: { tokens: number; experts: number; topK: number; normalizeGates: boolean; use?: number },
): Command<T>[] {
  const { tokens, experts, topK, use = 0 } = dims;
  const { selectionBias, forcedIds, expertIds, gates, random } = buffers;
  checkTopK(topK, experts);
  const bound: Record<string, T> = {
    logits: buffers.logits,
    mask: buffers.mask,
    probabilities: buffers.probabilities,
    expert_ids: random?.chosenIds ?? expertIds,
    gates,
    log_sum_exp: buffers.logSumExp,
  };
  if (selectionBias !== undefined) bound.selection_bias = selectionBias;
  if (forcedIds !== undefined) bound.forced_ids = forcedIds;
  const kernel = forward(dims.normalizeGates, selectionBias !== undefined, forcedIds !== undefined);
  const choice = call(kernel, { tokens, experts, top_k: topK }, bound, spread(Math.ceil(tokens / WORKGROUP)));
  if (!random) return [choice];
  return [
    choice,
    call(
      randomKernel,
      { assignments: tokens * topK, experts, top_k: topK, use_id: use },
      { chosen_ids: random.chosenIds, step: random.step, expert_ids: expertIds, gates },
      spread(Math.ceil((tokens * topK) / WORKGROUP)),
    ),
  ];
}

const softmaxKernel = defineKernel({
  name: "router_softmax",
  params: { tokens: "u32", experts: "u32" },
  buffers: { logits: read("f32"), probabilities: write("f32"), log_sum_exp: write("f32") },
  wgsl: /* wgsl */ `${LINEAR_INDEX}
const WORKGROUP = ${WORKGROUP}u;
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lane: u32) {
  let t = linear_index(wid, num) * WORKGROUP + lane;
  if (t >= params.tokens) { return; }
  let row = t * params.experts;
${SOFTMAX}
}
`,
});

/** The softmax alone, for routing where experts choose: probabilities [tokens, experts], logSumExp [tokens]. */
export function routerSoftmax<T>(
  buffers: { logits: T; probabilities: T; logSumExp: T },
  { tokens, experts }: { tokens: number; experts: number },
): Command<T>[] {
  const { logits, probabilities, logSumExp } = buffers;
  const bound = { logits, probabilities, log_sum_exp: logSumExp };
  return [call(softmaxKernel, { tokens, experts }, bound, spread(Math.ceil(tokens / WORKGROUP)))];
}

function checkTopK(topK: number, experts: number): void {
  if (!(topK >= 1 && topK <= Math.min(experts, MAX_TOP_K)))
    throw new RangeError(`top_k must be between 1 and ${Math.min(experts, MAX_TOP_K)}, got ${topK}`);
}
