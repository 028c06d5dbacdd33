// A caller's own loop: its examples in, what they came to out.

import type { MessageInitShape } from "@bufbuild/protobuf";
import type { ForwardBackwardResponseSchema, TrainingExample } from "../../../../proto/gen/thaw/v1/step_service_pb.ts";
import type { DrivenBatch, DrivenExample } from "../../../trainer/types.ts";
import type { Recordings } from "../recordings.ts";
import { layerToProto } from "./metrics.ts";
import { count } from "./scalars.ts";

/** The `index`-th example of a batch. @throws InputError when the routes it names are not kept */
export function drivenExample(example: TrainingExample, index: number, recordings: Recordings): DrivenExample {
  const { input, target, inputIds, targetIds, replay } = example;
  const field = `examples[${index}].replay`;
  const routes = replay && recordings.find(replay.recording, replay.example, field);
  return inputIds.length > 0 ? { inputIds, targetIds, routes } : { input, target, routes };
}

/**
 * @param step of the run, whose gradients these are
 * @param recording of the batch's routes; "" for none
 */
export const drivenBatchToProto = (
  step: number,
  b: DrivenBatch,
  recording: string,
): MessageInitShape<typeof ForwardBackwardResponseSchema> => ({
  step: count(step),
  batches: count(b.batches),
  loss: b.loss,
  targetTokens: count(b.targetTokens),
  tokenLosses: b.tokenLosses.map((losses) => ({ losses: [...losses] })),
  truncatedInputs: count(b.truncatedInputs),
  truncatedTargets: count(b.truncatedTargets),
  layers: b.layers.map(layerToProto),
  recording,
});
