// A run's data files as token ids: each is tokenised once, before the first step where it is known by then, and again only
// when the file has changed.

import { stat } from "node:fs/promises";
import { type EncodedDataset, type EncodingProgress, encodeDatasetInSlices } from "../data/dataset.ts";
import { parseJsonl } from "../data/jsonl.ts";
import type { OpenModel } from "../model/open.ts";
import type { RunConfig } from "../types.ts";

export interface EncodedFiles {
  /** A JSON Lines file. @throws InputError with line numbers */
  dataset(file: string): Promise<EncodedDataset>;
}

/** Hears how far a file has come, many times a second and when it is complete. */
export type OnEncoding = (file: string, progress: EncodingProgress) => void;

export function encodedFiles(
  source: OpenModel,
  { maxInputTokens, maxTargetTokens }: Pick<RunConfig, "maxInputTokens" | "maxTargetTokens">,
  onProgress?: OnEncoding,
): EncodedFiles {
  const known = new Map<string, { readonly version: string; readonly data: EncodedDataset }>();
  const { vocabularySize, eosTokenId } = source.model;
  const options = { maxInputTokens, maxTargetTokens, vocabularySize, eosTokenId };
  return {
    async dataset(file) {
      const { size, mtimeMs } = await stat(file);
      const version = `${size} ${mtimeMs}`;
      const found = known.get(file);
      if (found?.version === version) return found.data;
      const data = await encodeDatasetInSlices(await parseJsonl(file), source.tokenizer, options, (progress) =>
        onProgress?.(file, progress),
      );
      known.set(file, { version, data });
      return data;
    },
  };
}
