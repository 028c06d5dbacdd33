// Which experts are chosen together: for every pair, the tokens that chose both. Counts are whole numbers, so adding them up
// atomically gives the same bits in any order.
//
// Counts [experts · (experts + 1) / 2] are the upper triangle row by row, its diagonal the tokens that chose the expert.

import { type Command, call, defineKernel, LINEAR_INDEX, read, spread, write } from "./kernel.ts";

const WORKGROUP = 64;

const countKernel = defineKernel({
  name: "co_activation",
  params: { tokens: "u32", top_k: "u32", experts: "u32" },
  buffers: {
    expert_ids: read("u32"), //        [tokens, top_k]
    counts: write("atomic<u32>"), //   [experts * (experts + 1) / 2]
  },
  wgsl: /* wgsl */ `${LINEAR_INDEX}
fn row_start(expert: u32) -> u32 { return expert * params.experts - expert * (expert - 1u) / 2u; }
@compute @workgroup_size(${WORKGROUP})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lane: u32) {
  let t = linear_index(wid, num) * ${WORKGROUP}u + lane;
  if (t >= params.tokens) { return; }
  for (var i = t * params.top_k; i < (t + 1u) * params.top_k; i++) {
    let one = expert_ids[i];
    if (one >= params.experts) { continue; }
    for (var j = i; j < (t + 1u) * params.top_k; j++) {
      let other = expert_ids[j];
      if (other >= params.experts) { continue; }
      let low = min(one, other);
      atomicAdd(&counts[row_start(low) + max(one, other) - low], 1u);
    }
  }
}
`,
});

/** Pairs of `experts`, an expert with itself included. */
export const expertPairs = (experts: number): number => (experts * (experts + 1)) / 2;

/** expertIds [tokens, topK] u32, a token's distinct, ≥ experts = none; counts {@link expertPairs} elements u32. */
export function coActivation<T>(
  buffers: { expertIds: T; counts: T },
  { tokens, topK, experts }: { tokens: number; topK: number; experts: number },
): Command<T>[] {
  const { expertIds, counts } = buffers;
  const groups = spread(Math.ceil(tokens / WORKGROUP));
  return [
    { clear: counts },
    call(countKernel, { tokens, top_k: topK, experts }, { expert_ids: expertIds, counts }, groups),
  ];
}

/** The upper triangle as the symmetric matrix it is of, [experts, experts] row-major. */
export function coActivationMatrix(counts: ArrayLike<number>, experts: number): number[] {
  const matrix = new Array<number>(experts * experts).fill(0);
  let at = 0;
  for (let i = 0; i < experts; i++)
    for (let j = i; j < experts; j++) {
      matrix[i * experts + j] = counts[at];
      matrix[j * experts + i] = counts[at++];
    }
  return matrix;
}
