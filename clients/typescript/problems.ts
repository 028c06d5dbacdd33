// What a failed call says, read out of its google.rpc details: which fields were wrong, a stable reason to branch on, the
// figures behind it, and when to try again.

import { durationMs } from "@bufbuild/protobuf/wkt";
import { status } from "@grpc/grpc-js";
import {
  BadRequestSchema,
  ErrorInfoSchema,
  RequestInfoSchema,
  RetryInfoSchema,
} from "../../proto/gen/google/rpc/error_details_pb.ts";
import type { Status } from "../../proto/gen/google/rpc/status_pb.ts";
import { findDetail, fromStatus, fromWire, type RpcError } from "../../proto/rpc/status.ts";

export interface FieldProblem {
  /** Path in the request, `lower_snake.dotted`; empty when the problem belongs to no single field. */
  readonly field: string;
  readonly message: string;
}

export interface Problems {
  /** The gRPC code by name, for instance `FAILED_PRECONDITION`. */
  readonly code: string;
  /** For people, one line. */
  readonly message: string;
  /** A stable UPPER_SNAKE_CASE reason; empty for errors that do not come from thaw. */
  readonly reason: string;
  /** Figures behind the reason, for instance `{ state: "PAUSED", allowed: "RUNNING" }`. */
  readonly figures: Readonly<Record<string, string>>;
  /**
   * Every bad field of the request; the server sends a bounded number and says how many there were in `figures.problems`.
   */
  readonly fields: readonly FieldProblem[];
  /** How long to wait before the same call may succeed, in milliseconds; undefined when waiting does not help. */
  readonly retryAfterMs?: number;
  /** Of a fault of the server: what its log has the rest under. */
  readonly requestId?: string;
}

/** Reads any error that a client method threw. One that is no RPC error has the code `UNKNOWN` and its own message. */
export function problemsOf(error: unknown): Problems {
  const failed: RpcError = fromWire(error);
  const info = findDetail(failed, ErrorInfoSchema);
  const retry = findDetail(failed, RetryInfoSchema)?.retryDelay;
  const request = findDetail(failed, RequestInfoSchema);
  const violations = findDetail(failed, BadRequestSchema)?.fieldViolations ?? [];
  return {
    code: status[failed.code] ?? String(failed.code),
    message: failed.message,
    reason: info?.reason ?? "",
    figures: info?.metadata ?? {},
    fields: violations.map(({ field, description }) => ({ field, message: description })),
    ...(retry ? { retryAfterMs: durationMs(retry) } : {}),
    ...(request ? { requestId: request.requestId } : {}),
  };
}

/** Reads an error that travelled inside a message: Run.error, StateChanged.error, SteerAcknowledgement.error. */
export const problemsOfStatus = (error: Status): Problems => problemsOf(fromStatus(error));
