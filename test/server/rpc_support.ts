// A grpc-js server and channel on loopback for the bridge's tests. The services under test are ours: the four kinds of
// method are there, and no second set of protos is needed.

import type { DescService } from "@bufbuild/protobuf";
import * as grpc from "@grpc/grpc-js";
import { channelOptions } from "../../proto/rpc/definition.ts";
import { RpcError } from "../../proto/rpc/status.ts";
import type { Handlers } from "../../src/server/rpc/serve.ts";

export interface Loopback {
  readonly channel: grpc.Client;
  close(): Promise<void>;
}

/** Starts a server with the services that `add` adds, and opens a channel to it. */
export async function loopback(
  add: (server: grpc.Server) => void,
  options: grpc.ServerOptions = {},
): Promise<Loopback> {
  const server = new grpc.Server({ ...channelOptions(), ...options });
  add(server);
  const port = await new Promise<number>((resolve, reject) => {
    const credentials = grpc.ServerCredentials.createInsecure();
    server.bindAsync("127.0.0.1:0", credentials, (error, bound) => (error ? reject(error) : resolve(bound)));
  });
  const channel = new grpc.Client(`127.0.0.1:${port}`, grpc.credentials.createInsecure(), channelOptions());
  return {
    channel,
    close: () => {
      channel.close();
      return new Promise((resolve) => server.tryShutdown(() => resolve()));
    },
  };
}

/** Everything an iterable gives. */
export async function collect<T>(messages: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const message of messages) all.push(message);
  return all;
}

/** The promise's rejection. */
export async function rejection(promise: Promise<unknown>): Promise<unknown> {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  throw new Error("expected a rejection");
}

/** A service's handlers where only some matter; the others are UNIMPLEMENTED. */
export function partly<S extends DescService>(service: S, handlers: Partial<Handlers<S>>): Handlers<S> {
  const unimplemented = () => {
    throw new RpcError(grpc.status.UNIMPLEMENTED, "not part of this test");
  };
  const all = service.methods.map((method) => [method.localName, unimplemented]);
  return { ...Object.fromEntries(all), ...handlers };
}

/** A fault listener for tests in which no handler may fail. */
export function noFault(thrown: unknown): never {
  throw thrown;
}
