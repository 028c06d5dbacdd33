// The `switch_transformers` configuration of Hugging Face, checked: every field that thaw cannot honour is refused by
// name, all of them at once.

import { InputError, type Problem } from "../../types.ts";

export interface SwitchConfig {
  readonly vocabularySize: number;
  readonly dModel: number;
  /** Head size; heads · headDim need not equal dModel. */
  readonly headDim: number;
  readonly heads: number;
  readonly dFf: number;
  readonly encoderLayers: number;
  readonly decoderLayers: number;
  readonly encoderSparseStep: number;
  readonly decoderSparseStep: number;
  readonly experts: number;
  readonly relativeBuckets: number;
  readonly relativeMaxDistance: number;
  readonly epsilon: number;
  readonly tied: boolean;
  /** Encoder and decoder have embedding tables of their own beside `shared.weight`, which then serves nothing. */
  readonly separateEmbeddings: boolean;
  readonly padTokenId: number;
  readonly eosTokenId: number;
  readonly decoderStartTokenId: number;
}

type Json = Readonly<Record<string, unknown>>;

/**
 * Reads config.json of a Switch model. Defaults are those of SwitchTransformersConfig (transformers 5.17), and so is
 * what an untied model embeds with: tables of its own for each stack when its checkpoint, whose keys are
 * `checkpointKeys`, has them (transformers 5), the shared one when it has not (transformers 4).
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
  const only = (field: string, fallback: unknown, supported: readonly unknown[]) => {
    const value = json[field] ?? fallback;
    if (!supported.includes(value))
      bad(
        field,
        `${JSON.stringify(value)} is not supported; supported: ${supported.map((s) => JSON.stringify(s)).join(", ")}`,
      );
  };

  const encoderLayers = positive("num_layers", 12);
  const decoderLayers = positive("num_decoder_layers", encoderLayers);
  // As SwitchTransformersConfig derives them: layers / sparse layers, or no sparse layer at all.
  const sparseStep = (layersField: string, layers: number, fallback: number) => {
    const sparse = count(layersField, fallback);
    return sparse > 0 ? Math.floor(layers / sparse) : layers;
  };
  const vocabularySize = positive("vocab_size", 32128);
  const tied = json.tie_word_embeddings !== false;
  const config: SwitchConfig = {
    vocabularySize,
    dModel: positive("d_model", 768),
    headDim: number("d_kv", 64, (v) => Number.isInteger(v) && v > 0 && v <= 256, "an integer from 1 to 256"),
    heads: positive("num_heads", 12),
    dFf: positive("d_ff", 2048),
    encoderLayers,
    decoderLayers,
    encoderSparseStep: sparseStep("num_sparse_encoder_layers", encoderLayers, 3),
    decoderSparseStep: sparseStep("num_sparse_decoder_layers", decoderLayers, 3),
    experts: number("num_experts", 8, (v) => Number.isInteger(v) && v >= 1 && v <= 1024, "an integer from 1 to 1024"),
    relativeBuckets: positive("relative_attention_num_buckets", 32),
    relativeMaxDistance: positive("relative_attention_max_distance", 128),
    epsilon: number("layer_norm_epsilon", 1e-6, (v) => v > 0 && v < 1, "a small positive number"),
    tied,
    separateEmbeddings: !tied && checkpointKeys.has("encoder.embed_tokens.weight"),
    padTokenId: count("pad_token_id", 0),
    eosTokenId: count("eos_token_id", 1),
    decoderStartTokenId: count("decoder_start_token_id", 0),
  };
  only("model_type", "switch_transformers", ["switch_transformers"]);
  only("dense_act_fn", "relu", ["relu"]);
  only("is_gated_act", false, [false]);
  only("router_bias", false, [false]);
  if (config.relativeBuckets % 2 !== 0) bad("relative_attention_num_buckets", "must be even");
  for (const field of ["pad_token_id", "eos_token_id", "decoder_start_token_id"] as const) {
    const id = json[field];
    if (typeof id === "number" && id >= vocabularySize)
      bad(field, `${id} is outside the vocabulary of ${vocabularySize}`);
  }
  if (problems.length > 0) throw new InputError(problems);
  return config;
}

/** HF layout: layer i is sparse when i % step == 1, every layer when step is 1. */
export const isSparse = (layer: number, step: number): boolean => step === 1 || layer % step === 1;
