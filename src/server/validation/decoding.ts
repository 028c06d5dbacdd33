// How a caller may have the next token chosen.

import type { GenerateRequest } from "../../../proto/gen/thaw/v1/model_service_pb.ts";
import { nonNegative, positive } from "./numbers.ts";
import { checkRange, type Problems } from "./problems.ts";

const MAX_BEAMS = 16;

export function checkDecoding(problems: Problems, decoding: GenerateRequest["decoding"]): void {
  if (decoding.case === "sample") {
    const { temperature, topP = 1, seed } = decoding.value;
    positive(problems, "sample.temperature", temperature);
    if (!(topP > 0 && topP <= 1)) problems.add("sample.top_p", `is ${topP}; must be in (0, 1]`);
    checkRange(problems, "sample.seed", seed, 0, 2 ** 32 - 1);
  } else if (decoding.case === "beam") {
    // 0 beams are the default.
    checkRange(problems, "beam.beams", decoding.value.beams, 0, MAX_BEAMS);
    nonNegative(problems, "beam.length_penalty", decoding.value.lengthPenalty);
  }
}
