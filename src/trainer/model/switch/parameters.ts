// The parameters of a model in the order of its Hugging Face checkpoint; what Switch lacks is named as in T5 v1.1
// (`wi_0`, `wi_1`) and, where that lacks it too, in the same manner.

import type { Stack } from "../../types.ts";
import type { SelectionBias } from "../family.ts";
import type { ParameterSpec } from "../parameters.ts";
import { isSparse, SELECTION_BIAS, type SwitchConfig } from "./config.ts";

/** The matrices that read a feed-forward layer's input: the gate's first. */
export const inputMatrices = (c: SwitchConfig): readonly string[] => (c.gated ? ["wi_0", "wi_1"] : ["wi"]);

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
      const matrices: readonly (readonly [string, readonly number[]])[] = [
        ...inputMatrices(c).map((name) => [name, [c.dFf, c.dModel]] as const),
        ["wo", [c.dModel, c.dFf]],
      ];
      const dense = (sublayer: number) => {
        for (const [matrix, shape] of matrices) add(`${block}.${sublayer}.mlp.${matrix}.weight`, "ffn", shape, place);
      };
      if (isSparse(c.sparseLayout, layer, step)) {
        add(`${mlp}.router.classifier.weight`, "router", [c.experts, c.dModel], place);
        const scale = c.expertBias ? [["scale", [c.dFf]] as const] : [];
        for (const [matrix, shape] of [...matrices, ...scale])
          list.push({
            name: `${mlp}.experts.${matrix}.weight`,
            kind: "expert",
            shape: [c.experts, ...shape],
            experts: c.experts,
            ...place,
            keys: Array.from({ length: c.experts }, (_, e) => `${mlp}.experts.expert_${e}.${matrix}.weight`),
          });
      } else dense(ffn);
      add(`${block}.${ffn}.layer_norm.weight`, "norm", [c.dModel], place);
      if (c.extraDenseFfn && isSparse(c.sparseLayout, layer, step)) {
        dense(ffn + 1);
        add(`${block}.${ffn + 1}.layer_norm.weight`, "norm", [c.dModel], place);
      }
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

/** The key of the selection bias of a sparse layer, whose parameters begin with `mlp`. */
export const selectionBiasKey = (mlp: string): string => `${mlp}${SELECTION_BIAS}`;

export const selectionBiases = (parameters: readonly ParameterSpec[]): SelectionBias[] =>
  parameters
    .filter(({ kind }) => kind === "router")
    .map(({ name, shape }) => ({ key: name.replace(/\.router\..*$/, SELECTION_BIAS), experts: shape[0] }));
