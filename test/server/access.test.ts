// Who gets in: every method of every service, taken from the descriptors, with every token that is none, and with every
// role; streams whose token ends; what is kept of a token; the limits that the gate holds before a message is read.

import { readFileSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import type { DescMethod, DescService } from "@bufbuild/protobuf";
import { Client, credentials, Metadata, status } from "@grpc/grpc-js";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { connectThaw, problemsOf, RpcError } from "../../clients/typescript/index.ts";
import { type CallOptions, connect } from "../../clients/typescript/rpc/connect.ts";
import { ModelService } from "../../proto/gen/thaw/v1/model_service_pb.ts";
import { RunService } from "../../proto/gen/thaw/v1/run_service_pb.ts";
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import { createGate } from "../../src/server/access/gate.ts";
import { accessTo, pathOf, ROLES, type Role, requireRoles } from "../../src/server/access/roles.ts";
import { createToken } from "../../src/server/access/tokens.ts";
import { ALL_SERVICES } from "../../src/server/front/front.ts";
import { openTokens, type TokenStore } from "../../src/server/registry/tokens.ts";
import { serve } from "../../src/server/rpc/serve.ts";
import { registryFile } from "../../src/server/storage/layout.ts";
import { eventsUntil, reaches, refused, type TestServer, testServer, withInputs } from "../support/thaw_server.ts";
import { loopback, noFault, partly } from "./rpc_support.ts";

const { UNAUTHENTICATED, PERMISSION_DENIED, RESOURCE_EXHAUSTED } = status;
const METHODS = ALL_SERVICES.flatMap((service) => service.methods.map((method) => ({ service, method })));
const GUARDED = METHODS.filter(({ method }) => accessTo(pathOf(method)) !== "open");

const test = suite("access");
let server: TestServer;
let store: TokenStore;
let channel: Client;
test.before(async () => {
  server = await testServer({ flags: ["--tokens", "on"], engine: () => ({ beforeStep: () => delay(5) }) });
  // A connection of its own, as `thaw tokens` has.
  store = openTokens(registryFile(server.dataDirectory));
  channel = new Client(server.address, credentials.createInsecure());
});
test.after(async () => {
  channel.close();
  store.close();
  await server.stop();
});

const tokenOf = (role: Role, expireTime?: Date) => createToken(store, { role, label: "test", expireTime });

function bearer(...values: string[]): Metadata {
  const metadata = new Metadata();
  for (const value of values) metadata.add("authorization", value);
  return metadata;
}

/** The code that one call of a method ends with; OK as soon as it answers at all. */
async function codeOf(service: DescService, method: DescMethod, metadata: Metadata): Promise<RpcError | undefined> {
  type Any = (input: unknown, options: CallOptions) => Promise<unknown> & AsyncIterable<unknown>;
  const call = (connect(service, channel) as unknown as Record<string, Any>)[method.localName];
  async function* nothing() {}
  const streams = method.methodKind === "client_streaming" || method.methodKind === "bidi_streaming";
  const reply = call(streams ? nothing() : {}, { metadata, deadline: Date.now() + 20_000 });
  try {
    if (method.methodKind === "unary" || method.methodKind === "client_streaming") await reply;
    else for await (const _ of reply) break;
    return undefined;
  } catch (error) {
    if (error instanceof RpcError) return error;
    throw error;
  }
}

const intruders: readonly (readonly [what: string, reason: string, metadata: () => Metadata])[] = [
  ["no token", "TOKEN_MISSING", () => bearer()],
  ["an empty one", "TOKEN_UNKNOWN", () => bearer("Bearer")],
  ["another scheme", "TOKEN_UNKNOWN", () => bearer(`Basic ${tokenOf("admin").token}`)],
  ["something else", "TOKEN_UNKNOWN", () => bearer("Bearer ' OR 1=1 --")],
  ["an unknown id", "TOKEN_UNKNOWN", () => bearer(`Bearer thaw_t-aaaaaaaaaa_${"A".repeat(43)}`)],
  ["a known id with another secret", "TOKEN_UNKNOWN", () => bearer(`Bearer ${mixed()}`)],
  ["an expired one", "TOKEN_EXPIRED", () => bearer(`Bearer ${tokenOf("admin", new Date(Date.now() - 1)).token}`)],
  ["a revoked one", "TOKEN_REVOKED", () => bearer(`Bearer ${revoked()}`)],
];

/** The id of one token and the secret of another. */
function mixed(): string {
  const [one, other] = [tokenOf("admin").token, tokenOf("admin").token];
  return `${one.slice(0, -43)}${other.slice(-43)}`;
}

function revoked(): string {
  const { record, token } = tokenOf("admin");
  assert.ok(store.revoke(record.id));
  return token;
}

for (const [what, reason, metadata] of intruders) {
  test(`${what} opens no method`, async () => {
    const given = metadata();
    const found = await Promise.all(GUARDED.map(({ service, method }) => codeOf(service, method, given)));
    GUARDED.forEach(({ method }, i) => {
      const error = found[i];
      assert.equal([error?.code, error && problemsOf(error).reason], [UNAUTHENTICATED, reason], pathOf(method));
    });
  });
}

test("a role opens what the table says and nothing else; health and reflection need no token", async () => {
  assert.ok(GUARDED.length > 35, "the descriptors were read");
  for (const role of ROLES) {
    const given = bearer(`bearer ${tokenOf(role).token}`); // The scheme has no case (RFC 7235).
    for (const { service, method } of GUARDED) {
      const needed = accessTo(pathOf(method)) as Role;
      const error = await codeOf(service, method, given);
      const denied = error?.code === PERMISSION_DENIED;
      assert.is(denied, ROLES.indexOf(role) < ROLES.indexOf(needed), `${role} calls ${pathOf(method)}`);
      assert.is.not(error?.code, UNAUTHENTICATED);
      if (denied) assert.equal(problemsOf(error).figures, { role, needed });
    }
  }
  for (const { service, method } of METHODS) {
    if (accessTo(pathOf(method)) === "open") assert.is(await codeOf(service, method, bearer()), undefined);
  }
});

test("no service is served whose methods are not all in the table", () => {
  requireRoles(ALL_SERVICES);
  const forgotten = { ...RunService.methods[0], name: "Forgotten" } as DescMethod;
  const grown = { ...RunService, methods: [...RunService.methods, forgotten] } as DescService;
  assert.throws(() => requireRoles([grown]), /thaw\.v1\.RunService\/Forgotten/);
});

test("a revoked or expired token's open streams end, and nobody else's; the run goes on", async () => {
  const admin = connectThaw(server.address, { token: tokenOf("admin").token });
  await withInputs(admin);
  await admin.runs.createRun({ runId: "r", spec: { model: "models/m", dataset: "datasets/d", steps: 100_000n } });
  await eventsUntil(admin, "runs/r", reaches(RunState.RUNNING));

  const leaving = tokenOf("operator");
  const expiring = tokenOf("viewer", new Date(Date.now() + 1500));
  const staying = tokenOf("viewer");
  const connections = [leaving, expiring, staying].map(({ token }) => connectThaw(server.address, { token }));
  const [left, expired, stayed] = connections;
  async function* watching() {
    yield { command: { case: "watch" as const, value: { name: "runs/r" } } };
    await new Promise(() => {});
  }
  const over = new AbortController();
  const streams = {
    watch: left.runs.watchRun({ name: "runs/r" }),
    steer: left.runs.steerRun(watching()),
    assignments: left.routing.streamAssignments({ run: "runs/r" }),
    health: left.health.watch({}, { signal: over.signal }),
    expired: expired.runs.watchRun({ name: "runs/r" }),
    stayed: stayed.runs.watchRun({ name: "runs/r" }, { signal: over.signal }),
  };
  const ends = new Map<string, RpcError>();
  const begun = new Map<string, number>();
  const reading = Object.entries(streams).map(async ([name, messages]) => {
    try {
      for await (const _ of messages) begun.set(name, (begun.get(name) ?? 0) + 1);
    } catch (error) {
      ends.set(name, error as RpcError);
    }
  });
  while (begun.size < 6) await delay(10);
  assert.is(ends.size, 0);
  assert.ok(store.revoke(leaving.record.id));
  assert.is((await refused(left.runs.getRun({ name: "runs/r" }))).code, UNAUTHENTICATED, "the very next call");
  const deadline = Date.now() + 10_000;
  while (ends.size < 4 && Date.now() < deadline) await delay(20);
  const told = Object.fromEntries([...ends].map(([name, error]) => [name, problemsOf(error).reason]));
  assert.equal(told, {
    watch: "TOKEN_REVOKED",
    steer: "TOKEN_REVOKED",
    assignments: "TOKEN_REVOKED",
    expired: "TOKEN_EXPIRED",
  });
  for (const error of ends.values()) assert.is(error.code, UNAUTHENTICATED);
  const before = begun.get("stayed")!;
  while (begun.get("stayed")! <= before && Date.now() < deadline) await delay(20);
  assert.ok(begun.get("stayed")! > before, "another token's stream goes on");
  assert.is((await admin.runs.getRun({ name: "runs/r" })).run?.state, RunState.RUNNING);
  await admin.runs.cancelRun({ name: "runs/r" });
  over.abort();
  await Promise.all(reading);
  for (const connection of [...connections, admin]) connection.close();
});

test("the handler of a revoked token's stream ends although its client has stopped reading", async () => {
  let made = 0;
  let ended = false;
  async function* downloadModel() {
    try {
      for (; ; made++) yield { part: { case: "data" as const, value: new Uint8Array(2 ** 18) } };
    } finally {
      ended = true;
    }
  }
  const gate = createGate(
    { maxMetadataBytes: 4096, maxOpenCalls: 10 },
    openTokens(registryFile(server.dataDirectory)),
    () => undefined,
    () => undefined,
  );
  const { channel: own, close } = await loopback(
    (it) => serve(it, ModelService, partly(ModelService, { downloadModel }), noFault),
    { interceptors: [gate.interceptor] },
  );
  const { record, token } = tokenOf("operator");
  const stopped = new AbortController();
  const options = { metadata: bearer(`Bearer ${token}`), signal: stopped.signal };
  const reading = connect(ModelService, own).downloadModel({}, options)[Symbol.asyncIterator]();
  await reading.next();
  let before = -1;
  while (made > before) {
    before = made;
    await delay(200);
  }
  assert.is(ended, false, "the reader holds the handler back");
  assert.ok(store.revoke(record.id));
  for (let tries = 0; tries < 500 && !ended; tries++) await delay(10);
  assert.is(ended, true);
  stopped.abort();
  await reading.next().catch(() => {});
  await close();
  gate.close();
});

test("of a token only the digest is kept, and the same secret is never given twice", () => {
  const tokens = Array.from({ length: 50 }, () => tokenOf("viewer", new Date(0)).token);
  const secrets = tokens.map((token) => token.slice(-43));
  assert.is(new Set(secrets).size, 50);
  for (const secret of secrets) assert.is(Buffer.from(secret, "base64url").length, 32, "256 bits");
  const kept = ["", "-wal"].map((end) => readFileSync(`${registryFile(server.dataDirectory)}${end}`, "latin1")).join();
  for (const secret of secrets) {
    assert.not(kept.includes(secret), "the secret is not in the registry");
    assert.not(kept.includes(Buffer.from(secret, "base64url").toString("latin1")));
  }
  assert.ok(kept.includes(tokens[0].slice(5, 17)), "the id is");
});

test("who is turned away is in the log, an entry a second, and no token is", async () => {
  const logged: string[] = [];
  const guarded = await testServer({ flags: ["--tokens", "on"], log: (_, message) => void logged.push(message) });
  try {
    assert.ok(logged.some((message) => /nobody has a token yet/.test(message)));
    const { token } = tokenOf("admin"); // Of another server.
    const stranger = connectThaw(guarded.address, { token });
    const call = () => refused(stranger.runs.listRuns({}));
    const started = Date.now();
    await Promise.all(Array.from({ length: 50 }, call));
    const seconds = Math.ceil((Date.now() - started) / 1000);
    const entries = () => logged.filter((message) => message.includes("refused to"));
    assert.ok(entries().length >= 1 && entries().length <= seconds, `${entries().length} entries in ${seconds} s`);
    assert.match(entries()[0], /^thaw\.v1\.RunService\/ListRuns refused to 127\.0\.0\.1:\d+: UNAUTHENTICATED: /);
    await delay(1100);
    await call();
    assert.match(entries().at(-1)!, /; \d+ more before$/);
    stranger.close();
    for (const part of [token, token.slice(-43)]) assert.not(logged.join("\n").includes(part));
  } finally {
    await guarded.stop();
  }
});

test("metadata and open calls are bounded before a message is read, by name of the limit", async () => {
  const small = await testServer({ flags: ["--max-metadata-bytes", "2048", "--max-open-calls", "3"] });
  const { thaw } = small;
  try {
    const large = new Metadata();
    large.set("x-large", "x".repeat(2048));
    const told = problemsOf(await refused(thaw.system.getSystem({}, { metadata: large })));
    assert.equal([told.code, told.reason, told.figures.limit], ["RESOURCE_EXHAUSTED", "METADATA_TOO_LARGE", "2048"]);
    large.set("x-large", "x".repeat(1024));
    await thaw.system.getSystem({}, { metadata: large });

    const over = new AbortController();
    const watches = Array.from({ length: 3 }, () =>
      thaw.health.watch({}, { signal: over.signal })[Symbol.asyncIterator](),
    );
    for (const watch of watches) await watch.next();
    const full = problemsOf(await refused(thaw.system.getSystem({})));
    assert.equal([full.code, full.reason, full.figures.limit], ["RESOURCE_EXHAUSTED", "TOO_MANY_CALLS", "3"]);
    assert.is(full.retryAfterMs, 1000);
    over.abort();
    for (const watch of watches) await watch.next().catch(() => {});
    for (let tries = 0; ; tries++) {
      const answer = await thaw.system.getSystem({}).catch((error: RpcError) => error);
      if (!(answer instanceof RpcError)) break;
      assert.equal([answer.code, tries < 200], [RESOURCE_EXHAUSTED, true]);
      await delay(10);
    }
  } finally {
    await small.stop();
  }
});

test.run();
