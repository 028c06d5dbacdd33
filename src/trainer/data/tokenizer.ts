// Text to token ids and back, by the tokenizer a model directory brings in Hugging Face form (`tokenizer.json` and
// `tokenizer_config.json`). The work is done by Hugging Face's own JavaScript implementation; this module narrows it to
// what the trainer needs and settles two of its defaults. A directory may ask for plain bytes instead
// (byte_tokenizer.ts).

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { Tokenizer as HuggingFaceTokenizer } from "@huggingface/tokenizers";
import { inputError } from "../formats/problems.ts";
import { byteTokenizer } from "./byte_tokenizer.ts";

export interface Tokenizer {
  /** Token ids; with `special`, also what the tokenizer adds around a text (T5: `</s>` at the end). */
  encode(text: string, options: { special: boolean }): number[];
  /** Text; with `skipSpecial`, without padding, end of sequence, sentinels and the like. */
  decode(ids: readonly number[], options: { skipSpecial: boolean }): string;
  /** Largest token id + 1. A model's embedding may have more rows (padding), never fewer. */
  readonly vocabularySize: number;
  /** Special tokens: content → id. */
  readonly specials: ReadonlyMap<string, number>;
}

async function readJson(directory: string, name: string): Promise<Record<string, unknown> | undefined> {
  let text: string;
  try {
    text = await readFile(join(directory, name), "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
  try {
    return JSON.parse(text);
  } catch {
    throw inputError(name, ["is not JSON"]);
  }
}

/**
 * The tokenizer of a model directory; undefined when it has none, which is no error: data may come as token ids.
 *
 * @throws InputError when the file is malformed or uses a component that is not known
 */
export async function loadTokenizer(directory: string): Promise<Tokenizer | undefined> {
  const definition = await readJson(directory, "tokenizer.json");
  const config = (await readJson(directory, "tokenizer_config.json")) ?? {};
  if (!definition) return config.tokenizer_class === "ByT5Tokenizer" ? byteTokenizer(config) : undefined;
  let tokenizer: HuggingFaceTokenizer;
  try {
    tokenizer = new HuggingFaceTokenizer(definition, config);
  } catch (error) {
    throw inputError("tokenizer.json", [(error as Error).message]);
  }
  const specials = new Map<string, number>();
  for (const [id, token] of tokenizer.get_added_tokens_decoder()) if (token.special) specials.set(token.content, id);
  let largestId = -1;
  for (const id of tokenizer.get_vocab(true).values()) largestId = Math.max(largestId, id);
  // The library removes spaces before punctuation unless told otherwise, and transformers' fast tokenizers no longer do.
  const cleanUp = config.clean_up_tokenization_spaces === true;
  return {
    encode: (text, { special }) => tokenizer.encode(text, { add_special_tokens: special }).ids,
    // The library refuses to decode nothing.
    decode: (ids, { skipSpecial }) =>
      ids.length === 0
        ? ""
        : tokenizer.decode([...ids], { skip_special_tokens: skipSpecial, clean_up_tokenization_spaces: cleanUp }),
    vocabularySize: largestId + 1,
    specials,
  };
}
