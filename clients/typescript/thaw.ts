// One connection to a thaw server with every service of proto/thaw/v1 on it, typed by its descriptor. This adds nothing to
// the contract: what a method does, its defaults and its errors are documented in proto/.

import { Buffer } from "node:buffer";
import { rootCertificates } from "node:tls";
import * as grpc from "@grpc/grpc-js";
import { Health } from "../../proto/gen/grpc/health/v1/health_pb.ts";
import { CheckpointService } from "../../proto/gen/thaw/v1/checkpoint_service_pb.ts";
import { DatasetService } from "../../proto/gen/thaw/v1/dataset_service_pb.ts";
import { GroupService } from "../../proto/gen/thaw/v1/group_service_pb.ts";
import { ModelService } from "../../proto/gen/thaw/v1/model_service_pb.ts";
import { RoutingService } from "../../proto/gen/thaw/v1/routing_service_pb.ts";
import { RunService } from "../../proto/gen/thaw/v1/run_service_pb.ts";
import { StepService } from "../../proto/gen/thaw/v1/step_service_pb.ts";
import { SystemService } from "../../proto/gen/thaw/v1/system_service_pb.ts";
import { channelOptions } from "../../proto/rpc/definition.ts";
import { type Client, connect } from "./rpc/connect.ts";

/** Where a server listens unless told otherwise. */
export const DEFAULT_ADDRESS = "127.0.0.1:50051";

export interface TlsOptions {
  /** Certificates of the authorities to trust, PEM. Default: those of the runtime. */
  readonly authorities?: string | Uint8Array;
  /** The client's own certificate and key, PEM, where the server asks for one. */
  readonly certificate?: { readonly chain: string | Uint8Array; readonly key: string | Uint8Array };
}

export interface ConnectOptions {
  /** Encrypts the connection. Default: no encryption. */
  readonly tls?: TlsOptions;
  /** Sent with every call as `authorization: Bearer …`. */
  readonly token?: string;
  /** Sent with every call. */
  readonly metadata?: Readonly<Record<string, string>>;
  /** Largest message sent or received, in bytes. Default: 16 MiB. */
  readonly maxMessageBytes?: number;
}

/** The services of one server. Failed calls throw RpcError; `problemsOf` reads it. */
export interface Thaw {
  readonly runs: Client<typeof RunService>;
  readonly groups: Client<typeof GroupService>;
  readonly routing: Client<typeof RoutingService>;
  readonly models: Client<typeof ModelService>;
  readonly datasets: Client<typeof DatasetService>;
  readonly checkpoints: Client<typeof CheckpointService>;
  readonly steps: Client<typeof StepService>;
  readonly system: Client<typeof SystemService>;
  readonly health: Client<typeof Health>;
  /** Closes the connection; open calls end with CANCELLED or UNAVAILABLE. Runs go on. */
  close(): void;
}

/**
 * Connects to a server. Nothing is sent before the first call, so a wrong address shows there, as UNAVAILABLE.
 * @param address `host:port`
 */
export function connectThaw(address: string = DEFAULT_ADDRESS, options: ConnectOptions = {}): Thaw {
  const headers = { ...options.metadata, ...(options.token ? { authorization: `Bearer ${options.token}` } : {}) };
  const channel = new grpc.Client(address, credentials(options.tls), {
    ...channelOptions(options.maxMessageBytes),
    // grpc-js would put the calls of all channels to an address on one connection, and those beyond its streams wait.
    "grpc.use_local_subchannel_pool": 1,
    interceptors: [addHeaders(headers)],
  });
  return {
    runs: connect(RunService, channel),
    groups: connect(GroupService, channel),
    routing: connect(RoutingService, channel),
    models: connect(ModelService, channel),
    datasets: connect(DatasetService, channel),
    checkpoints: connect(CheckpointService, channel),
    steps: connect(StepService, channel),
    system: connect(SystemService, channel),
    health: connect(Health, channel),
    close: () => channel.close(),
  };
}

function credentials(tls: TlsOptions | undefined): grpc.ChannelCredentials {
  if (!tls) return grpc.credentials.createInsecure();
  const pem = (text: string | Uint8Array) => Buffer.from(text);
  // Explicit roots: Deno's TLS takes no `null` for "the default ones".
  const roots = pem(tls.authorities ?? rootCertificates.join("\n"));
  const own = tls.certificate;
  return own ? grpc.credentials.createSsl(roots, pem(own.key), pem(own.chain)) : grpc.credentials.createSsl(roots);
}

const addHeaders =
  (headers: Readonly<Record<string, string>>): grpc.Interceptor =>
  (options, next) =>
    new grpc.InterceptingCall(next(options), {
      start(metadata, listener, start) {
        for (const [key, value] of Object.entries(headers)) metadata.set(key, value);
        start(metadata, listener);
      },
    });
