// grpc.health.v1: whether the server, and each of its services, takes calls.

import { EventEmitter, once } from "node:events";
import { type Server, status } from "@grpc/grpc-js";
import {
  HealthCheckResponse_ServingStatus,
  Health as HealthDescriptor,
} from "../../../proto/gen/grpc/health/v1/health_pb.ts";
import { RpcError } from "../../../proto/rpc/status.ts";
import { refusal } from "./errors.ts";
import { type FaultListener, serve } from "./serve.ts";

export interface Health {
  /** Changes what a service answers; "" is the whole server. */
  set(service: string, serving: boolean): void;
  /** Ends every watch with UNAVAILABLE, so that a stopping server does not wait for them. */
  endWatches(): void;
}

/** Serves health for the given services, all of them and "" SERVING from the start. */
export function serveHealth(server: Server, services: readonly string[], onFault: FaultListener): Health {
  const { SERVING, NOT_SERVING, SERVICE_UNKNOWN } = HealthCheckResponse_ServingStatus;
  const statuses = new Map<string, typeof SERVING | typeof NOT_SERVING>(
    ["", ...services].map((name) => [name, SERVING]),
  );
  const changes = new EventEmitter().setMaxListeners(0);
  let ended = false;

  async function* watch(service: string, signal: AbortSignal) {
    let sent: number | undefined;
    while (!ended) {
      const current = statuses.get(service) ?? SERVICE_UNKNOWN;
      if (current !== sent) {
        sent = current;
        yield { status: current };
      } else {
        await once(changes, "change", { signal });
      }
    }
    throw refusal(status.UNAVAILABLE, "STOPPING", "the server is stopping", {}, 5);
  }
  serve(
    server,
    HealthDescriptor,
    {
      check({ service }) {
        const current = statuses.get(service);
        if (current === undefined) throw new RpcError(status.NOT_FOUND, `unknown service "${service}"`);
        return { status: current };
      },
      list: () => ({
        statuses: Object.fromEntries([...statuses].map(([name, current]) => [name, { status: current }])),
      }),
      watch: ({ service }, { signal }) => watch(service, signal),
    },
    onFault,
  );
  return {
    set(service, serving) {
      statuses.set(service, serving ? SERVING : NOT_SERVING);
      changes.emit("change");
    },
    endWatches() {
      ended = true;
      changes.emit("change");
    },
  };
}
