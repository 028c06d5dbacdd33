// The server half of the gRPC bridge: async handlers, typed by a protobuf-es descriptor, on a grpc-js server. Handlers
// return messages or init objects, stream with async generators, and throw RpcError; what else they throw is reported to
// `onFault` and reaches the client as INTERNAL without its text.

import type { TLSSocket } from "node:tls";
import {
  create,
  type DescMethod,
  type DescService,
  type Message,
  type MessageInitShape,
  type MessageShape,
} from "@bufbuild/protobuf";
import * as grpc from "@grpc/grpc-js";
import { RequestInfoSchema } from "../../../proto/gen/google/rpc/error_details_pb.ts";
import { serviceDefinition } from "../../../proto/rpc/definition.ts";
import { publicError, RpcError, toWire, withDetail } from "../../../proto/rpc/status.ts";
import { abortable, untilAborted } from "../../../proto/rpc/waiting.ts";
import { isDiskFull } from "../storage/disk_full.ts";
import { diskFull } from "./errors.ts";
import { REQUEST_ID_KEY, requestIdOf } from "./request_id.ts";

/** What a handler knows about the call it serves. */
export interface CallContext {
  readonly method: DescMethod;
  readonly metadata: grpc.Metadata;
  /** Which call it is, in the log and in its trailing metadata (request_id.ts). */
  readonly requestId: string;
  /** Address and port of the other end. */
  readonly peer: string;
  /** The client's TLS certificate, when the server asked for one and verified it. */
  readonly certificate: ReturnType<TLSSocket["getPeerCertificate"]> | undefined;
  /** Aborts when the client cancels or disconnects, or its deadline passes. */
  readonly signal: AbortSignal;
}

type Request<M extends DescMethod> = MessageShape<M["input"]>;
type Response<M extends DescMethod> = MessageInitShape<M["output"]>;

type Handler<M extends DescMethod> = M["methodKind"] extends "unary"
  ? (request: Request<M>, context: CallContext) => Response<M> | Promise<Response<M>>
  : M["methodKind"] extends "server_streaming"
    ? (request: Request<M>, context: CallContext) => AsyncIterable<Response<M>>
    : M["methodKind"] extends "client_streaming"
      ? (requests: AsyncIterable<Request<M>>, context: CallContext) => Promise<Response<M>>
      : (requests: AsyncIterable<Request<M>>, context: CallContext) => AsyncIterable<Response<M>>;

/** The handlers of a service, by local (camelCase) method name. */
export type Handlers<S extends DescService> = { [K in keyof S["method"]]: Handler<S["method"][K]> };

/** Hears of everything that reached a client as INTERNAL or UNKNOWN, with what was really thrown. */
export type FaultListener = (thrown: unknown, method: DescMethod, requestId: string) => void;

type ReadingCall = grpc.ServerReadableStream<Message, Message> | grpc.ServerDuplexStream<Message, Message>;
type WritingCall = grpc.ServerWritableStream<Message, Message> | grpc.ServerDuplexStream<Message, Message>;
type SingleCall = grpc.ServerUnaryCall<Message, Message> | grpc.ServerReadableStream<Message, Message>;
type Init = MessageInitShape<DescMethod["output"]>;
type UntypedHandler = (input: unknown, context: CallContext) => unknown;

// What all four kinds of call have in common.
type AnyCall = Pick<SingleCall, "cancelled" | "metadata" | "getPeer" | "getAuthContext"> & {
  on(event: "cancelled", listener: () => void): unknown;
};

function contextOf(method: DescMethod, call: AnyCall): CallContext {
  const over = new AbortController();
  const abort = () => over.abort(new RpcError(grpc.status.CANCELLED, "the call is over"));
  if (call.cancelled) abort();
  else call.on("cancelled", abort);
  return {
    method,
    metadata: call.metadata,
    requestId: requestIdOf(call.metadata),
    peer: call.getPeer(),
    certificate: call.getAuthContext().sslPeerCertificate,
    signal: over.signal,
  };
}

/**
 * The requests of a streaming call. Throws when the connection is lost. The end is no proof that the client meant it: Node's
 * HTTP/2 client half-closes a stream that it cancels, so what must be whole ends with a message that says so (UploadEnd).
 */
function requestsOf(call: ReadingCall, signal: AbortSignal): AsyncIterable<Message> {
  // A plain `for await` over a grpc-js duplex stream destroys it at the half-close, and the status is never sent.
  return abortable(call.iterator({ destroyOnReturn: false }) as AsyncIterable<Message>, signal);
}

/** One message after the other: the stream itself would take sixteen, of whatever size, for a client that reads none. */
async function writeAll(messages: AsyncIterable<Init>, call: WritingCall, context: CallContext): Promise<void> {
  for await (const message of abortable(messages, context.signal)) {
    const written = new Promise<void>((resolve) => {
      call.write(create(context.method.output, message), () => resolve());
    });
    await untilAborted(written, context.signal);
  }
}

function trailer(requestId: string): grpc.Metadata {
  const metadata = new grpc.Metadata();
  metadata.set(REQUEST_ID_KEY, requestId);
  return metadata;
}

/** The error as grpc-js sends it, with the call's id beside its details. */
function ended(error: RpcError, requestId: string): grpc.ServiceError {
  const wire = toWire(error);
  wire.metadata.set(REQUEST_ID_KEY, requestId);
  return wire;
}

function implementation(method: DescMethod, handler: UntypedHandler, onFault: FaultListener): grpc.UntypedHandleCall {
  const failure = (thrown: unknown, { requestId }: CallContext) => {
    const error = isDiskFull(thrown) ? diskFull() : publicError(thrown);
    if (error.code !== grpc.status.INTERNAL && error.code !== grpc.status.UNKNOWN) return ended(error, requestId);
    onFault(thrown, method, requestId);
    const info = create(RequestInfoSchema, { requestId });
    return ended(withDetail(error, RequestInfoSchema, info), requestId);
  };
  const input = (call: SingleCall | WritingCall, context: CallContext) =>
    "request" in call ? call.request : requestsOf(call, context.signal);

  const single = async (call: SingleCall, respond: grpc.sendUnaryData<Message>) => {
    const context = contextOf(method, call);
    try {
      const output = create(method.output, (await handler(input(call, context), context)) as Init);
      respond(null, output, trailer(context.requestId));
    } catch (thrown) {
      // After a cancellation nobody listens, and a handler woken by it has not failed.
      respond(context.signal.aborted ? toWire(context.signal.reason) : failure(thrown, context));
    }
  };
  const streaming = async (call: WritingCall) => {
    const context = contextOf(method, call);
    call.on("error", () => {}); // A write that races a cancellation.
    try {
      await writeAll(handler(input(call, context), context) as AsyncIterable<Init>, call, context);
      call.end(trailer(context.requestId));
    } catch (thrown) {
      if (!context.signal.aborted) call.emit("error", failure(thrown, context));
    }
  };
  return method.methodKind === "unary" || method.methodKind === "client_streaming" ? single : streaming;
}

/** Adds a service with its handlers to a grpc-js server. */
export function serve<S extends DescService>(
  server: grpc.Server,
  service: S,
  handlers: Handlers<S>,
  onFault: FaultListener,
): void {
  const untyped = handlers as Record<string, UntypedHandler>;
  const implementations = service.methods.map((method): [string, grpc.UntypedHandleCall] => [
    method.localName,
    implementation(method, untyped[method.localName], onFault),
  ]);
  server.addService(serviceDefinition(service), Object.fromEntries(implementations));
}
