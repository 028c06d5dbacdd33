// Span corruption examples for a training held in memory: of the example text line by line, of any other in windows.

import { readFile } from "node:fs/promises";
import type { EncodedExample } from "../../src/trainer/data/dataset.ts";
import { corruptedExample, corruptionOf } from "../../src/trainer/data/plain_text.ts";
import type { Tokenizer } from "../../src/trainer/data/tokenizer.ts";
import { readCorpus } from "./corpus.ts";
import { encodeDocuments } from "./encode.ts";
import { EXAMPLE_TEXT, type Recipe, SEED } from "./recipe.ts";

/** Every so-many-th line or document is held out. */
export const HELD_OUT_EVERY = 20;
/** Each line of the example text is written with so many different corruptions; a longer training repeats them. */
const CORRUPTIONS = 20;

export interface PretrainingData {
  readonly train: readonly EncodedExample[];
  readonly heldOut: readonly EncodedExample[];
  /** What it was made of, in words. */
  readonly text: string;
}

/** How texts become examples: the `stream`-th corruption of some tokens. */
const corrupter = (tokenizer: Tokenizer, eosTokenId: number) => {
  const options = { corruption: corruptionOf(tokenizer), eosTokenId, seed: SEED };
  return (tokens: ArrayLike<number>, stream: number): EncodedExample => corruptedExample(tokens, options, stream);
};

const isHeldOut = (_: unknown, i: number): boolean => i % HELD_OUT_EVERY === 0;
const isTrained = (_: unknown, i: number): boolean => i % HELD_OUT_EVERY !== 0;

/** Each line under its own masks. Held-out lines and the others share none. */
export function lineExamples(
  lines: readonly string[],
  tokenizer: Tokenizer,
  eosTokenId: number,
): Omit<PretrainingData, "text"> {
  const corrupt = corrupter(tokenizer, eosTokenId);
  const tokens = lines.map((line) => tokenizer.encode(line, { special: false }));
  const examples = (i: number, corruptions: number) =>
    Array.from({ length: corruptions }, (_, c) => corrupt(tokens[i], i * CORRUPTIONS + c));
  const places = [...lines.keys()];
  return {
    train: places.filter(isTrained).flatMap((i) => examples(i, CORRUPTIONS)),
    heldOut: places.filter(isHeldOut).flatMap((i) => examples(i, 1)),
  };
}

/**
 * Documents one after another, each closed by end of sequence, cut into windows of `length` tokens: no padding, as T5 was
 * trained (Raffel et al. 2020 §3.1). What is left at the end is dropped.
 */
export function windows(documents: readonly Uint32Array[], length: number, eosTokenId: number): Uint32Array[] {
  const all = new Uint32Array(documents.reduce((n, d) => n + d.length + 1, 0));
  let at = 0;
  for (const document of documents) {
    all.set(document, at);
    all[at + document.length] = eosTokenId;
    at += document.length + 1;
  }
  return Array.from({ length: Math.floor(all.length / length) }, (_, i) => all.subarray(i * length, (i + 1) * length));
}

export async function textData(recipe: Recipe, tokenizer: Tokenizer, eosTokenId: number): Promise<PretrainingData> {
  if (recipe.text.length === 0) {
    const lines = (await readFile(EXAMPLE_TEXT, "utf8")).trimEnd().split("\n");
    return { ...lineExamples(lines, tokenizer, eosTokenId), text: "examples/data/pretraining.txt" };
  }
  const corpus = await readCorpus(recipe.text, recipe.maxCharacters);
  const documents = await encodeDocuments(recipe.tokenizer, corpus.documents);
  const corrupt = corrupter(tokenizer, eosTokenId);
  const examples = (chosen: readonly Uint32Array[]) =>
    windows(chosen, recipe.window, eosTokenId).map((tokens, i) => corrupt(tokens, i));
  const count = (n: number) => n.toLocaleString("en");
  return {
    train: examples(documents.filter(isTrained)),
    heldOut: examples(documents.filter(isHeldOut)),
    text: `${count(corpus.documents.length)} documents, ${count(corpus.characters)} characters, of ${count(corpus.files)} files`,
  };
}

/** The examples as JSON Lines of token ids. */
export const jsonLines = (examples: readonly EncodedExample[]): string =>
  examples.map((e) => `${JSON.stringify({ input_ids: [...e.inputIds], target_ids: [...e.labels] })}\n`).join("");
