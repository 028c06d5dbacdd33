// The flaxformer routing fixtures (shared/fixtures/routing, described in fixtures.md): what routers of the papers' own
// code decided, lost and differentiated, for the kernels to reproduce.

import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { openSafetensors } from "../../src/trainer/formats/safetensors.ts";

const ROOT = fileURLToPath(new URL("../../../shared/fixtures/routing/", import.meta.url));

export interface RoutingFixture {
  groups: number;
  tokensPerGroup: number;
  experts: number;
  topK: number;
  capacity: number;
  /** [tokens] u32, 1 = routable */
  mask: Uint32Array;
  /** Tensors by name, flattened. */
  tensor(name: string): Float32Array | Int32Array;
}

/** The fixtures in which tokens choose, by position. */
export const TOKEN_CHOICE_FIXTURES = ["top1-cf1.0", "top2-cf1.25", "top2-padded"];

export async function readRoutingFixture(name: string): Promise<RoutingFixture> {
  const settings = JSON.parse(await readFile(`${ROOT}${name}/case.json`, "utf8"));
  const file = await openSafetensors(`${ROOT}${name}/routing.safetensors`);
  const tensors = new Map<string, Float32Array | Int32Array>();
  for (const key of file.tensors.keys()) tensors.set(key, (await file.read(key)) as Float32Array | Int32Array);
  await file.close();
  const tokens = settings.groups * settings.tokens_per_group;
  const padding = tensors.get("padding_mask");
  return {
    groups: settings.groups,
    tokensPerGroup: settings.tokens_per_group,
    experts: settings.num_experts,
    topK: settings.top_k,
    capacity: settings.expert_capacity,
    mask: Uint32Array.from({ length: tokens }, (_, t) => (padding ? Number(padding[t] !== 0) : 1)),
    tensor(key) {
      const values = tensors.get(key);
      if (!values) throw new Error(`${name} has no tensor ${key}`);
      return values;
    },
  };
}
