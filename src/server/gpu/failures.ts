// What a GPU process could not do, as the error a caller gets. Faults of thaw are kept from the wire; everything else
// says what to change.

import { status } from "@grpc/grpc-js";
import type { OutOfMemory, WorkerError } from "../../../proto/gen/thaw/worker/v1/worker_pb.ts";
import type { RpcError } from "../../../proto/rpc/status.ts";
import { DamagedCheckpointError } from "../../trainer/run/verify_checkpoint.ts";
import { diskFull, invalidArgument, refusal } from "../rpc/errors.ts";

/** A request that a GPU process refused. */
export class WorkerFailure extends Error {
  override name = "WorkerFailure";
  readonly error: WorkerError["error"];

  constructor(error: WorkerError | undefined) {
    const which = error?.error ?? { case: undefined };
    const text = which.value && "message" in which.value ? which.value.message : "";
    super(`${which.case ?? "unknown"} ${text}`.trim());
    this.error = which;
  }
}

/** The GPU process ended before it answered. */
export class WorkerGone extends Error {
  override name = "WorkerGone";
}

/** The error for a caller; undefined when it is a fault of thaw, for the server's log only. */
export function callerError(error: WorkerError["error"]): RpcError | undefined {
  switch (error.case) {
    case "input":
      return invalidArgument(error.value.problems);
    case "outOfMemory":
      return outOfMemory(error.value);
    case "deviceLost":
      return refusal(status.UNAVAILABLE, "DEVICE_LOST", "the GPU was lost; a new GPU process is starting", {}, 2);
    case "wrongState":
      return refusal(status.FAILED_PRECONDITION, "WRONG_STATE", error.value.message);
    case "damagedCheckpoint":
      return damaged(error.value);
    case "diskFull":
      return diskFull();
    case "cancelled":
      return refusal(status.CANCELLED, "CANCELLED", "given up");
    default:
      return undefined;
  }
}

const damaged = ({ message }: { readonly message: string }): RpcError =>
  refusal(status.DATA_LOSS, "CHECKPOINT_DAMAGED", `the checkpoint is damaged: ${message}`);

/** A plan that needs more device memory than there is; with the largest batch size that would fit, 0 for none. */
export function outOfMemory(
  figures: Pick<OutOfMemory, "neededBytes" | "availableBytes" | "fittingBatchSize">,
): RpcError {
  const { neededBytes, availableBytes, fittingBatchSize } = figures;
  const fits =
    fittingBatchSize > 0n ? `a batch size of ${fittingBatchSize} would fit` : "no batch size would make it fit";
  return refusal(
    status.RESOURCE_EXHAUSTED,
    "OUT_OF_DEVICE_MEMORY",
    `needs ${neededBytes} bytes of device memory, ${availableBytes} are available; ${fits}`,
    {
      needed_bytes: String(neededBytes),
      available_bytes: String(availableBytes),
      fitting_batch_size: String(fittingBatchSize),
    },
  );
}

/** Turns what `work` throws on the GPU's account into what a caller may see. */
export async function forCaller<T>(work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (thrown) {
    throw asCallerError(thrown);
  }
}

export function asCallerError(thrown: unknown): unknown {
  if (thrown instanceof WorkerFailure) return callerError(thrown.error) ?? thrown;
  if (thrown instanceof DamagedCheckpointError) return damaged(thrown);
  if (thrown instanceof WorkerGone) {
    const message = "the GPU process ended before it answered; a new one is starting";
    return refusal(status.UNAVAILABLE, "GPU_PROCESS_ENDED", message, {}, 2);
  }
  return thrown;
}
