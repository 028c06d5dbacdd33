// How the next token is chosen, in the trainer's terms. Defaults stand in the comments of model.proto; this file is the
// only place where they are numbers.

import type { Generate } from "../../../../proto/gen/thaw/worker/v1/worker_pb.ts";
import type { Decoding } from "../../../trainer/types.ts";

export function decodingFromProto(decoding: Generate["decoding"]): Decoding {
  switch (decoding.case) {
    case "sample": {
      const { temperature = 1, topP = 1, seed } = decoding.value;
      return { kind: "sample", temperature, topP, seed: Number(seed) };
    }
    case "beam": {
      const { beams, lengthPenalty = 1 } = decoding.value;
      return { kind: "beam", beams: beams || 4, lengthPenalty };
    }
    case "greedy":
    case undefined:
      return { kind: "greedy" };
  }
}
