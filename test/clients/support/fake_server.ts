// A thaw server made of whatever handlers a test gives: services come from the descriptors over the real bridge, methods
// without a handler answer UNIMPLEMENTED.

import type { DescService } from "@bufbuild/protobuf";
import * as grpc from "@grpc/grpc-js";
import { connectThaw, RpcError, type Thaw } from "../../../clients/typescript/index.ts";
import { CheckpointService } from "../../../proto/gen/thaw/v1/checkpoint_service_pb.ts";
import { DatasetService } from "../../../proto/gen/thaw/v1/dataset_service_pb.ts";
import { GroupService } from "../../../proto/gen/thaw/v1/group_service_pb.ts";
import { ModelService } from "../../../proto/gen/thaw/v1/model_service_pb.ts";
import { RoutingService } from "../../../proto/gen/thaw/v1/routing_service_pb.ts";
import { RunService } from "../../../proto/gen/thaw/v1/run_service_pb.ts";
import { SystemService } from "../../../proto/gen/thaw/v1/system_service_pb.ts";
import { type Handlers, serve } from "../../../src/server/rpc/serve.ts";

export interface FakeHandlers {
  readonly runs?: Partial<Handlers<typeof RunService>>;
  readonly groups?: Partial<Handlers<typeof GroupService>>;
  readonly routing?: Partial<Handlers<typeof RoutingService>>;
  readonly models?: Partial<Handlers<typeof ModelService>>;
  readonly datasets?: Partial<Handlers<typeof DatasetService>>;
  readonly checkpoints?: Partial<Handlers<typeof CheckpointService>>;
  readonly system?: Partial<Handlers<typeof SystemService>>;
}

export interface FakeServer {
  /** `host:port`. */
  readonly address: string;
  readonly thaw: Thaw;
}

const running: (() => void)[] = [];

/** Closes every fake and its client; for `test.after.each`, so that a failed test leaves no process waiting. */
export function stopFakes(): void {
  for (const stop of running.splice(0)) stop();
}

/** Starts a fake on a free loopback port. `faults` gets what handlers threw that was no RpcError. */
export async function fakeServer(handlers: FakeHandlers, faults: unknown[] = []): Promise<FakeServer> {
  const server = new grpc.Server();
  const add = <S extends DescService>(service: S, given: Partial<Handlers<S>> = {}) => {
    const missing = () => {
      throw new RpcError(grpc.status.UNIMPLEMENTED, "the test gave no handler");
    };
    const all = Object.fromEntries(service.methods.map(({ localName }) => [localName, missing]));
    serve(server, service, { ...all, ...given } as Handlers<S>, (thrown) => faults.push(thrown));
  };
  add(RunService, handlers.runs);
  add(GroupService, handlers.groups);
  add(RoutingService, handlers.routing);
  add(ModelService, handlers.models);
  add(DatasetService, handlers.datasets);
  add(CheckpointService, handlers.checkpoints);
  add(SystemService, handlers.system);
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync("127.0.0.1:0", grpc.ServerCredentials.createInsecure(), (error, bound) =>
      error ? reject(error) : resolve(bound),
    );
  });
  const address = `127.0.0.1:${port}`;
  const thaw = connectThaw(address);
  running.push(() => {
    thaw.close();
    server.forceShutdown();
  });
  return { address, thaw };
}
