// Trains a tokenizer: byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) with T5's special tokens, in the form of
// Hugging Face's tokenizer.json.
//
//   npx tsx scripts/make_tokenizer.ts                 the example models', from examples/data
//   npx tsx scripts/make_tokenizer.ts --text PATH --text PATH --vocabulary 8192 --out DIR
//                                                     from the text in files and folders (pretraining/corpus.ts)
//
// The first learns from the pre-training text and the tasks' training splits and writes examples/models/mini-switch. The
// same data gives the same bytes. Ids: <pad> 0, </s> 1, <unk> 2, the 256 bytes, the merges in the order learnt, the
// sentinels <extra_id_0> … Every text has an encoding and comes back from it unchanged: a space is put before the first
// word, so that a word has one token wherever it stands, and taken away when decoding.

import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join, relative } from "node:path";
import { argv, cwd, stdout } from "node:process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { parseJsonl } from "../src/trainer/data/jsonl.ts";
import { readCorpus } from "./pretraining/corpus.ts";

/** Of the example models. */
const VOCABULARY_SIZE = 960;
const SENTINELS = 16;
/** Pieces rarer than this teach no merge when there is much text. */
const MIN_WORD_COUNT = 3;
const SPECIALS = ["<pad>", "</s>", "<unk>"];

/** How text is cut into words before merging: GPT-2's pattern, which the ByteLevel pre-tokenizer has built in. */
const WORDS = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;

/** GPT-2's letter for each byte: printable Latin-1 stands for itself, the rest for U+0100 and on. */
const BYTE_LETTERS: readonly string[] = (() => {
  const printable = (byte: number) => (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte !== 0xad);
  let next = 0x100;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(printable(byte) ? byte : next++));
})();

/** Occurrences of each word, spelt in byte letters. */
function countWords(texts: Iterable<string>): Map<string, number> {
  const counts = new Map<string, number>();
  const encoder = new TextEncoder();
  for (const text of texts) {
    for (const [word] of ` ${text}`.matchAll(WORDS)) {
      const letters = Array.from(encoder.encode(word), (byte) => BYTE_LETTERS[byte]).join("");
      counts.set(letters, (counts.get(letters) ?? 0) + 1);
    }
  }
  return counts;
}

/** `symbols` with every occurrence of the pair joined, left to right. */
function merge(symbols: readonly string[], [left, right]: readonly [string, string]): string[] {
  const result: string[] = [];
  for (let i = 0; i < symbols.length; i++) {
    if (symbols[i] === left && symbols[i + 1] === right) result.push(left + symbols[++i]);
    else result.push(symbols[i]);
  }
  return result;
}

/** Pairs of neighbours in a word, each place of theirs once. */
const pairsOf = (symbols: readonly string[]): string[] => symbols.slice(1).map((right, i) => `${symbols[i]} ${right}`);

/** The most frequent pair of neighbours, joined; again, up to `limit` times. Ties: the pair first in code-unit order. */
function learnMerges(wordCounts: ReadonlyMap<string, number>, limit: number): [string, string][] {
  const words = [...wordCounts].map(([letters, count]) => ({ symbols: [...letters], count }));
  const counts = new Map<string, number>();
  /** Words in which a pair stands or once stood. */
  const places = new Map<string, Set<number>>();
  const add = (pair: string, word: number, times: number): void => {
    const count = (counts.get(pair) ?? 0) + times;
    if (count === 0) counts.delete(pair);
    else counts.set(pair, count);
    const at = places.get(pair);
    if (at) at.add(word);
    else places.set(pair, new Set([word]));
  };
  words.forEach(({ symbols, count }, word) => {
    for (const pair of pairsOf(symbols)) add(pair, word, count);
  });
  const merges: [string, string][] = [];
  while (merges.length < limit && counts.size > 0) {
    let [best, most] = ["", 0];
    for (const [pair, count] of counts)
      if (count > most || (count === most && pair < best)) [best, most] = [pair, count];
    const pair = best.split(" ") as [string, string];
    merges.push(pair);
    for (const at of places.get(best)!) {
      const word = words[at];
      const merged = merge(word.symbols, pair);
      if (merged.length === word.symbols.length) continue;
      for (const old of pairsOf(word.symbols)) add(old, at, -word.count);
      for (const now of pairsOf(merged)) add(now, at, word.count);
      word.symbols = merged;
    }
    places.delete(best);
  }
  return merges;
}

