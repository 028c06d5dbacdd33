// Examples as token ids: what batches are made of. Input and target end in the end-of-sequence token, as T5 was trained
// (Raffel et al. 2020); what is too long is cut before it and counted.

import { setImmediate } from "node:timers/promises";
import { problemList } from "../formats/problems.ts";
import type { Example, ScoringFields } from "./jsonl.ts";
import type { Tokenizer } from "./tokenizer.ts";

export interface EncodedExample extends ScoringFields {
  /** [inputTokens], the last one end of sequence. */
  readonly inputIds: Uint32Array;
  /** [targetTokens], the last one end of sequence. -100 = no loss at that position. */
  readonly labels: Int32Array;
  /** As written in the file; absent where the file gave token ids. */
  readonly input?: string;
  readonly target?: string;
  readonly task?: string;
}

export interface EncodedDataset {
  /** In file order: an example's id is its index here. */
  readonly examples: readonly EncodedExample[];
  readonly truncatedInputs: number;
  readonly truncatedTargets: number;
  /** Tokens of all examples after truncation, without padding. */
  readonly inputTokens: number;
  readonly targetTokens: number;
}

export interface EncodingOptions {
  /** End of sequence included. */
  readonly maxInputTokens: number;
  readonly maxTargetTokens: number;
  /** Rows of the model's embedding. */
  readonly vocabularySize: number;
  readonly eosTokenId: number;
}

/** Ids of at most `limit` tokens ending in end of sequence, and whether something was cut. */
export function endSequence(
  ids: readonly number[],
  limit: number,
  eosTokenId: number,
): { ids: readonly number[]; truncated: boolean } {
  const content = ids.at(-1) === eosTokenId ? ids.slice(0, -1) : ids;
  return { ids: [...content.slice(0, limit - 1), eosTokenId], truncated: content.length > limit - 1 };
}

const lineOf = (line: number): string => `line ${line}`;

/** Takes examples one by one; `finish` gives the whole, or throws what was wrong with all of them. */
function datasetEncoder(tokenizer: Tokenizer | undefined, options: EncodingOptions, placeOf = lineOf) {
  const { vocabularySize, eosTokenId } = options;
  const problems = problemList("");
  const examples: EncodedExample[] = [];
  const count = { truncatedInputs: 0, truncatedTargets: 0, inputTokens: 0, targetTokens: 0 };

  function check(ids: readonly number[], field: string, place: string): void {
    const outside = ids.find((id) => id >= vocabularySize);
    if (outside === undefined) return;
    problems.add(`${place}: ${field} has token id ${outside}; the model's vocabulary has ${vocabularySize}`);
  }

  return {
    count,
    add(example: Example): void {
      const place = placeOf(example.line);
      const { answers, group, label } = "input" in example ? example : {};
      let ids: { input: readonly number[]; target: readonly number[] };
      if ("inputIds" in example) ids = { input: example.inputIds, target: example.targetIds };
      else if (tokenizer) {
        const encode = (text: string): number[] => tokenizer.encode(text, { special: true });
        ids = { input: encode(example.input), target: encode(example.target) };
      } else {
        problems.add(`${place}: is text, and the model has no tokenizer; give input_ids and target_ids`);
        return;
      }
      check(ids.input, "input", place);
      check(ids.target, "target", place);
      const input = endSequence(ids.input, options.maxInputTokens, eosTokenId);
      const target = endSequence(ids.target, options.maxTargetTokens, eosTokenId);
      count.truncatedInputs += input.truncated ? 1 : 0;
      count.truncatedTargets += target.truncated ? 1 : 0;
      count.inputTokens += input.ids.length;
      count.targetTokens += target.ids.length;
      examples.push({
        inputIds: Uint32Array.from(input.ids),
        labels: Int32Array.from(target.ids),
        ...("input" in example && { input: example.input, target: example.target }),
        ...(example.task !== undefined && { task: example.task }),
        ...(answers !== undefined && { answers }),
        ...(group !== undefined && { group }),
        ...(label !== undefined && { label }),
      });
    },
    finish(): EncodedDataset {
      const error = problems.error();
      if (error) throw error;
      return { examples, ...count };
    },
  };
}

/**
 * Encodes text by `tokenizer`; token ids are taken as given. Either way the end-of-sequence token is appended where it
 * is missing.
 *
 * @param placeOf what errors call the place of an example
 * @throws InputError naming the place of every token id outside the vocabulary, and of text without a tokenizer
 */
export function encodeDataset(
  examples: readonly Example[],
  tokenizer: Tokenizer | undefined,
  options: EncodingOptions,
  placeOf?: (line: number) => string,
): EncodedDataset {
  const encoder = datasetEncoder(tokenizer, options, placeOf);
  examples.forEach(encoder.add);
  return encoder.finish();
}

/** Examples encoded so far of how many, and those of them that were cut. */
export interface EncodingProgress {
  readonly encoded: number;
  readonly total: number;
  readonly truncatedInputs: number;
  readonly truncatedTargets: number;
}

/** Milliseconds of encoding between two looks at the event loop. */
const SLICE_MS = 20;

/**
 * `encodeDataset` in slices that let the event loop run, for a whole file: its server goes on answering.
 *
 * @param onProgress called after every slice, the last included
 * @throws InputError as `encodeDataset` does, after all examples
 */
export async function encodeDatasetInSlices(
  examples: readonly Example[],
  tokenizer: Tokenizer | undefined,
  options: EncodingOptions,
  onProgress?: (progress: EncodingProgress) => void,
): Promise<EncodedDataset> {
  const encoder = datasetEncoder(tokenizer, options);
  for (let encoded = 0; encoded < examples.length; ) {
    const end = performance.now() + SLICE_MS;
    do encoder.add(examples[encoded++]);
    while (encoded < examples.length && performance.now() < end);
    const { truncatedInputs, truncatedTargets } = encoder.count;
    onProgress?.({ encoded, total: examples.length, truncatedInputs, truncatedTargets });
    await setImmediate();
  }
  return encoder.finish();
}
