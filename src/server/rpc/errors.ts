// The errors services answer with, in the shapes clients can act on: BadRequest lists every bad field, ErrorInfo names a
// stable reason in the domain `thaw` with the figures as metadata, RetryInfo says when waiting helps.

import { create } from "@bufbuild/protobuf";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { status } from "@grpc/grpc-js";
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "../../../proto/gen/google/rpc/error_details_pb.ts";
import { RpcError, withDetail } from "../../../proto/rpc/status.ts";

/** Field violations that one answer carries at most; the message says how many there were. */
export const MAX_FIELD_VIOLATIONS = 50;
const MAX_PROBLEMS_IN_MESSAGE = 5;

/**
 * An error with a reason. `metadata` carries figures as text, for instance `{ state: "PAUSED", allowed: "RUNNING" }`;
 * `retrySeconds` is set where the same call may succeed later.
 */
export function refusal(
  code: status,
  reason: string,
  message: string,
  metadata: Record<string, string> = {},
  retrySeconds?: number,
): RpcError {
  const info = create(ErrorInfoSchema, { reason, domain: "thaw", metadata });
  const error = withDetail(new RpcError(code, message), ErrorInfoSchema, info);
  if (retrySeconds === undefined) return error;
  const retryDelay = durationFromMs(Math.round(retrySeconds * 1000));
  return withDetail(error, RetryInfoSchema, create(RetryInfoSchema, { retryDelay }));
}

/** INVALID_ARGUMENT with every problem found; `field` is a path in the request, `lower_snake.dotted`, or "". */
export function invalidArgument(problems: readonly { readonly field: string; readonly message: string }[]): RpcError {
  const lines = problems
    .slice(0, MAX_PROBLEMS_IN_MESSAGE)
    .map((p) => (p.field ? `${p.field}: ${p.message}` : p.message));
  if (problems.length > lines.length) lines.push(`and ${problems.length - lines.length} more`);
  const fieldViolations = problems
    .slice(0, MAX_FIELD_VIOLATIONS)
    .map((p) => ({ field: p.field, description: p.message }));
  const error = refusal(status.INVALID_ARGUMENT, "INVALID_ARGUMENT", lines.join("; "), {
    problems: String(problems.length),
  });
  return withDetail(error, BadRequestSchema, create(BadRequestSchema, { fieldViolations }));
}

/** Nothing was done: the server's disk takes no more. */
export const diskFull = (): RpcError => refusal(status.RESOURCE_EXHAUSTED, "DISK_FULL", "the server's disk is full");
