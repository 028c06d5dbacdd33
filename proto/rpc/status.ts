// Errors that cross the wire whole: a status code, a message, and google.rpc details in the `grpc-status-details-bin`
// trailer. Anything else that a handler throws is hidden behind INTERNAL: no stack and no path reaches a client.

import { Buffer } from "node:buffer";
import { create, type DescMessage, fromBinary, type MessageShape, toBinary } from "@bufbuild/protobuf";
import { type Any, anyPack, anyUnpack } from "@bufbuild/protobuf/wkt";
import * as grpc from "@grpc/grpc-js";
import { type Status, StatusSchema } from "../gen/google/rpc/status_pb.ts";

const DETAILS_KEY = "grpc-status-details-bin";

/**
 * A failed call. `statusDetails` are packed google.rpc messages; read them with `findDetail`. They are not called `details`,
 * which loggers and test runners take for a text.
 */
export class RpcError extends Error {
  override name = "RpcError";
  readonly code: grpc.status;
  readonly statusDetails: readonly Any[];

  constructor(code: grpc.status, message: string, details: readonly Any[] = []) {
    super(message);
    this.code = code;
    this.statusDetails = details;
  }
}

/** A copy of the error that also carries one detail message. */
export function withDetail<D extends DescMessage>(error: RpcError, schema: D, detail: MessageShape<D>): RpcError {
  return new RpcError(error.code, error.message, [...error.statusDetails, anyPack(schema, detail)]);
}

/** The first detail of a type, or undefined. */
export function findDetail<D extends DescMessage>(error: RpcError, schema: D): MessageShape<D> | undefined {
  for (const packed of error.statusDetails) {
    const detail = anyUnpack(packed, schema);
    if (detail) return detail;
  }
  return undefined;
}

/** What a caller may see of a thrown value: the RpcError itself, or INTERNAL. */
export function publicError(error: unknown): RpcError {
  return error instanceof RpcError ? error : new RpcError(grpc.status.INTERNAL, "internal error");
}

/** The error as google.rpc.Status, for messages that carry one (Run.error, SteerAcknowledgement.error). */
export function toStatus(error: RpcError): Status {
  return create(StatusSchema, { code: error.code, message: error.message, details: [...error.statusDetails] });
}

/** The error that a google.rpc.Status stands for. */
export function fromStatus(status: Status): RpcError {
  return new RpcError(status.code, status.message, status.details);
}

/** What grpc-js sends for a thrown value. */
export function toWire(thrown: unknown): grpc.ServiceError {
  const error = publicError(thrown);
  const metadata = new grpc.Metadata();
  if (error.statusDetails.length > 0) metadata.set(DETAILS_KEY, Buffer.from(toBinary(StatusSchema, toStatus(error))));
  return Object.assign(new Error(error.message), { code: error.code, details: error.message, metadata });
}

function isServiceError(error: unknown): error is grpc.ServiceError {
  return error instanceof Error && "code" in error && typeof error.code === "number" && "metadata" in error;
}

/** The RpcError that a grpc-js client error stands for. Details that do not decode are left out. */
export function fromWire(error: unknown): RpcError {
  if (error instanceof RpcError) return error;
  if (!isServiceError(error)) {
    return new RpcError(grpc.status.UNKNOWN, error instanceof Error ? error.message : String(error));
  }
  const packed = error.metadata.get(DETAILS_KEY)[0];
  let details: readonly Any[] = [];
  if (packed instanceof Uint8Array) {
    try {
      details = fromBinary(StatusSchema, packed).details;
    } catch {
      // A proxy's or another server's trailer; the code and the message still stand.
    }
  }
  return new RpcError(error.code, error.details, details);
}
