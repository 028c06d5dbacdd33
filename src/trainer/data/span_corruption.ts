// The objective T5 and Switch were pre-trained with: spans of a text are cut out, the model writes them back (Raffel et
// al. 2020, §3.1.4 and Figure 2).
//
//   text    Thank you for inviting me to your party last week .
//   input   Thank you <extra_id_0> me to your party <extra_id_1> week .
//   target  <extra_id_0> for inviting <extra_id_1> last <extra_id_2>
//
// Span lengths are drawn as in the paper's code (`random_spans_noise_mask` of google-research/text-to-text-transfer-
// transformer): a fixed number of noise tokens is divided into a fixed number of spans. There the mask always ends in
// noise; here it is then rolled by a random offset (seqio's `random_roll`), or short texts would always lose their end.

import { randomBelow, randomPermutation, randomU32 } from "./random.ts";
import type { Tokenizer } from "./tokenizer.ts";

export interface SpanCorruption {
  /** Share of tokens cut out; 0.15 in the paper. */
  readonly noiseDensity: number;
  /** Tokens per span on average; 3 in the paper. */
  readonly meanSpanLength: number;
  /** In the order of use. */
  readonly sentinelIds: readonly number[];
}

/** The ids of <extra_id_0>, <extra_id_1>, … as far as the tokenizer has them. */
export function sentinelIdsOf(tokenizer: Tokenizer): number[] {
  const ids: number[] = [];
  for (let id = tokenizer.specials.get("<extra_id_0>"); id !== undefined; ) {
    ids.push(id);
    id = tokenizer.specials.get(`<extra_id_${ids.length}>`);
  }
  return ids;
}

/** `total` as a sum of `parts` positive integers, all such sums equally likely. */
function randomParts(total: number, parts: number, seed: number): number[] {
  const cuts = [...randomPermutation(total - 1, seed, 0).subarray(0, parts - 1)].map((cut) => cut + 1);
  const ends = [...cuts.sort((a, b) => a - b), total];
  return ends.map((end, i) => end - (ends[i - 1] ?? 0));
}

/** How many tokens of so many are cut out, in how many spans before rolling. */
function noiseOf(length: number, { noiseDensity, meanSpanLength, sentinelIds }: SpanCorruption) {
  const noise = Math.min(Math.max(Math.round(length * noiseDensity), 1), length - 1);
  // Rolling can cut one span in two, and one sentinel ends the target.
  const mostSpans = Math.min(noise, length - noise, sentinelIds.length - 2);
  return { noise, spans: Math.min(Math.max(Math.round(noise / meanSpanLength), 1), mostSpans) };
}

/** Tokens of input and target, without end of sequence, that a text of `length` tokens has at most once it is corrupted. */
export function corruptedLengths(length: number, options: SpanCorruption): { input: number; target: number } {
  const { noise, spans } = noiseOf(length, options);
  const sentinels = spans + (noise > spans ? 1 : 0); // a span of one token is never cut in two
  return { input: length - noise + sentinels, target: noise + sentinels + 1 };
}

/** [length], true where a token is cut out. Never all and never none. */
function noiseMask(length: number, options: SpanCorruption, seed: number): boolean[] {
  const { noise, spans } = noiseOf(length, options);
  const noiseParts = randomParts(noise, spans, randomU32(seed, 0, 0));
  const keptParts = randomParts(length - noise, spans, randomU32(seed, 0, 1));
  const mask = keptParts.flatMap((kept, i) => [
    ...new Array<boolean>(kept).fill(false),
    ...new Array<boolean>(noiseParts[i]).fill(true),
  ]);
  const roll = randomBelow(length, seed, 0, 2);
  return [...mask.slice(roll), ...mask.slice(0, roll)];
}

/**
 * Cuts spans out of `tokens`, at least two and without end of sequence; neither result has one.
 *
 * @param seed equal arguments give equal results; a text is corrupted differently under each `stream` (epoch, example …)
 */
export function corruptSpans(
  tokens: readonly number[],
  options: SpanCorruption,
  seed: number,
  stream: number,
): { inputIds: number[]; targetIds: number[] } {
  if (tokens.length < 2) throw new RangeError(`a text of ${tokens.length} tokens has no span to cut out`);
  if (options.sentinelIds.length < 3) throw new RangeError("span corruption needs three sentinels or more");
  const mask = noiseMask(tokens.length, options, randomU32(seed, stream, 0));
  const inputIds: number[] = [];
  const targetIds: number[] = [];
  let spans = 0;
  tokens.forEach((token, i) => {
    if (!mask[i]) {
      inputIds.push(token);
      return;
    }
    if (!mask[i - 1]) {
      const sentinel = options.sentinelIds[spans++];
      inputIds.push(sentinel);
      targetIds.push(sentinel);
    }
    targetIds.push(token);
  });
  targetIds.push(options.sentinelIds[spans]);
  return { inputIds, targetIds };
}
