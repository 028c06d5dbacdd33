// Pre-training examples from a plain text file. A document ends at a blank line; its lines are joined by spaces, its tokens
// cut into windows, and spans cut out of each window (span_corruption.ts). A window never reaches into the next document;
// a rest of a single token is left out.
//
// Windows are kept as token ids and corrupted when an example is asked for: a text takes no more memory for being gone
// through several times, each time with other spans cut out.

import { setImmediate } from "node:timers/promises";
import { inputError, problemList } from "../formats/problems.ts";
import { type EncodedExample, type EncodingProgress, endSequence } from "./dataset.ts";
import { readLines } from "./lines.ts";
import { randomU32 } from "./random.ts";
import { corruptedLengths, corruptSpans, type SpanCorruption, sentinelIdsOf } from "./span_corruption.ts";
import type { Tokenizer } from "./tokenizer.ts";

/** Characters after which a document that does not end is cut, at the end of the line. */
const MAX_DOCUMENT_LENGTH = 1 << 16;
/** Milliseconds of encoding between two looks at the event loop. */
const SLICE_MS = 20;

/**
 * Documents with the number of their first line.
 *
 * @param source a path, or the file's bytes
 * @param name what errors call the file; "" to give only line numbers
 * @throws InputError at a line that is too long or no UTF-8
 */
export async function* readDocuments(
  source: string | Uint8Array,
  name = "",
): AsyncGenerator<{ readonly line: number; readonly text: string }> {
  let lines: string[] = [];
  let length = 0;
  let first = 0;
  for await (const line of readLines(source)) {
    if ("problem" in line) {
      const problems = problemList(name);
      problems.add(`line ${line.number}: ${line.problem}`);
      throw problems.error();
    }
    const text = line.text.trim();
    if (text !== "") {
      if (lines.length === 0) first = line.number;
      lines.push(text);
      length += text.length;
    }
    if (lines.length > 0 && (text === "" || length >= MAX_DOCUMENT_LENGTH)) {
      yield { line: first, text: lines.join(" ") };
      lines = [];
      length = 0;
    }
  }
  if (lines.length > 0) yield { line: first, text: lines.join(" ") };
}

/** How T5 was pre-trained (Raffel et al. 2020, §3.1.4). @throws InputError for a tokenizer with hardly any sentinels */
export function corruptionOf(tokenizer: Tokenizer): SpanCorruption {
  const sentinelIds = sentinelIdsOf(tokenizer);
  if (sentinelIds.length >= 3) return { noiseDensity: 0.15, meanSpanLength: 3, sentinelIds };
  throw inputError("", [
    "is plain text, which needs a tokenizer with <extra_id_0>, <extra_id_1>, <extra_id_2> or more",
  ]);
}

/**
 * Tokens of the longest window of which nothing has to be cut, whichever spans are.
 *
 * @param limits tokens of an input and of a target, end of sequence included
 * @throws InputError when there is none
 */
export function windowTokens(
  limits: { readonly input: number; readonly target: number },
  corruption: SpanCorruption,
): number {
  for (let window = 2 * limits.input; window >= 2; window--) {
    const { input, target } = corruptedLengths(window, corruption);
    if (input < limits.input && target < limits.target) return window;
  }
  const given = `${limits.input} input and ${limits.target} target tokens`;
  throw inputError("", [`is plain text, and ${given} have no room for a window of it`]);
}

/**
 * The windows of a file, in slices that let the event loop run.
 *
 * @param onProgress called after every slice, the last included; counts documents, of which none is cut
 * @returns token ids of each window, without end of sequence; at least one
 * @throws InputError at a line that is too long or no UTF-8, and for a file without text
 */
export async function encodeWindows(
  source: string | Uint8Array,
  tokenizer: Tokenizer,
  window: number,
  onProgress?: (progress: EncodingProgress) => void,
): Promise<Uint32Array[]> {
  let total = 0;
  for await (const _ of readDocuments(source)) total++;
  const windows: Uint32Array[] = [];
  let encoded = 0;
  let due = performance.now() + SLICE_MS;
  for await (const { text } of readDocuments(source)) {
    const tokens = tokenizer.encode(text, { special: false });
    for (let start = 0; start + 2 <= tokens.length; start += window) {
      windows.push(Uint32Array.from(tokens.slice(start, start + window)));
    }
    encoded++;
    if (encoded < total && performance.now() < due) continue;
    onProgress?.({ encoded, total, truncatedInputs: 0, truncatedTargets: 0 });
    await setImmediate();
    due = performance.now() + SLICE_MS;
  }
  if (windows.length === 0) throw inputError("", ["the file has no text"]);
  return windows;
}

export interface CorruptionOptions {
  readonly corruption: SpanCorruption;
  readonly eosTokenId: number;
  readonly seed: number;
  /** How often each window is there, each time with other spans cut out. */
  readonly variants: number;
}

/** `tokens` in the `stream`-th corruption, both sides closed by end of sequence; equal arguments give equal examples. */
export function corruptedExample(
  tokens: ArrayLike<number>,
  { corruption, eosTokenId, seed }: Pick<CorruptionOptions, "corruption" | "eosTokenId" | "seed">,
  stream: number,
): Pick<EncodedExample, "inputIds" | "labels"> {
  const ended = (ids: readonly number[]) => endSequence(ids, ids.length + 1, eosTokenId).ids;
  const { inputIds, targetIds } = corruptSpans(Array.from(tokens), corruption, seed, stream);
  return { inputIds: Uint32Array.from(ended(inputIds)), labels: Int32Array.from(ended(targetIds)) };
}

/** Example v · windows + w is window w in its v-th corruption; equal arguments give equal examples. */
export function corruptedExamples(
  windows: readonly Uint32Array[],
  { corruption, eosTokenId, seed, variants }: CorruptionOptions,
): EncodedExample[] {
  const corrupt = (id: number): EncodedExample => {
    const [variant, window] = [Math.floor(id / windows.length), id % windows.length];
    return corruptedExample(windows[window], { corruption, eosTokenId, seed: randomU32(seed, variant, 0) }, window);
  };
  // An example is asked for its parts one after another.
  let last: { id: number; example: EncodedExample } | undefined;
  const at = (id: number): EncodedExample => {
    if (last?.id !== id) last = { id, example: corrupt(id) };
    return last.example;
  };
  return Array.from({ length: windows.length * variants }, (_, id) => new CorruptedExample(id, at));
}

/** Two fields each, of which there may be millions. */
class CorruptedExample implements EncodedExample {
  readonly #id: number;
  readonly #at: (id: number) => EncodedExample;
  constructor(id: number, at: (id: number) => EncodedExample) {
    this.#id = id;
    this.#at = at;
  }
  get inputIds(): Uint32Array {
    return this.#at(this.#id).inputIds;
  }
  get labels(): Int32Array {
    return this.#at(this.#id).labels;
  }
}
