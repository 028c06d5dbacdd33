// A run's data files as token ids, and the batches and lengths that follow from them.

import type { Lengths } from "../data/batches.ts";
import { lengthsOf, trainingData } from "../data/batching.ts";
import { type EncodedDataset, encodeDatasetInSlices } from "../data/dataset.ts";
import { parseJsonl } from "../data/jsonl.ts";
import { shuffledOrder } from "../data/order.ts";
import type { OpenModel } from "../model/open.ts";
import type { RunConfig } from "../types.ts";
import { longest } from "./plan.ts";
import type { TrainingInput } from "./run.ts";

type Limits = Pick<RunConfig, "maxInputTokens" | "maxTargetTokens">;

/** A JSON Lines file as token ids. @throws InputError with line numbers */
export async function encodeFile(source: OpenModel, path: string, limits: Limits): Promise<EncodedDataset> {
  const { vocabularySize, eosTokenId } = source.model;
  const { maxInputTokens, maxTargetTokens } = limits;
  const options = { maxInputTokens, maxTargetTokens, vocabularySize, eosTokenId };
  return encodeDatasetInSlices(await parseJsonl(path), source.tokenizer, options);
}

export const limitsOf = ({ maxInputTokens, maxTargetTokens }: Limits): Lengths => ({
  input: maxInputTokens,
  target: maxTargetTokens,
});

/** What a run trains on, and the lengths its evaluations will need. @throws InputError with line numbers */
export async function openTrainingData(
  source: OpenModel,
  config: RunConfig,
): Promise<{ training: TrainingInput; inference: Lengths }> {
  const { examples, truncatedInputs, truncatedTargets } = await encodeFile(source, config.trainFile, config);
  const limits = limitsOf(config);
  const lengths = lengthsOf(examples, limits);
  const validation = config.validationFile && (await encodeFile(source, config.validationFile, config));
  const { padTokenId, decoderStartTokenId } = source.model;
  const { batching = "padded", batchSize: size, seed } = config;
  const options = { batching, size, limits, seed, padTokenId, decoderStartTokenId };
  const { batches, shapes, padding } = trainingData(examples, shuffledOrder(examples.length, seed), options);
  return {
    training: {
      plan: config.trainable,
      batches,
      data: { examples: examples.length, truncatedInputs, truncatedTargets, padding, shapes },
    },
    inference: validation ? longest(lengths, lengthsOf(validation.examples, limits)) : lengths,
  };
}
