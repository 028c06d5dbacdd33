// Names of single tokens, read from a tokenizer.json. Generations carry token ids; a picture of their routes needs text.

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { Tokenizer } from "@huggingface/tokenizers";

/** Text of a vocabulary id, as byte-level BPE writes it, with a space for its mark of one. */
export async function readVocabulary(directory: string): Promise<(id: number) => string> {
  const read = async (name: string) => JSON.parse(await readFile(join(directory, name), "utf8"));
  const tokenizer = new Tokenizer(await read("tokenizer.json"), await read("tokenizer_config.json"));
  const texts = new Map<number, string>();
  for (const [token, id] of tokenizer.get_vocab(true)) texts.set(id, token.replaceAll("Ġ", " "));
  return (id) => texts.get(id) ?? `#${id}`;
}
