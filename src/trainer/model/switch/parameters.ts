// The parameters of a Switch model in the order of its Hugging Face checkpoint.

import type { Stack } from "../../types.ts";
import type { ParameterSpec } from "../parameters.ts";
import { isSparse, type SwitchConfig } from "./config.ts";

export function switchParameters(c: SwitchConfig): ParameterSpec[] {
  const inner = c.heads * c.headDim;
  const list: ParameterSpec[] = [];
  const add = (
    name: string,
    kind: ParameterSpec["kind"],
    shape: readonly number[],
    place: { stack?: Stack; layer?: number } = {},
  ) => list.push({ name, kind, shape, ...place, keys: [name] });

  add("shared.weight", "embedding", [c.vocabularySize, c.dModel]);
  for (const stack of ["encoder", "decoder"] as const) {
    if (c.separateEmbeddings) add(`${stack}.embed_tokens.weight`, "embedding", [c.vocabularySize, c.dModel], { stack });
    const layers = stack === "encoder" ? c.encoderLayers : c.decoderLayers;
    const step = stack === "encoder" ? c.encoderSparseStep : c.decoderSparseStep;
    for (let layer = 0; layer < layers; layer++) {
      const place = { stack, layer };
      const block = `${stack}.block.${layer}.layer`;
      const attention = (sublayer: number, module: string, kind: "attention.self" | "attention.cross") => {
        for (const projection of ["q", "k", "v"])
          add(`${block}.${sublayer}.${module}.${projection}.weight`, kind, [inner, c.dModel], place);
        add(`${block}.${sublayer}.${module}.o.weight`, kind, [c.dModel, inner], place);
        if (kind === "attention.self" && layer === 0)
          add(
            `${block}.${sublayer}.${module}.relative_attention_bias.weight`,
            kind,
            [c.relativeBuckets, c.heads],
            place,
          );
        add(`${block}.${sublayer}.layer_norm.weight`, "norm", [c.dModel], place);
      };
      attention(0, "SelfAttention", "attention.self");
      if (stack === "decoder") attention(1, "EncDecAttention", "attention.cross");
      const ffn = stack === "encoder" ? 1 : 2;
      const mlp = `${block}.${ffn}.mlp`;
      if (isSparse(layer, step)) {
        add(`${mlp}.router.classifier.weight`, "router", [c.experts, c.dModel], place);
        for (const [matrix, shape] of [
          ["wi", [c.dFf, c.dModel]],
          ["wo", [c.dModel, c.dFf]],
        ] as const)
          list.push({
            name: `${mlp}.experts.${matrix}.weight`,
            kind: "expert",
            shape: [c.experts, ...shape],
            experts: c.experts,
            ...place,
            keys: Array.from({ length: c.experts }, (_, e) => `${mlp}.experts.expert_${e}.${matrix}.weight`),
          });
      } else {
        add(`${mlp}.wi.weight`, "ffn", [c.dFf, c.dModel], place);
        add(`${mlp}.wo.weight`, "ffn", [c.dModel, c.dFf], place);
      }
      add(`${block}.${ffn}.layer_norm.weight`, "norm", [c.dModel], place);
    }
    add(`${stack}.final_layer_norm.weight`, "norm", [c.dModel], { stack });
  }
  if (!c.tied) add("lm_head.weight", "head", [c.vocabularySize, c.dModel]);
  return list;
}

/** Keys a checkpoint may carry that only repeat another tensor. */
export function switchAliases(c: SwitchConfig): Readonly<Record<string, string>> {
  const embeddings = { "encoder.embed_tokens.weight": "shared.weight", "decoder.embed_tokens.weight": "shared.weight" };
  return {
    ...(c.separateEmbeddings ? {} : embeddings),
    ...(c.tied ? { "lm_head.weight": "shared.weight" } : {}),
  };
}