/** The tokenizer's two files by name, learnt from words that occur at least `minCount` times in `texts`. */
export function makeTokenizer(
  texts: Iterable<string>,
  vocabularySize = VOCABULARY_SIZE,
  minCount = 1,
): Map<string, string> {
  const room = vocabularySize - SPECIALS.length - BYTE_LETTERS.length - SENTINELS;
  const words = [...countWords(texts)].filter(([, count]) => count >= minCount);
  const merges = learnMerges(new Map(words), room);
  const sentinels = Array.from({ length: SENTINELS }, (_, i) => `<extra_id_${i}>`);
  const tokens = [...SPECIALS, ...BYTE_LETTERS, ...merges.map((pair) => pair.join(""))];
  const added = [
    ...SPECIALS.map((content, id) => ({ id, content })),
    ...sentinels.map((content, i) => ({ id: tokens.length + i, content })),
  ];
  const endOfSequence = { SpecialToken: { id: "</s>", type_id: 0 } };
  const sequence = (id: string) => ({ Sequence: { id, type_id: 0 } });
  const definition = {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: added.map(({ id, content }) => ({
      id,
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    })),
    normalizer: { type: "Prepend", prepend: " " },
    pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true },
    post_processor: {
      type: "TemplateProcessing",
      single: [sequence("A"), endOfSequence],
      pair: [sequence("A"), endOfSequence, sequence("B"), endOfSequence],
      special_tokens: { "</s>": { id: "</s>", ids: [1], tokens: ["</s>"] } },
    },
    decoder: {
      type: "Sequence",
      decoders: [
        { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true },
        { type: "Strip", content: " ", start: 1, stop: 0 },
      ],
    },
    model: {
      type: "BPE",
      dropout: null,
      unk_token: "<unk>",
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      merges,
    },
  };
  const config = {
    tokenizer_class: "PreTrainedTokenizerFast",
    pad_token: "<pad>",
    eos_token: "</s>",
    unk_token: "<unk>",
    additional_special_tokens: sentinels,
    clean_up_tokenization_spaces: false,
    model_max_length: 512,
  };
  return new Map([
    ["tokenizer.json", `${JSON.stringify(definition, null, 1)}\n`],
    ["tokenizer_config.json", `${JSON.stringify(config, null, 2)}\n`],
  ]);
}

/** What the tokenizer is learnt from: one text per document, input and target. */
export async function tokenizerTexts(dataDirectory: string): Promise<string[]> {
  const texts = (await readFile(join(dataDirectory, "pretraining.txt"), "utf8")).trimEnd().split("\n");
  for (const task of ["entailment", "reading", "acceptability"]) {
    for (const example of await parseJsonl(join(dataDirectory, task, "train.jsonl"))) {
      if ("input" in example) texts.push(example.input, example.target);
    }
  }
  return texts;
}

if (argv[1] === fileURLToPath(import.meta.url)) {
  const examples = fileURLToPath(new URL("../examples", import.meta.url));
  const { values } = parseArgs({
    options: {
      text: { type: "string", multiple: true },
      "max-characters": { type: "string", default: `${100e6}` },
      vocabulary: { type: "string", default: `${VOCABULARY_SIZE}` },
      out: { type: "string", default: join(examples, "models/mini-switch") },
    },
  });
  const vocabularySize = Number(values.vocabulary);
  const smallest = SPECIALS.length + BYTE_LETTERS.length + SENTINELS;
  if (!(Number.isSafeInteger(vocabularySize) && vocabularySize >= smallest))
    throw new Error(`--vocabulary must be a whole number from ${smallest}, is ${values.vocabulary}`);
  const files = values.text
    ? makeTokenizer(
        (await readCorpus(values.text, Number(values["max-characters"]))).documents,
        vocabularySize,
        MIN_WORD_COUNT,
      )
    : makeTokenizer(await tokenizerTexts(join(examples, "data")), vocabularySize);
  await mkdir(values.out, { recursive: true });
  for (const [name, content] of files) {
    await writeFile(join(values.out, name), content);
    stdout.write(`${relative(cwd(), join(values.out, name))}: ${content.length} bytes\n`);
  }
}
