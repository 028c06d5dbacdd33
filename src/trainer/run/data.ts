// What a run trains on: its data files as token ids (encoded_files.ts), and the batches and lengths that follow from them.

import type { Lengths } from "../data/batches.ts";
import { lengthsOf, trainingData } from "../data/batching.ts";
import { mixtureOrder } from "../data/mixture.ts";
import type { OpenModel } from "../model/open.ts";
import type { RunConfig } from "../types.ts";
import { type EncodedFiles, encodedFiles, type OnEncoding, type TrainedData } from "./encoded_files.ts";
import type { TrainingInput } from "./options.ts";
import { longest } from "./plan.ts";

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
  const { trainFiles, steps, batchSize, accumulationSteps = 1, seed } = config;
  const sources: TrainedData[] = [];
  for (const file of trainFiles) sources.push(await files.trained(file, steps * batchSize * accumulationSteps, seed));
  const examples = sources.flatMap((source) => source.examples);
  const limits = limitsOf(config);
  let inference = lengthsOf(examples, limits);
  for (const file of config.evaluationFiles ?? []) {
    inference = longest(inference, lengthsOf((await files.scored(file)).examples, limits));
  }
  const { padTokenId, decoderStartTokenId } = source.model;
  const options = {
    batching: config.batching ?? "padded",
    size: batchSize,
    limits,
    seed,
    padTokenId,
    decoderStartTokenId,
  };
  const order = mixtureOrder(sources, seed, { cap: config.mixingCap });
  const { batches, shapes, padding } = trainingData(examples, order, options);
  const sum = (field: "size" | "truncatedInputs" | "truncatedTargets") => sources.reduce((n, s) => n + s[field], 0);
  return {
    training: {
      plan: config.trainable,
      batches,
      data: {
        examples: sum("size"),
        truncatedInputs: sum("truncatedInputs"),
        truncatedTargets: sum("truncatedTargets"),
        padding,
        shapes,
      },
    },
    inference,
    files,
  };
}
