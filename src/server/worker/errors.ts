// What goes wrong in the GPU process, as the typed failures of the worker protocol. Everything that is not a known
// mistake or circumstance is a fault of thaw and carries its stack, for the server's log only.

import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { type WorkerError, WorkerErrorSchema } from "../../../proto/gen/thaw/worker/v1/worker_pb.ts";
import { DeviceLostError, OutOfMemoryError } from "../../kernels/device/errors.ts";
import { DamagedCheckpointError } from "../../trainer/run/verify_checkpoint.ts";
import { InputError, MemoryError } from "../../trainer/types.ts";
import { isDiskFull } from "../storage/disk_full.ts";
import { count } from "./convert/scalars.ts";

/** The request does not fit how the run stands. */
export class WrongStateError extends Error {
  override readonly name = "WrongStateError";
}

/** The request was given up by CancelRequest. */
export class CancelledError extends Error {
  override readonly name = "CancelledError";
}

/** What a caller can do about a run that diverges. */
export const DIVERGENCE_REMEDY = "a lower learning rate, warm-up or clipping may help";

/** A step of a run had no finite loss or gradient, and the run is to go back to its newest checkpoint. */
export class DivergedError extends Error {
  override readonly name = "DivergedError";
  /** Counted from 1. */
  readonly step: number;
  constructor(step: number, message: string) {
    super(message);
    this.step = step;
  }
}

export function errorToProto(error: unknown): WorkerError {
  return create(WorkerErrorSchema, { error: caseOf(error) });
}

function caseOf(error: unknown): MessageInitShape<typeof WorkerErrorSchema>["error"] {
  if (error instanceof InputError) {
    return { case: "input", value: { problems: error.problems.map(({ field, message }) => ({ field, message })) } };
  }
  if (error instanceof MemoryError) {
    const { neededBytes, availableBytes, fittingBatchSize } = error;
    return {
      case: "outOfMemory",
      value: {
        neededBytes: count(neededBytes),
        availableBytes: count(availableBytes),
        fittingBatchSize: count(fittingBatchSize),
      },
    };
  }
  // The device refused what the plan allowed; how much is left it does not say.
  if (error instanceof OutOfMemoryError) return { case: "outOfMemory", value: { neededBytes: count(error.bytes) } };
  if (error instanceof DeviceLostError) return { case: "deviceLost", value: { message: error.message } };
  if (error instanceof DamagedCheckpointError) return { case: "damagedCheckpoint", value: { message: error.message } };
  if (isDiskFull(error)) return { case: "diskFull", value: { message: (error as Error).message } };
  if (error instanceof DivergedError)
    return { case: "diverged", value: { step: count(error.step), message: error.message } };
  if (error instanceof WrongStateError) return { case: "wrongState", value: { message: error.message } };
  if (error instanceof CancelledError) return { case: "cancelled", value: {} };
  return {
    case: "internal",
    value: { message: error instanceof Error ? (error.stack ?? String(error)) : String(error) },
  };
}

/** Whether a refused request has left everything as it was. */
export const isRefusal = (error: unknown): boolean =>
  error instanceof InputError || error instanceof MemoryError || error instanceof WrongStateError;
