// Pre-training examples from a plain text file, made on the fly: nothing but the text at hand is in memory. A document
// ends at a blank line; its lines are joined by spaces, its tokens cut into windows, and spans cut out of each window
// (span_corruption.ts). A window never reaches into the next document; a rest of a single token is left out.

import { problemList } from "../formats/problems.ts";
import type { TokenExample } from "./jsonl.ts";
import { readLines } from "./lines.ts";
import { randomU32 } from "./random.ts";
import { corruptSpans, type SpanCorruption } from "./span_corruption.ts";
import type { Tokenizer } from "./tokenizer.ts";

/** Characters after which a document that does not end is cut, at the end of the line. */
const MAX_DOCUMENT_LENGTH = 1 << 16;

export interface PlainTextOptions {
  /** Tokens of a window, before corruption and without end of sequence; at least two. */
  readonly windowTokens: number;
  readonly corruption: SpanCorruption;
  readonly seed: number;
  /** The same windows are corrupted differently in every epoch. */
  readonly epoch: number;
  /** Windows to leave out at the start: example k is the same wherever reading starts. */
  readonly skip?: number;
}

/** Documents with the number of their first line. @throws InputError at a line that is too long or no UTF-8 */
async function* documents(source: string | Uint8Array, name: string): AsyncGenerator<{ line: number; text: string }> {
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

/**
 * The examples of one epoch, in file order; equal arguments give equal examples.
 *
 * @param source a path, or the file's bytes
 * @param name what errors call the file; "" to give only line numbers
 * @throws InputError at a line that is too long or no UTF-8, after the examples before it
 */
export async function* plainTextExamples(
  source: string | Uint8Array,
  tokenizer: Tokenizer,
  options: PlainTextOptions,
  name = "",
): AsyncGenerator<TokenExample> {
  const { windowTokens, corruption, skip = 0 } = options;
  if (!(windowTokens >= 2)) throw new RangeError(`a window of ${windowTokens} tokens has no span to cut out`);
  const seed = randomU32(options.seed, options.epoch, 0);
  let window = 0;
  for await (const { line, text } of documents(source, name)) {
    const tokens = tokenizer.encode(text, { special: false });
    for (let start = 0; start + 2 <= tokens.length; start += windowTokens) {
      const index = window++;
      if (index < skip) continue;
      yield { line, ...corruptSpans(tokens.slice(start, start + windowTokens), corruption, seed, index) };
    }
  }
}
