// Which states allow which calls, and the error when one does not.

import { status } from "@grpc/grpc-js";
import type { Run } from "../../../proto/gen/thaw/v1/run_pb.ts";
import { RunState, RunStateSchema } from "../../../proto/gen/thaw/v1/run_state_pb.ts";
import type { RpcError } from "../../../proto/rpc/status.ts";
import { refusal } from "../rpc/errors.ts";

const { QUEUED, STARTING, RUNNING, PAUSING, PAUSED, CANCELLING, CANCELLED, SUCCEEDED, FAILED } = RunState;

export const ENDED: readonly RunState[] = [CANCELLED, SUCCEEDED, FAILED];
export const hasEnded = (state: RunState): boolean => ENDED.includes(state);
/** States in which a run holds a GPU, or is about to. PAUSED holds one only while the run is open. */
export const ON_GPU: readonly RunState[] = [STARTING, RUNNING, PAUSING, CANCELLING];

export const ALLOWED = {
  pause: [QUEUED, STARTING, RUNNING],
  resume: [PAUSING, PAUSED],
  cancel: [QUEUED, STARTING, RUNNING, PAUSING, PAUSED],
  setTrainable: [QUEUED, STARTING, RUNNING, PAUSING, PAUSED],
  drive: [PAUSED],
  saveCheckpoint: [RUNNING, PAUSING, PAUSED],
  usePresentParameters: [RUNNING, PAUSING, PAUSED],
  delete: ENDED,
} as const satisfies Record<string, readonly RunState[]>;

export const stateName = (state: RunState): string =>
  (RunStateSchema.value[state]?.name ?? String(state)).replace(/^RUN_STATE_/, "");

/** FAILED_PRECONDITION naming the state and the allowed ones. @param but why an allowed state was not enough */
export function wrongState(run: Run, allowed: readonly RunState[], but = ""): RpcError {
  const names = allowed.map(stateName).join(", ");
  const why = but || `this needs ${names}`;
  return refusal(status.FAILED_PRECONDITION, "WRONG_STATE", `${run.name} is ${stateName(run.state)}; ${why}`, {
    state: stateName(run.state),
    allowed: names,
  });
}

export function requireState(run: Run, allowed: readonly RunState[]): void {
  if (!allowed.includes(run.state)) throw wrongState(run, allowed);
}

export function notFound(name: string): RpcError {
  return refusal(status.NOT_FOUND, "NOT_FOUND", `${name} does not exist`, { name });
}
