// The client half of the gRPC bridge: a typed client over a grpc-js channel, from a protobuf-es descriptor. Unary calls are
// promises, streams are async iterables that begin when they are first read; a failed call throws RpcError
// (proto/rpc/status.ts) with its details decoded. Leaving a `for await` early, or aborting the signal, cancels the call. A
// stream that ends well gives every message; the status of one that fails may overtake messages not yet read (grpc-js hands
// it on at once), so resume from the last one seen.

import {
  create,
  type DescMethod,
  type DescService,
  type Message,
  type MessageInitShape,
  type MessageShape,
} from "@bufbuild/protobuf";
import * as grpc from "@grpc/grpc-js";
import { methodDefinition } from "../../../proto/rpc/definition.ts";
import { fromWire } from "../../../proto/rpc/status.ts";
import { abortable, drained } from "../../../proto/rpc/waiting.ts";

export interface CallOptions {
  readonly metadata?: grpc.Metadata;
  /** When the call fails with DEADLINE_EXCEEDED, as a date or in milliseconds since the epoch. */
  readonly deadline?: Date | number;
  /** Cancels the call. */
  readonly signal?: AbortSignal;
}

type Request<M extends DescMethod> = MessageInitShape<M["input"]>;
type Response<M extends DescMethod> = MessageShape<M["output"]>;

type Call<M extends DescMethod> = M["methodKind"] extends "unary"
  ? (request: Request<M>, options?: CallOptions) => Promise<Response<M>>
  : M["methodKind"] extends "server_streaming"
    ? (request: Request<M>, options?: CallOptions) => AsyncIterable<Response<M>>
    : M["methodKind"] extends "client_streaming"
      ? (requests: AsyncIterable<Request<M>>, options?: CallOptions) => Promise<Response<M>>
      : (requests: AsyncIterable<Request<M>>, options?: CallOptions) => AsyncIterable<Response<M>>;

/** A typed client of a service, by local (camelCase) method name. */
export type Client<S extends DescService> = { [K in keyof S["method"]]: Call<S["method"][K]> };

type Init = MessageInitShape<DescMethod["input"]>;
type SomeCall = { cancel(): void; on(event: "status", listener: () => void): unknown };

/** Ties a call to the caller's signal; the returned signal aborts when the call is over. */
function follow(call: SomeCall, options: CallOptions): AbortSignal {
  const over = new AbortController();
  const cancel = () => call.cancel();
  if (options.signal?.aborted) cancel();
  options.signal?.addEventListener("abort", cancel, { once: true });
  call.on("status", () => {
    options.signal?.removeEventListener("abort", cancel);
    over.abort();
  });
  return over.signal;
}

/** Sends requests until they or the call end. Throws what the caller's iterable throws, after cancelling the call. */
async function sendAll(
  method: DescMethod,
  requests: AsyncIterable<Init>,
  call: grpc.ClientWritableStream<Message>,
  over: AbortSignal,
): Promise<void> {
  try {
    for await (const request of abortable(requests, over)) {
      if (!call.write(create(method.input, request))) await drained(call, over);
    }
    call.end();
  } catch (error) {
    if (over.aborted) return; // The call's own status tells.
    call.cancel();
    throw error;
  }
}

type Opened = { readonly call: grpc.ClientReadableStream<Message>; readonly sending?: Promise<void> };

/** The replies of a call, which is opened by the first read: before that, nobody would hear of its errors. */
async function* receiveAll(open: () => Opened): AsyncGenerator<Message> {
  const { call, sending } = open();
  let sendError: unknown;
  sending?.catch((error) => {
    sendError = error;
  });
  try {
    for await (const message of call) yield message as Message;
  } catch (error) {
    throw sendError ?? fromWire(error);
  } finally {
    call.cancel(); // Frees the call when the reader leaves early; harmless after the end.
  }
}

function clientMethod(method: DescMethod, channel: grpc.Client) {
  const { path, requestSerialize, responseDeserialize } = methodDefinition(method);
  const metadata = (options: CallOptions) => options.metadata ?? new grpc.Metadata();
  const grpcOptions = (options: CallOptions): grpc.CallOptions => ({ deadline: options.deadline });
  const settle =
    (resolve: (message: Message) => void, reject: (error: unknown) => void): grpc.requestCallback<Message> =>
    (error, message) =>
      error ? reject(fromWire(error)) : resolve(message as Message);

  switch (method.methodKind) {
    case "unary":
      return (request: Init, options: CallOptions = {}) =>
        new Promise<Message>((resolve, reject) => {
          const message = create(method.input, request);
          const [meta, callOptions, done] = [metadata(options), grpcOptions(options), settle(resolve, reject)];
          follow(
            channel.makeUnaryRequest(path, requestSerialize, responseDeserialize, message, meta, callOptions, done),
            options,
          );
        });
    case "client_streaming":
      return (requests: AsyncIterable<Init>, options: CallOptions = {}) =>
        new Promise<Message>((resolve, reject) => {
          const [meta, callOptions, done] = [metadata(options), grpcOptions(options), settle(resolve, reject)];
          const call = channel.makeClientStreamRequest(
            path,
            requestSerialize,
            responseDeserialize,
            meta,
            callOptions,
            done,
          );
          sendAll(method, requests, call, follow(call, options)).catch(reject);
        });
    case "server_streaming":
      return (request: Init, options: CallOptions = {}) => {
        const message = create(method.input, request);
        return receiveAll(() => {
          const [meta, callOptions] = [metadata(options), grpcOptions(options)];
          const call = channel.makeServerStreamRequest(
            path,
            requestSerialize,
            responseDeserialize,
            message,
            meta,
            callOptions,
          );
          follow(call, options);
          return { call };
        });
      };
    case "bidi_streaming":
      return (requests: AsyncIterable<Init>, options: CallOptions = {}) =>
        receiveAll(() => {
          const [meta, callOptions] = [metadata(options), grpcOptions(options)];
          const call = channel.makeBidiStreamRequest(path, requestSerialize, responseDeserialize, meta, callOptions);
          return { call, sending: sendAll(method, requests, call, follow(call, options)) };
        });
  }
}

/** Makes a typed client of a service over a grpc-js channel. */
export function connect<S extends DescService>(service: S, channel: grpc.Client): Client<S> {
  const methods = service.methods.map((method) => [method.localName, clientMethod(method, channel)]);
  return Object.fromEntries(methods) as Client<S>;
}
