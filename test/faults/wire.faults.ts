// Peers that speak HTTP/2 and say nonsense in it: bodies that are no messages, to every method; streams that are reset as
// soon as they are open, left in the middle, or never end. Every call of theirs ends, none of them is a fault of ours, and
// the room they took is free again: the server takes few calls at a time here, so that one that stays shows. (Peers that
// speak no HTTP/2, and a slow preface: test/server/foreign_clients.test.ts.)

import { Buffer } from "node:buffer";
import { type ClientHttp2Session, type ClientHttp2Stream, connect as connectHttp2, constants } from "node:http2";
import { connect as connectTcp } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { status } from "@grpc/grpc-js";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { ALL_SERVICES } from "../../src/server/front/front.ts";
import { type TestServer, testServer } from "../support/thaw_server.ts";

const MOST_CALLS = 64;
const PATIENCE_MS = 20_000;
const METHODS = ALL_SERVICES.flatMap((service) =>
  service.methods.map((method) => `/${service.typeName}/${method.name}`),
);

const test = suite("wire");
const logged: string[] = [];
let server: TestServer;
let session: ClientHttp2Session;
test.before(async () => {
  const log = (level: string, message: string) => void (level === "error" && logged.push(message));
  server = await testServer({ flags: ["--max-open-calls", String(MOST_CALLS)], log });
});
test.after(() => server.stop());
test.before.each(reconnect);
test.after.each(async () => {
  session.destroy();
  for (const since = Date.now(); ; await delay(20)) {
    const inProgress = [...(await server.scrape()).matchAll(/^thaw_rpc_in_progress\{.*\} (\d+)$/gm)];
    if (inProgress.every(([, calls]) => calls === "0")) break;
    assert.ok(Date.now() - since < PATIENCE_MS, `calls go on: ${inProgress.map(([line]) => line).join(", ")}`);
  }
  // As many as are taken at a time, so that none of the earlier ones counts any more.
  const all = await Promise.all(Array.from({ length: MOST_CALLS }, () => server.thaw.health.check({})));
  assert.is(all.length, MOST_CALLS);
  assert.equal(logged.splice(0), [], "no fault");
});

function reconnect(): void {
  session = connectHttp2(`http://${server.address}`);
  session.on("error", () => {});
}

function open(path: string, headers: Readonly<Record<string, string>> = {}): ClientHttp2Stream {
  const about = { ":method": "POST", ":path": path, "content-type": "application/grpc", te: "trailers", ...headers };
  if (session.destroyed || session.closed) reconnect(); // The server hangs up on some.
  const stream = session.request(about);
  stream.on("error", () => {});
  stream.resume();
  return stream;
}

/** The status that a call with this body ends with, `reset`, or `none` of a stream that goes on. */
function statusOf(path: string, body: Buffer, headers?: Readonly<Record<string, string>>): Promise<string> {
  const stream = open(path, headers);
  return new Promise((resolve) => {
    let code: unknown = "reset";
    const take = (trailers: Readonly<Record<string, unknown>>): void => {
      code = trailers["grpc-status"] ?? `HTTP ${trailers[":status"]}`;
    };
    stream.on("response", take);
    stream.on("trailers", take);
    stream.on("close", () => resolve(/^\d+$/.test(String(code)) ? status[Number(code)] : String(code)));
    stream.end(body);
    // Health's watch goes on until somebody ends it.
    if (path.endsWith("Health/Watch")) {
      stream.once("data", () => {
        code = "0";
        stream.close(constants.NGHTTP2_CANCEL);
      });
    }
  });
}

function header(length: number, flag = 0): Buffer {
  const bytes = Buffer.alloc(5);
  bytes.writeUInt8(flag);
  bytes.writeUInt32BE(length, 1);
  return bytes;
}
const message = (body: readonly number[] | Buffer, flag = 0): Buffer =>
  Buffer.concat([header(body.length, flag), Buffer.from(body)]);

/** Field 2 in field 2 in field 2 …: whatever it is taken for, it has an end. */
function nested(depth: number): Buffer {
  let body = Buffer.alloc(0);
  for (let i = 0; i < depth; i++) {
    const { length } = body;
    const varint = length < 128 ? [length] : [(length & 127) | 128, length >> 7];
    body = Buffer.concat([Buffer.from([0x12, ...varint]), body]);
  }
  return body;
}

const WRONG = ["INTERNAL", "UNIMPLEMENTED", "INVALID_ARGUMENT", "OK"];
const bodies: readonly (readonly [what: string, body: Buffer, codes: readonly string[]])[] = [
  ["nothing", Buffer.alloc(0), WRONG],
  ["half of a header", Buffer.from([0, 0, 0]), WRONG],
  ["half of a message", Buffer.concat([header(100), Buffer.from("abc")]), WRONG],
  ["two messages", Buffer.concat([message([]), message([])]), WRONG],
  ["4 GiB announced", header(2 ** 32 - 1), ["RESOURCE_EXHAUSTED"]],
  ["an unknown flag", message([], 255), WRONG],
  ["a compressed message of no encoding", message([1, 2, 3], 1), ["INTERNAL"]],
  ["a varint without an end", message(Array.from({ length: 20 }, () => 0xff)), ["INTERNAL"]],
  ["a field with the number 0", message([0x02, 0x00]), ["INTERNAL"]],
  ["a text that is longer than its message", message([0x0a, 100, 0x61]), ["INTERNAL"]],
  ["a text that is not UTF-8", message([0x0a, 2, 0xff, 0xfe]), WRONG],
  ["5000 groups within each other", message(Buffer.alloc(5000, 0x0b)), WRONG],
  ["3000 messages within each other", message(nested(3000)), WRONG],
];

