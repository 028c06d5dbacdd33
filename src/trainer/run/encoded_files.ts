// A run's data files as token ids: each is tokenised once, before the first step where it is known by then, and again only
// when the file has changed. A file is JSON Lines of examples, or plain text where its name ends in .txt.

import { stat } from "node:fs/promises";
import { basename, dirname } from "node:path";
import {
  type EncodedDataset,
  type EncodedExample,
  type EncodingProgress,
  encodeDatasetInSlices,
} from "../data/dataset.ts";
import { parseJsonl } from "../data/jsonl.ts";
import type { MixedSource } from "../data/mixture.ts";
import { corruptedExamples, corruptionOf, encodeWindows, windowTokens } from "../data/plain_text.ts";
import type { Tokenizer } from "../data/tokenizer.ts";
import { inputError } from "../formats/problems.ts";
import { InputError, type RunConfig } from "../types.ts";

/** Corruptions of a text that are told apart; a longer training repeats them. */
const MOST_VARIANTS = 8;
/** Plain text is scored under the same corruption, whatever the run's seed. */
const SCORED_SEED = 0;

/** What tokenising needs to know of a model. */
export interface EncodingModel {
  readonly tokenizer: Tokenizer | undefined;
  readonly model: { readonly vocabularySize: number; readonly eosTokenId: number };
}

export type ScoredData = Pick<EncodedDataset, "examples" | "truncatedInputs" | "truncatedTargets">;

/** As many examples as `size` · `variants`. */
export interface TrainedData extends ScoredData, MixedSource {}

export interface EncodedFiles {
  /** A file as it is scored. @throws InputError with the file and line numbers */
  scored(file: string): Promise<ScoredData>;
  /**
   * A file as it is trained on.
   * @param draws examples that a run may take of it, at most
   * @throws InputError with the file and line numbers
   */
  trained(file: string, draws: number, seed: number): Promise<TrainedData>;
}

/** Hears how far a file has come, many times a second and when it is complete. */
export type OnEncoding = (file: string, progress: EncodingProgress) => void;

type Encoded = { readonly dataset: EncodedDataset } | { readonly windows: readonly Uint32Array[] };

/** The problems with the file they are in, by its folder and its name: a run has several, in several splits. */
function placed({ problems }: InputError, file: string): InputError {
  const place = `${basename(dirname(file))}/${basename(file).replace(/\.\w+$/, "")}`;
  return new InputError(problems.map(({ field, message }) => ({ field, message: `${place}: ${message}` })));
}

export const isPlainText = (file: string): boolean => file.endsWith(".txt");

export function encodedFiles(
  { tokenizer, model: { vocabularySize, eosTokenId } }: EncodingModel,
  { maxInputTokens, maxTargetTokens }: Pick<RunConfig, "maxInputTokens" | "maxTargetTokens">,
  onProgress?: OnEncoding,
): EncodedFiles {
  const known = new Map<string, { readonly version: string; readonly encoded: Encoded }>();

  async function encode(file: string): Promise<Encoded> {
    const report = (progress: EncodingProgress) => onProgress?.(file, progress);
    if (isPlainText(file)) {
      if (!tokenizer) throw inputError("", ["is plain text, and the model has no tokenizer"]);
      const window = windowTokens({ input: maxInputTokens, target: maxTargetTokens }, corruptionOf(tokenizer));
      return { windows: await encodeWindows(file, tokenizer, window, report) };
    }
    const options = { maxInputTokens, maxTargetTokens, vocabularySize, eosTokenId };
    return { dataset: await encodeDatasetInSlices(await parseJsonl(file), tokenizer, options, report) };
  }

  async function encodedOnce(file: string): Promise<Encoded> {
    const { size, mtimeMs } = await stat(file);
    const version = `${size} ${mtimeMs}`;
    const found = known.get(file);
    if (found?.version === version) return found.encoded;
    const encoded = await encode(file).catch((error) => {
      throw error instanceof InputError ? placed(error, file) : error;
    });
    known.set(file, { version, encoded });
    return encoded;
  }

  function corrupted(windows: readonly Uint32Array[], seed: number, variants: number): EncodedExample[] {
    return corruptedExamples(windows, { corruption: corruptionOf(tokenizer!), eosTokenId, seed, variants });
  }
  const uncut = { truncatedInputs: 0, truncatedTargets: 0 };

  return {
    async scored(file) {
      const encoded = await encodedOnce(file);
      if ("dataset" in encoded) return encoded.dataset;
      return { examples: corrupted(encoded.windows, SCORED_SEED, 1), ...uncut };
    },
    async trained(file, draws, seed) {
      const encoded = await encodedOnce(file);
      if ("dataset" in encoded) return { ...encoded.dataset, size: encoded.dataset.examples.length, variants: 1 };
      const size = encoded.windows.length;
      const variants = Math.max(1, Math.min(MOST_VARIANTS, Math.ceil(draws / size)));
      return { examples: corrupted(encoded.windows, seed, variants), size, variants, ...uncut };
    },
  };
}
