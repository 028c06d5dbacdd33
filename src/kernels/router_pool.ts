// Router losses pooled over layers (Hugging Face Mixtral, OLMoE, Qwen): one f and one P over the tokens of all layers,
// each layer and group weighted by its token count n.
//   f_e = Σ n · load[e] / Σ n     P_e = Σ n · meanProbability[e] / Σ n
//   L_B = experts · Σ_e f_e P_e   L_z = Σ n · z / Σ n
// The pooled f and Σ n take the place of a layer's own in `routerBackward` (one group), which sends the gradient to
// every layer. Layers are added one after another, because a kernel can bind only so many buffers.

import { type Command, call, defineKernel, read, write } from "./kernel.ts";

const WORKGROUP = 64;

const HEAD = /* wgsl */ `
const WORKGROUP = ${WORKGROUP}u;
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32) {`;

// sums: [0, experts) of load, [experts, 2·experts) of probability, then tokens, then z.
const addKernel = defineKernel({
  name: "router_pool_add",
  params: { groups: "u32", experts: "u32", first: "u32" },
  buffers: {
    load: read("f32"), //             [groups, experts]
    mean_probability: read("f32"), // [groups, experts]
    group_tokens: read("f32"), //     [groups]
    z_sum: read("f32"), //            [groups]
    sums: write("f32"), //            [2 * experts + 2]
  },
  wgsl: /* wgsl */ `${HEAD}
  for (var e = lane; e <= params.experts; e += WORKGROUP) {
    var added = vec2f(0.0);
    for (var g = 0u; g < params.groups; g++) {
      let n = group_tokens[g];
      if (e < params.experts) {
        added += n * vec2f(load[g * params.experts + e], mean_probability[g * params.experts + e]);
      } else {
        added += vec2f(n, n * z_sum[g]);
      }
    }
    let at = select(vec2u(2u * params.experts, 2u * params.experts + 1u), vec2u(e, params.experts + e), e < params.experts);
    if (params.first != 0u) {
      sums[at.x] = added.x;
      sums[at.y] = added.y;
    } else {
      sums[at.x] += added.x;
      sums[at.y] += added.y;
    }
  }
}
`,
});

const finishKernel = defineKernel({
  name: "router_pool_finish",
  params: { experts: "u32" },
  buffers: {
    sums: read("f32"), //         [2 * experts + 2]
    load: write("f32"), //        [experts]
    tokens: write("f32"), //      [1]
    losses: write("f32"), //      [2]
  },
  wgsl: /* wgsl */ `${HEAD}
  let n = sums[2u * params.experts];
  let inverse = select(0.0, 1.0 / max(n, 1.0), n > 0.0);
  for (var e = lane; e < params.experts; e += WORKGROUP) { load[e] = sums[e] * inverse; }
  if (lane == 0u) {
    var balance = 0.0;
    for (var e = 0u; e < params.experts; e++) { balance += sums[e] * inverse * sums[params.experts + e] * inverse; }
    tokens[0] = n;
    losses[0] = f32(params.experts) * balance;
    losses[1] = sums[2u * params.experts + 1u] * inverse;
  }
}
`,
});

/** What `routerStatistics` wrote for one layer. */
export interface PooledLayer<T> {
  readonly load: T;
  readonly meanProbability: T;
  readonly groupTokens: T;
  readonly zSum: T;
  readonly groups: number;
}

/** Elements (f32) of the scratch buffer of {@link routerPool}. */
export const routerPoolScratch = (experts: number): number => 2 * experts + 2;

/**
 * Writes load [experts] f32, tokens [1] f32 = Σ n, losses [2] f32 = L_B, L_z without coefficients; all 0 where no layer
 * has a token. sums: {@link routerPoolScratch} elements.
 */
export function routerPool<T>(
  layers: readonly PooledLayer<T>[],
  out: { sums: T; load: T; tokens: T; losses: T },
  experts: number,
): Command<T>[] {
  return [
    ...layers.map((layer, i) =>
      call(
        addKernel,
        { groups: layer.groups, experts, first: Number(i === 0) },
        {
          load: layer.load,
          mean_probability: layer.meanProbability,
          group_tokens: layer.groupTokens,
          z_sum: layer.zSum,
          sums: out.sums,
        },
        [1],
      ),
    ),
    call(finishKernel, { experts }, out, [1]),
  ];
}
