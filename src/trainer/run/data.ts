// What a run trains on: its data files as token ids (encoded_files.ts), and the batches and lengths that follow from them.

import type { Lengths } from "../data/batches.ts";
import { lengthsOf, trainingData } from "../data/batching.ts";
import { shuffledOrder } from "../data/order.ts";
import type { OpenModel } from "../model/open.ts";
import type { RunConfig } from "../types.ts";
import { type EncodedFiles, encodedFiles, type OnEncoding } from "./encoded_files.ts";
import { longest } from "./plan.ts";
import type { TrainingInput } from "./run.ts";

type Limits = Pick<RunConfig, "maxInputTokens" | "maxTargetTokens">;

export const limitsOf = ({ maxInputTokens, maxTargetTokens }: Limits): Lengths => ({
  input: maxInputTokens,
  target: maxTargetTokens,
});

/**
 * What a run trains on, the files it knows of tokenised, and the lengths its evaluations will need.
 * @throws InputError with line numbers
 */
export async function openTrainingData(
  source: OpenModel,
  config: RunConfig,
  onEncoding?: OnEncoding,
): Promise<{ training: TrainingInput; inference: Lengths; files: EncodedFiles }> {
  const files = encodedFiles(source, config, onEncoding);
  const { examples, truncatedInputs, truncatedTargets } = await files.dataset(config.trainFile);
  const limits = limitsOf(config);
  let inference = lengthsOf(examples, limits);
  for (const file of config.evaluationFiles ?? []) {
    inference = longest(inference, lengthsOf((await files.dataset(file)).examples, limits));
  }
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
    inference,
    files,
  };
}
