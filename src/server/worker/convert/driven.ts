// A caller's own loop: its examples in, what they came to out.

import type { MessageInitShape } from "@bufbuild/protobuf";
import type { ForwardBackwardResponseSchema, TrainingExample } from "../../../../proto/gen/thaw/v1/step_service_pb.ts";
import type { DrivenBatch, DrivenExample } from "../../../trainer/types.ts";
import { layerToProto } from "./metrics.ts";
import { count } from "./scalars.ts";

export const drivenExample = ({ input, target, inputIds, targetIds }: TrainingExample): DrivenExample =>
  inputIds.length > 0 ? { inputIds, targetIds } : { input, target };

/** @param step of the run, whose gradients these are */
export const drivenBatchToProto = (
  step: number,
  b: DrivenBatch,
): MessageInitShape<typeof ForwardBackwardResponseSchema> => ({
  step: count(step),
  batches: count(b.batches),
  loss: b.loss,
  targetTokens: count(b.targetTokens),
  tokenLosses: b.tokenLosses.map((losses) => ({ losses: [...losses] })),
  truncatedInputs: count(b.truncatedInputs),
  truncatedTargets: count(b.truncatedTargets),
  layers: b.layers.map(layerToProto),
});
