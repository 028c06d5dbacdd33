// The configurations of the T5-shaped sparse models, checked: every field that thaw cannot honour is refused by name, all
// of them at once. `switch_transformers` is Hugging Face's. `st_moe` has the same fields, except that its layers are
// named by their layout, and those in which ST-MoE (arXiv 2202.08906) differs; a Switch model is a choice among these.

import { InputError, type Problem, type Stack } from "../../types.ts";

export const MODEL_TYPES = ["switch_transformers", "st_moe"] as const;

/** Which layers of a stack are sparse for a step s: `hf` those with i % s == 1, `flaxformer` those with i % s == s - 1. */
export type SparseLayout = "hf" | "flaxformer";

export interface SwitchConfig {
  readonly modelType: (typeof MODEL_TYPES)[number];
  /** Feed-forward layers, dense and expert, are wo(gelu(wi_0 x) ⊙ wi_1 x) instead of wo(relu(wi x)). */
  readonly gated: boolean;
  /** Experts per token, and whether the chosen gates are divided by their sum; a run may override both. */
  readonly topK: number;
  readonly gateNormalization: "none" | "top_k";
  readonly sparseLayout: SparseLayout;
  /** A dense feed-forward sublayer follows every sparse one. */
  readonly extraDenseFfn: boolean;
  /** An expert's hidden activation is multiplied by a vector of the expert's own. */
  readonly expertBias: boolean;
  readonly vocabularySize: number;
  readonly dModel: number;
  /** Head size; heads · headDim need not equal dModel. */
  readonly headDim: number;
  readonly heads: number;
  readonly dFf: number;
  readonly encoderLayers: number;
  readonly decoderLayers: number;
  /** 0 = no sparse layer. */
  readonly encoderSparseStep: number;
  readonly decoderSparseStep: number;
  readonly experts: number;
  readonly relativeBuckets: number;
  readonly relativeMaxDistance: number;
  readonly epsilon: number;
  readonly tied: boolean;
  /** Encoder and decoder have embedding tables of their own beside `shared.weight`, which then serves nothing. */
  readonly separateEmbeddings: boolean;
  /** Selection biases that the checkpoint has, by key. */
  readonly selectionBiases: ReadonlySet<string>;
  readonly padTokenId: number;
  readonly eosTokenId: number;
  readonly decoderStartTokenId: number;
}

/** Ends the key of a router's selection bias. */
export const SELECTION_BIAS = ".router.selection_bias";

type Json = Readonly<Record<string, unknown>>;

/**
 * Reads config.json. Defaults are those of SwitchTransformersConfig (transformers 5.17), and so is what an untied model
 * embeds with: tables of its own for each stack when its checkpoint, whose keys are `checkpointKeys`, has them
 * (transformers 5), the shared one when it has not (transformers 4). The defaults of what only `st_moe` has are the
 * paper's.
 * @throws InputError naming every field that is wrong or not supported
 */
