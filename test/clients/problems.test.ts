// What a refused call says, read from its google.rpc details over a real connection.

import { status } from "@grpc/grpc-js";
import { test } from "uvu";
import * as assert from "uvu/assert";
import { connectThaw, problemsOf } from "../../clients/typescript/index.ts";
import { invalidArgument, refusal } from "../../src/server/rpc/errors.ts";
import { fakeServer, stopFakes } from "./support/fake_server.ts";

async function thrown(promise: Promise<unknown>): Promise<unknown> {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  throw new Error("expected a failure");
}

test.after.each(stopFakes);

test("every field problem, the reason, its figures and the time to wait", async () => {
  const server = await fakeServer({
    runs: {
      createRun() {
        throw invalidArgument([
          { field: "spec.steps", message: "must be at least 1" },
          { field: "", message: "says nothing" },
        ]);
      },
      pauseRun() {
        throw refusal(status.RESOURCE_EXHAUSTED, "QUEUE_FULL", "64 runs are queued", { limit: "64" }, 1.5);
      },
      getRun() {
        throw new TypeError("a secret");
      },
    },
  });
  assert.equal(problemsOf(await thrown(server.thaw.runs.createRun({}))), {
    code: "INVALID_ARGUMENT",
    message: "spec.steps: must be at least 1; says nothing",
    reason: "INVALID_ARGUMENT",
    figures: { problems: "2" },
    fields: [
      { field: "spec.steps", message: "must be at least 1" },
      { field: "", message: "says nothing" },
    ],
  });
  assert.equal(problemsOf(await thrown(server.thaw.runs.pauseRun({}))), {
    code: "RESOURCE_EXHAUSTED",
    message: "64 runs are queued",
    reason: "QUEUE_FULL",
    figures: { limit: "64" },
    fields: [],
    retryAfterMs: 1500,
  });
  assert.is(problemsOf(await thrown(server.thaw.runs.getRun({}))).message, "internal error");
});

test("errors that are not the server's", async () => {
  assert.equal(problemsOf(new Error("boom")), {
    code: "UNKNOWN",
    message: "boom",
    reason: "",
    figures: {},
    fields: [],
  });
  const nobody = connectThaw("127.0.0.1:1");
  assert.is(problemsOf(await thrown(nobody.system.getSystem({}))).code, "UNAVAILABLE");
  nobody.close();
});

test("token and metadata go with every kind of call", async () => {
  const seen: string[] = [];
  const note = (metadata: { get(key: string): unknown[] }) => {
    seen.push([...metadata.get("authorization"), ...metadata.get("x-team")].join(" "));
  };
  const server = await fakeServer({
    system: {
      getSystem(_, { metadata }) {
        note(metadata);
        return {};
      },
    },
    runs: {
      // biome-ignore lint/correctness/useYield: an empty log
      async *watchRun(_, { metadata }) {
        note(metadata);
      },
    },
  });
  const thaw = connectThaw(server.address, { token: "t0", metadata: { "x-team": "moe" } });
  await thaw.system.getSystem({});
  for await (const _ of thaw.runs.watchRun({ name: "runs/a" })) assert.unreachable();
  assert.equal(seen, ["Bearer t0 moe", "Bearer t0 moe"]);
  thaw.close();
});

test.run();
