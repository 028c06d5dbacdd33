// The gRPC front: a port, the gate before it, the services behind it, health, reflection, and a stop that lets calls end.
// The handlers may be here (Node) or in another process (relay.ts, under Deno).

import type { DescMethod, DescService } from "@bufbuild/protobuf";
import { Server, ServerCredentials } from "@grpc/grpc-js";
import { Health } from "../../../proto/gen/grpc/health/v1/health_pb.ts";
import { ServerReflection } from "../../../proto/gen/grpc/reflection/v1/reflection_pb.ts";
import { ServerReflection as ServerReflectionAlpha } from "../../../proto/gen/grpc/reflection/v1alpha/reflection_pb.ts";
import { CheckpointService } from "../../../proto/gen/thaw/v1/checkpoint_service_pb.ts";
import { DatasetService } from "../../../proto/gen/thaw/v1/dataset_service_pb.ts";
import { GroupService } from "../../../proto/gen/thaw/v1/group_service_pb.ts";
import { ModelService } from "../../../proto/gen/thaw/v1/model_service_pb.ts";
import { RoutingService } from "../../../proto/gen/thaw/v1/routing_service_pb.ts";
import { RunService } from "../../../proto/gen/thaw/v1/run_service_pb.ts";
import { StepService } from "../../../proto/gen/thaw/v1/step_service_pb.ts";
import { SystemService } from "../../../proto/gen/thaw/v1/system_service_pb.ts";
import { channelOptions } from "../../../proto/rpc/definition.ts";
import { createGate, type RefusalListener } from "../access/gate.ts";
import { requireRoles } from "../access/roles.ts";
import type { Log } from "../log.ts";
import { openTokens } from "../registry/tokens.ts";
import { serveHealth } from "../rpc/health.ts";
import { serveReflection } from "../rpc/reflection.ts";
import { type Handlers, serve } from "../rpc/serve.ts";
import type { Limits } from "../settings.ts";
import { registryFile } from "../storage/layout.ts";
import { readTls, type TlsFiles } from "./tls.ts";

/** Every service of the contract. */
export const SERVICES = [
  RunService,
  GroupService,
  RoutingService,
  CheckpointService,
  ModelService,
  DatasetService,
  StepService,
  SystemService,
] as const;

/** Every service on the port. */
export const ALL_SERVICES: readonly DescService[] = [...SERVICES, Health, ServerReflection, ServerReflectionAlpha];

/** Handlers of a service, whichever it is. */
export type HandlersFor = <S extends DescService>(service: S) => Handlers<S>;

export interface FrontOptions {
  readonly host: string;
  /** 0: any free port. */
  readonly port: number;
  /** Undefined: no encryption. */
  readonly tls: TlsFiles | undefined;
  /** Whether callers need a token of the data directory. */
  readonly tokens: boolean;
  readonly dataDirectory: string;
  readonly limits: Pick<Limits, "maxMessageBytes" | "maxConcurrentStreams" | "maxMetadataBytes" | "maxOpenCalls">;
}

export interface Front {
  readonly port: number;
  /** Answers NOT_SERVING and ends the health watches; calls go on. */
  draining(): void;
  /** Takes no new calls and resolves when those in progress have ended, or were cut after `deadlineMs`. */
  stop(deadlineMs: number): Promise<void>;
}

export async function startFront(
  options: FrontOptions,
  handlersFor: HandlersFor,
  log: Log,
  onRefused: RefusalListener,
): Promise<Front> {
  const { host, port, limits } = options;
  requireRoles(ALL_SERVICES);
  const credentials = options.tls ? readTls(options.tls) : ServerCredentials.createInsecure();
  const tokens = options.tokens ? openTokens(registryFile(options.dataDirectory)) : undefined;
  const gate = createGate(limits, tokens, log, onRefused);
  const server = new Server({
    ...channelOptions(limits.maxMessageBytes),
    interceptors: [gate.interceptor],
    "grpc.max_concurrent_streams": limits.maxConcurrentStreams,
  });
  const fault = (thrown: unknown, method: DescMethod, requestId: string): void => {
    const text = thrown instanceof Error ? (thrown.stack ?? thrown.message) : String(thrown);
    log("error", `${method.parent.typeName}/${method.name}: ${text}`, { request_id: requestId });
  };
  for (const service of SERVICES) serve(server, service, handlersFor(service), fault);
  const health = serveHealth(
    server,
    SERVICES.map((service) => service.typeName),
    fault,
  );
  serveReflection(server, [...SERVICES, Health], fault);
  const address = `${host.includes(":") ? `[${host}]` : host}:${port}`;
  const bound = await new Promise<number>((resolve, reject) => {
    server.bindAsync(address, credentials, (error, actual) => (error ? reject(error) : resolve(actual)));
  });
  return {
    port: bound,
    draining() {
      for (const name of ["", ...SERVICES.map((service) => service.typeName)]) health.set(name, false);
      health.endWatches();
    },
    async stop(deadlineMs) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(() => {
          server.forceShutdown();
          resolve();
        }, deadlineMs);
        server.tryShutdown(() => {
          clearTimeout(timer);
          resolve();
        });
      });
      gate.close();
    },
  };
}