for (const [what, body, codes] of bodies) {
  test(`every method gets ${what}`, async () => {
    const found = await Promise.all(METHODS.map((path) => statusOf(path, body)));
    for (const [i, code] of found.entries()) {
      // A method may know no field of the body, and pass it over.
      assert.ok(codes.includes(code) || code === "OK", `${METHODS[i]}: ${code}`);
    }
    assert.ok(found.some((code) => code !== "OK"));
  });
}

const metadata: readonly (readonly [
  what: string,
  headers: Readonly<Record<string, string>>,
  codes: readonly string[],
])[] = [
  ["a content type of its own", { "content-type": "text/plain" }, ["HTTP 415"]],
  ["an encoding that is not there", { "grpc-encoding": "zstd" }, ["UNIMPLEMENTED", "OK"]],
  ["a timeout that is none", { "grpc-timeout": "soon" }, ["INTERNAL", "INVALID_ARGUMENT"]],
  ["no time", { "grpc-timeout": "0n" }, ["DEADLINE_EXCEEDED", "OK"]],
  ["binary metadata that is not base 64", { "x-bin": "%%%" }, ["OK"]],
  ["60 kB of metadata", { "x-a": "a".repeat(60_000) }, ["RESOURCE_EXHAUSTED"]],
  ["1000 headers", Object.fromEntries(Array.from({ length: 1000 }, (_, i) => [`x-${i}`, ""])), ["reset"]],
];
for (const [what, headers, codes] of metadata) {
  test(`a call with ${what}`, async () => {
    const code = await statusOf("/thaw.v1.SystemService/GetSystem", message([]), headers);
    assert.ok(codes.includes(code), code);
  });
}

test("compressed garbage, and paths that are no methods", async () => {
  const gzip = { "grpc-encoding": "gzip" };
  assert.is(await statusOf("/thaw.v1.SystemService/GetSystem", message([1, 2, 3], 1), gzip), "INTERNAL");
  for (const path of [
    "/",
    "//",
    "/thaw.v1.SystemService",
    "/thaw.v1.SystemService/__proto__",
    `/${"x".repeat(5000)}`,
  ]) {
    assert.is(await statusOf(path, message([])), "UNIMPLEMENTED", path.slice(0, 40));
  }
});

test("streams that are reset as soon as they are open, thousands of them", async () => {
  for (let wave = 0; wave < 20; wave++) {
    for (let i = 0; i < 250; i++) open(METHODS[i % METHODS.length]).close(constants.NGHTTP2_CANCEL);
    const started = Date.now();
    await server.thaw.health.check({}).catch(({ code }) => assert.is(code, status.RESOURCE_EXHAUSTED));
    assert.ok(Date.now() - started < 5000, "others are answered meanwhile");
  }
});

test("connections that are gone in the middle of their calls", async () => {
  for (let wave = 0; wave < 5; wave++) {
    const streams = Array.from({ length: MOST_CALLS - 4 }, (_, i) => open(METHODS[i % METHODS.length]));
    for (const [i, stream] of streams.entries()) {
      if (i % 2) stream.write(message([0x0a, 1, 0x61]));
      stream.write(header(1000));
    }
    await delay(50);
    session.destroy();
  }
});

test("headers that never end", async () => {
  const [host, port] = server.address.split(":");
  const socket = connectTcp(Number(port), host);
  let over = false;
  socket.on("error", () => {});
  socket.on("close", () => {
    over = true;
  });
  socket.resume();
  const frame = (type: number, flags: number, stream: number, body: Buffer): Buffer => {
    const head = Buffer.alloc(9);
    head.writeUIntBE(body.length, 0, 3);
    head.writeUInt8(type, 3);
    head.writeUInt8(flags, 4);
    head.writeUInt32BE(stream, 5);
    return Buffer.concat([head, body]);
  };
  // HEADERS without END_HEADERS, and then CONTINUATION (RFC 9113, section 6.10) for as long as they are taken: each holds
  // one header `x: aaa…` that is not to be indexed.
  const field = Buffer.concat([Buffer.from([0x00, 1, 0x78, 0x7f, 0x81, 0x7d]), Buffer.alloc(16_000, 0x61)]);
  socket.write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
  socket.write(frame(4, 0, 0, Buffer.alloc(0)));
  socket.write(frame(1, 0, 1, field));
  for (let i = 0; i < 2000 && !over; i++) {
    socket.write(frame(9, 0, 1, field));
    if (i % 50 === 0) await delay(1);
  }
  for (const since = Date.now(); !over; await delay(10)) {
    assert.ok(Date.now() - since < PATIENCE_MS, "the server hangs up");
  }
});

test.run();
