// Who is served first. Both kernels rank tokens inside their group by probability, the lower index among equals, without a
// sort: a token's rank is the number of tokens before it, counted by one thread.
//
// Batch-prioritized routing (V-MoE, Riquelme et al. 2021; ST-MoE appendix) lets the tokens whose first choice is surest
// take slots first. Expert choice (Zhou et al. 2022) turns the question round: each expert takes its surest tokens. Both
// look at the whole group, later tokens included, so neither may be used in a decoder.

import { type Command, call, defineKernel, LINEAR_INDEX, read, spread, write } from "./kernel.ts";
import { GROUP_BOUNDS, GROUP_CAPACITY, type GroupSlots, type TokenGroups } from "./token_groups.ts";

const WORKGROUP = 64;

const orderKernel = defineKernel({
  name: "routing_priority_order",
  params: { tokens: "u32", tokens_per_group: "u32", experts: "u32", top_k: "u32" },
  buffers: {
    probabilities: read("f32"), // [tokens, experts]
    expert_ids: read("u32"), //    [tokens, top_k]
    token_order: write("u32"), //  [tokens]
  },
  wgsl: /* wgsl */ `${LINEAR_INDEX}${GROUP_BOUNDS}
// Grows with the probability of a token's first choice; 0 for a token that is not routed. The bits of floats that are not
// negative order as they do, and order NaN too, so that every place is taken by one token whatever the probabilities are.
fn priority(t: u32) -> u32 {
  let e = expert_ids[t * params.top_k];
  if (e >= params.experts) { return 0u; }
  return bitcast<u32>(probabilities[t * params.experts + e]) + 1u;
}
@compute @workgroup_size(${WORKGROUP})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lane: u32) {
  let t = linear_index(wid, num) * ${WORKGROUP}u + lane;
  if (t >= params.tokens) { return; }
  let group = t / params.tokens_per_group;
  let first = group_first(group);
  let own = priority(t);
  var rank = 0u;
  for (var u = first; u < group_end(group); u++) {
    let other = priority(u);
    rank += u32(other > own || (other == own && u < t));
  }
  token_order[first + rank] = t;
}
`,
});

interface PriorityDims extends TokenGroups {
  readonly experts: number;
}

/**
 * tokenOrder [tokens] u32: each group's token indices by descending probability of their first choice, tokens that are
 * not routed (first id ≥ experts) last. probabilities [tokens, experts] f32, expertIds [tokens, topK] u32.
 */
export function priorityOrder<T>(
  buffers: { probabilities: T; expertIds: T; tokenOrder: T },
  { tokens, tokensPerGroup, experts, topK }: PriorityDims & { topK: number },
): Command<T>[] {
  return [
    call(
      orderKernel,
      { tokens, tokens_per_group: tokensPerGroup, experts, top_k: topK },
      { probabilities: buffers.probabilities, expert_ids: buffers.expertIds, token_order: buffers.tokenOrder },
      spread(Math.ceil(tokens / WORKGROUP)),
    ),
  ];
}

const choiceKernel = defineKernel({
  name: "expert_choice",
  params: { tokens: "u32", tokens_per_group: "u32", experts: "u32", capacity: "u32", last_capacity: "u32" },
  buffers: {
    probabilities: read("f32"), // [tokens, experts]
    mask: read("u32"), //          [tokens]
    expert_ids: write("u32"), //   [tokens, experts]
    gates: write("f32"), //        [tokens, experts]
  },
  wgsl: /* wgsl */ `${LINEAR_INDEX}${GROUP_BOUNDS}${GROUP_CAPACITY}
@compute @workgroup_size(${WORKGROUP})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lane: u32) {
  let at = linear_index(wid, num) * ${WORKGROUP}u + lane;
  if (at >= params.tokens * params.experts) { return; }
  let t = at / params.experts;
  let e = at % params.experts;
  let group = t / params.tokens_per_group;
  let own = probabilities[at];
  let own_bits = bitcast<u32>(own); // ordered like the probabilities, NaN included
  var rank = 0u;
  for (var u = group_first(group); u < group_end(group); u++) {
    let other = bitcast<u32>(probabilities[u * params.experts + e]);
    rank += u32(mask[u] != 0u && (other > own_bits || (other == own_bits && u < t)));
  }
  let taken = mask[t] != 0u && rank < group_capacity(group);
  expert_ids[at] = select(params.experts, e, taken);
  gates[at] = select(0.0, own, taken);
}
`,
});

/**
 * Each expert takes the most probable routable tokens of each group, as many as it has slots. Written as a choice of all
 * experts by every token, choice e being expert e: expertIds [tokens, experts] u32 is e where taken and `experts` where not,
 * gates [tokens, experts] f32 the probability or 0. probabilities [tokens, experts] f32, mask [tokens] u32.
 */
export function expertChoice<T>(
  buffers: { probabilities: T; mask: T; expertIds: T; gates: T },
  { tokens, tokensPerGroup, experts, capacity, lastCapacity = capacity }: PriorityDims & GroupSlots,
): Command<T>[] {
  const { probabilities, mask, gates } = buffers;
  return [
    call(
      choiceKernel,
      { tokens, tokens_per_group: tokensPerGroup, experts, capacity, last_capacity: lastCapacity },
      { probabilities, mask, expert_ids: buffers.expertIds, gates },
      spread(Math.ceil((tokens * experts) / WORKGROUP)),
    ),
  ];
}

/** Definition of {@link priorityOrder}, by sorting. */
export function priorityOrderReference(
  probabilities: ArrayLike<number>,
  expertIds: ArrayLike<number>,
  { tokens, tokensPerGroup, experts, topK }: PriorityDims & { topK: number },
): Uint32Array {
  const priority = (t: number) =>
    expertIds[t * topK] >= experts ? -1 : probabilities[t * experts + expertIds[t * topK]];
  const order: number[] = [];
  for (let first = 0; first < tokens; first += tokensPerGroup) {
    const group = Array.from({ length: Math.min(tokensPerGroup, tokens - first) }, (_, i) => first + i);
    order.push(...group.sort((a, b) => priority(b) - priority(a) || a - b));
  }
  return Uint32Array.from(order);
}

/** Definition of {@link expertChoice}, by sorting. */
export function expertChoiceReference(
  probabilities: ArrayLike<number>,
  mask: ArrayLike<number>,
  { tokens, tokensPerGroup, experts, capacity, lastCapacity = capacity }: PriorityDims & GroupSlots,
): { expertIds: Uint32Array; gates: Float64Array } {
  const expertIds = new Uint32Array(tokens * experts).fill(experts);
  const gates = new Float64Array(tokens * experts);
  for (let first = 0; first < tokens; first += tokensPerGroup) {
    const group = Array.from({ length: Math.min(tokensPerGroup, tokens - first) }, (_, i) => first + i);
    const slots = first + tokensPerGroup < tokens ? capacity : lastCapacity;
    for (let e = 0; e < experts; e++) {
      const routable = group.filter((t) => mask[t] !== 0);
      const p = (t: number) => probabilities[t * experts + e];
      for (const t of routable.sort((a, b) => p(b) - p(a) || a - b).slice(0, slots)) {
        expertIds[t * experts + e] = e;
        gates[t * experts + e] = p(t);
      }
    }
  }
  return { expertIds, gates };
}
