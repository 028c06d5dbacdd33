// A run's data files as token ids, and the padded lengths they need.

import { trainingBatches } from "../data/batches.ts";
import { type EncodedDataset, encodeDatasetInSlices } from "../data/dataset.ts";
import { parseExamples } from "../data/examples.ts";
import type { OpenModel } from "../model/open.ts";
import type { RunConfig } from "../types.ts";
import { type Lengths, longest } from "./plan.ts";
import type { TrainingInput } from "./run.ts";

type Limits = Pick<RunConfig, "maxInputTokens" | "maxTargetTokens">;

/** A JSON Lines or Parquet file as token ids. @throws InputError with line or row numbers */
export async function encodeFile(source: OpenModel, path: string, limits: Limits): Promise<EncodedDataset> {
  const { vocabularySize, eosTokenId } = source.model;
  const { maxInputTokens, maxTargetTokens } = limits;
  const options = { maxInputTokens, maxTargetTokens, vocabularySize, eosTokenId };
  return encodeDatasetInSlices(await parseExamples(path), source.tokenizer, options);
}

/** Lengths are padded to a multiple of this, so that nearly equal data shares programs. */
const LENGTH_STEP = 4;

/** Lengths that hold every example, within the limits. */
export function lengthsOf({ examples }: Pick<EncodedDataset, "examples">, limits: Limits): Lengths {
  const padded = (tokens: number, limit: number) => Math.min(limit, Math.ceil(tokens / LENGTH_STEP) * LENGTH_STEP);
  const input = examples.reduce((n, e) => Math.max(n, e.inputIds.length), 1);
  const target = examples.reduce((n, e) => Math.max(n, e.labels.length), 1);
  return { input: padded(input, limits.maxInputTokens), target: padded(target, limits.maxTargetTokens) };
}

/** What a run trains on, and the lengths its evaluations will need. @throws InputError with line or row numbers */
export async function openTrainingData(
  source: OpenModel,
  config: RunConfig,
): Promise<{ training: TrainingInput; inference: Lengths }> {
  const data = await encodeFile(source, config.trainFile, config);
  const lengths = lengthsOf(data, config);
  const validation = config.validationFile && (await encodeFile(source, config.validationFile, config));
  const { padTokenId, decoderStartTokenId } = source.model;
  const shape = { size: config.batchSize, inputLength: lengths.input, targetLength: lengths.target };
  return {
    training: {
      plan: config.trainable,
      lengths,
      batches: trainingBatches(data.examples, { ...shape, padTokenId, decoderStartTokenId }, config.seed),
      data: {
        examples: data.examples.length,
        truncatedInputs: data.truncatedInputs,
        truncatedTargets: data.truncatedTargets,
      },
    },
    inference: validation ? longest(lengths, lengthsOf(validation, config)) : lengths,
  };
}