export function parseSwitchConfig(json: Json, checkpointKeys: ReadonlySet<string> = new Set()): SwitchConfig {
  const problems: Problem[] = [];
  const bad = (field: string, message: string) => problems.push({ field: `config.${field}`, message });

  const number = (field: string, fallback: number, valid: (v: number) => boolean, expected: string): number => {
    const value = json[field] ?? fallback;
    if (typeof value === "number" && valid(value)) return value;
    bad(field, `must be ${expected}, is ${JSON.stringify(value)}`);
    return fallback;
  };
  const positive = (field: string, fallback: number) =>
    number(field, fallback, (v) => Number.isInteger(v) && v > 0 && v < 2 ** 31, "a positive integer");
  const count = (field: string, fallback: number) =>
    number(field, fallback, (v) => Number.isInteger(v) && v >= 0 && v < 2 ** 31, "a non-negative integer");
  const oneOf = <V>(field: string, fallback: V, supported: readonly V[]): V => {
    const value = json[field] ?? fallback;
    const found = supported.find((v) => v === value);
    if (found !== undefined) return found;
    bad(
      field,
      `${JSON.stringify(value)} is not supported; supported: ${supported.map((s) => JSON.stringify(s)).join(", ")}`,
    );
    return fallback;
  };
  const flag = (field: string, fallback: boolean) => oneOf(field, fallback, [true, false]);

  const encoderLayers = positive("num_layers", 12);
  const decoderLayers = positive("num_decoder_layers", encoderLayers);
  // As SwitchTransformersConfig derives them: layers / sparse layers, and for none the layers, which leaves layer 1.
  const switchStep = (layersField: string, layers: number) => {
    const sparse = count(layersField, 3);
    return sparse > 0 ? Math.floor(layers / sparse) : layers;
  };
  const vocabularySize = positive("vocab_size", 32128);
  const tied = json.tie_word_embeddings !== false;
  const experts = number(
    "num_experts",
    8,
    (v) => Number.isInteger(v) && v >= 1 && v <= 1024,
    "an integer from 1 to 1024",
  );
  const modelType = oneOf("model_type", "switch_transformers", MODEL_TYPES);
  const blocks = modelType === "st_moe" ? stMoeBlocks() : switchBlocks();
  const config: SwitchConfig = {
    modelType,
    ...blocks,
    vocabularySize,
    dModel: positive("d_model", 768),
    headDim: number("d_kv", 64, (v) => Number.isInteger(v) && v > 0 && v <= 256, "an integer from 1 to 256"),
    heads: positive("num_heads", 12),
    dFf: positive("d_ff", 2048),
    encoderLayers,
    decoderLayers,
    experts,
    relativeBuckets: positive("relative_attention_num_buckets", 32),
    relativeMaxDistance: positive("relative_attention_max_distance", 128),
    epsilon: number("layer_norm_epsilon", 1e-6, (v) => v > 0 && v < 1, "a small positive number"),
    tied,
    selectionBiases: new Set([...checkpointKeys].filter((key) => key.endsWith(SELECTION_BIAS))),
    separateEmbeddings: !tied && checkpointKeys.has("encoder.embed_tokens.weight"),
    padTokenId: count("pad_token_id", 0),
    eosTokenId: count("eos_token_id", 1),
    decoderStartTokenId: count("decoder_start_token_id", 0),
  };
  oneOf("router_bias", false, [false]);
  if (config.relativeBuckets % 2 !== 0) bad("relative_attention_num_buckets", "must be even");
  for (const field of ["pad_token_id", "eos_token_id", "decoder_start_token_id"] as const) {
    const id = json[field];
    if (typeof id === "number" && id >= vocabularySize)
      bad(field, `${id} is outside the vocabulary of ${vocabularySize}`);
  }
  if (problems.length > 0) throw new InputError(problems);
  return config;

  type Blocks = Pick<
    SwitchConfig,
    | "gated"
    | "topK"
    | "gateNormalization"
    | "sparseLayout"
    | "encoderSparseStep"
    | "decoderSparseStep"
    | "extraDenseFfn"
    | "expertBias"
  >;

  function switchBlocks(): Blocks {
    oneOf("dense_act_fn", "relu", ["relu"]);
    oneOf("is_gated_act", false, [false]);
    return {
      gated: false,
      topK: 1,
      gateNormalization: "none",
      sparseLayout: "hf",
      encoderSparseStep: switchStep("num_sparse_encoder_layers", encoderLayers),
      decoderSparseStep: switchStep("num_sparse_decoder_layers", decoderLayers),
      extraDenseFfn: false,
      expertBias: false,
    };
  }

  function stMoeBlocks(): Blocks {
    const step = count("sparse_step", 4);
    const topK = number(
      "num_selected_experts",
      Math.min(2, experts),
      (v) => Number.isInteger(v) && v >= 1 && v <= 16,
      "an integer from 1 to 16",
    );
    if (topK > experts) bad("num_selected_experts", `is ${topK}; there are ${experts} experts`);
    return {
      gated: oneOf("feed_forward_proj", "gated-gelu", ["gated-gelu", "relu"]) === "gated-gelu",
      topK,
      gateNormalization: oneOf("gate_normalization", "top_k", ["none", "top_k"]),
      sparseLayout: oneOf("sparse_layout", "flaxformer", ["hf", "flaxformer"]),
      encoderSparseStep: step,
      decoderSparseStep: step,
      extraDenseFfn: flag("extra_dense_ffn", true),
      expertBias: flag("expert_multiplicative_bias", false),
    };
  }
}

/** Whether a layer of a stack is sparse; every layer when the step is 1, none when it is 0. */
export const isSparse = (layout: SparseLayout, layer: number, step: number): boolean =>
  step === 1 || (step > 1 && layer % step === (layout === "hf" ? 1 : step - 1));

/** Sparse layers of a stack. */
export function sparseLayers(
  c: Pick<SwitchConfig, "sparseLayout" | "encoderLayers" | "decoderLayers" | "encoderSparseStep" | "decoderSparseStep">,
  stack: Stack,
): number {
  const [layers, step] =
    stack === "encoder" ? [c.encoderLayers, c.encoderSparseStep] : [c.decoderLayers, c.decoderSparseStep];
  return Array.from({ length: layers }, (_, layer) => isSparse(c.sparseLayout, layer, step)).filter(Boolean).length;
}
