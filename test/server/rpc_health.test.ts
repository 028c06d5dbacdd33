// grpc.health.v1 on loopback.

import { status } from "@grpc/grpc-js";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { connect } from "../../clients/typescript/rpc/connect.ts";
import { RetryInfoSchema } from "../../proto/gen/google/rpc/error_details_pb.ts";
import {
  HealthCheckResponse_ServingStatus,
  Health as HealthDescriptor,
} from "../../proto/gen/grpc/health/v1/health_pb.ts";
import { findDetail, type RpcError } from "../../proto/rpc/status.ts";
import { type Health, serveHealth } from "../../src/server/rpc/health.ts";
import { loopback, noFault, rejection } from "./rpc_support.ts";

const { SERVING, NOT_SERVING, SERVICE_UNKNOWN } = HealthCheckResponse_ServingStatus;
const SERVICE = "thaw.v1.RunService";

async function withHealth(
  body: (health: Health, client: ReturnType<typeof connect<typeof HealthDescriptor>>) => Promise<void>,
): Promise<void> {
  let health: Health | undefined;
  const { channel, close } = await loopback((server) => {
    health = serveHealth(server, [SERVICE], noFault);
  });
  try {
    await body(health!, connect(HealthDescriptor, channel));
  } finally {
    await close();
  }
}

const test = suite("health");

test("check and list answer for the server and its services, and not for others", () =>
  withHealth(async (health, client) => {
    health.set(SERVICE, false);
    assert.is((await client.check({})).status, SERVING);
    assert.is((await client.check({ service: SERVICE })).status, NOT_SERVING);
    const { statuses } = await client.list({});
    assert.equal(
      Object.entries(statuses).map(([name, entry]) => [name, entry.status]),
      [
        ["", SERVING],
        [SERVICE, NOT_SERVING],
      ],
    );
    assert.is(((await rejection(client.check({ service: "no.Such" }))) as RpcError).code, status.NOT_FOUND);
  }));

test("watch sends the present status, then changes only, and ends with UNAVAILABLE when the server stops", () =>
  withHealth(async (health, client) => {
    const seen: number[] = [];
    const watching = (async () => {
      for await (const reply of client.watch({ service: SERVICE })) {
        seen.push(reply.status);
        if (seen.length === 1) {
          health.set("", false); // Another service's change.
          health.set(SERVICE, true); // No change.
          setTimeout(() => health.set(SERVICE, false), 30);
        } else {
          health.endWatches();
        }
      }
    })();
    const error = (await rejection(watching)) as RpcError;
    assert.equal(seen, [SERVING, NOT_SERVING]);
    assert.is(error.code, status.UNAVAILABLE);
    assert.is(findDetail(error, RetryInfoSchema)?.retryDelay?.seconds, 5n);
  }));

test("watch of an unknown service waits with SERVICE_UNKNOWN until the service comes up", () =>
  withHealth(async (health, client) => {
    const seen: number[] = [];
    for await (const reply of client.watch({ service: "thaw.v1.StepService" })) {
      seen.push(reply.status);
      if (seen.length === 2) break;
      health.set("thaw.v1.StepService", true);
    }
    assert.equal(seen, [SERVICE_UNKNOWN, SERVING]);
  }));

test.run();
