// Clients that are not ours: the C-core client of Debian's python3-grpcio over TLS and mTLS, knowing nothing but the
// server's reflection; and peers that do not speak HTTP/2 at all, which cost the others nothing.

import { spawn, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { connectThaw } from "../../clients/typescript/index.ts";
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import { createToken } from "../../src/server/access/tokens.ts";
import { ALL_SERVICES } from "../../src/server/front/front.ts";
import { openTokens } from "../../src/server/registry/tokens.ts";
import { registryFile } from "../../src/server/storage/layout.ts";
import { authority } from "../support/certificates.ts";
import { testServer, withInputs } from "../support/thaw_server.ts";

const test = suite("foreign clients");
const folder = mkdtempSync(join(tmpdir(), "thaw-foreign-"));
test.after(() => rmSync(folder, { recursive: true }));

const pem = (name: string, text: string): string => {
  writeFileSync(join(folder, name), text);
  return join(folder, name);
};
const ours = authority("ours");
const [server, client] = [ours.issue("server"), ours.issue("client")];
const ca = pem("ca.pem", ours.certificate);
const encrypted = ["--tls-cert", pem("s.pem", server.certificate), "--tls-key", pem("s.key", server.key)];
const own = [pem("c.pem", client.certificate), pem("c.key", client.key)];

/** A Python that has grpcio; Debian's is not always the first. */
const python = ["/usr/bin/python3", "python3"].find(
  (command) => spawnSync(command, ["-c", "import grpc"], { stdio: "ignore" }).status === 0,
);
if (!python) console.log("skipped: no Python with grpcio (Debian: apt-get install python3-grpcio)");

interface Refusal {
  readonly code: string;
  readonly message: string;
  readonly details: readonly { readonly type: string; readonly text: string }[];
}

interface Seen extends Record<"invalid" | "stranger" | "denied" | "large", Refusal> {
  readonly services: readonly string[];
  readonly uploaded: string;
  readonly started: string;
  readonly revisions: readonly number[];
  readonly steps: readonly number[];
  readonly watched: readonly number[];
  readonly steered: readonly string[];
  readonly state: number;
}

function pythonClient(args: readonly string[], token: string): Promise<Seen> {
  const script = fileURLToPath(new URL("./foreign_client.py", import.meta.url));
  const child = spawn(python!, [script, ...args], { stdio: ["pipe", "pipe", "pipe"] });
  child.stdin.end(token);
  let [output, errors] = ["", ""];
  child.stdout.setEncoding("utf8").on("data", (text) => (output += text));
  child.stderr.setEncoding("utf8").on("data", (text) => (errors += text));
  return new Promise((resolve, reject) => {
    child.on("error", reject);
    child.on("close", (code) => (code === 0 ? resolve(JSON.parse(output)) : reject(new Error(errors))));
  });
}

for (const mutual of [false, true]) {
  const title = `Python's client over ${mutual ? "mTLS" : "TLS"}: reflection, every kind of call, details of errors`;
  (python ? test : test.skip)(title, async () => {
    const served = await testServer({
      engine: () => ({ beforeStep: () => delay(5) }),
      flags: ["--tokens", "on", ...encrypted, ...(mutual ? ["--tls-client-ca", ca] : [])],
    });
    const store = openTokens(registryFile(served.dataDirectory));
    const token = (role: "admin" | "operator") => createToken(store, { role, label: "", expireTime: undefined }).token;
    const certificate = mutual ? { chain: client.certificate, key: client.key } : undefined;
    const tls = { authorities: ours.certificate, certificate };
    const thaw = connectThaw(served.address, { tls, token: token("admin") });
    try {
      await withInputs(thaw);
      const seen = await pythonClient([served.address, ca, ...(mutual ? own : [])], token("operator"));
      assert.equal([...seen.services].sort(), ALL_SERVICES.map(({ typeName }) => typeName).sort());
      assert.equal([seen.uploaded, seen.started], ["datasets/python", "runs/python"]);
      assert.equal(seen.steps, [1, 2, 3, 4, 5]);
      assert.equal(
        seen.revisions,
        seen.revisions.map((_, i) => i + 1),
      );
      assert.equal(seen.watched, seen.revisions.slice(1));
      assert.equal([seen.steered, seen.state], [["pause", "cancel"], RunState.CANCELLED]);

      const details = ({ details: all }: Refusal) => Object.fromEntries(all.map(({ type, text }) => [type, text]));
      assert.is(seen.invalid.code, "INVALID_ARGUMENT");
      for (const field of ["run_id", "spec.steps"]) {
        assert.ok(details(seen.invalid)["google.rpc.BadRequest"]?.includes(`field: "${field}"`), field);
      }
      assert.is(seen.stranger.code, "UNAUTHENTICATED");
      assert.match(details(seen.stranger)["google.rpc.ErrorInfo"] ?? "", 'reason: "TOKEN_MISSING"');
      assert.is(seen.denied.code, "PERMISSION_DENIED");
      assert.match(details(seen.denied)["google.rpc.ErrorInfo"] ?? "", 'reason: "ROLE_TOO_LOW"');
      assert.is(seen.large.code, "RESOURCE_EXHAUSTED");
      assert.match(seen.large.message, "16777216");
    } finally {
      thaw.close();
      store.close();
      await served.stop();
    }
  });
}

const PREFACE = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const frame = (length: number, type: number, flags: number, stream: number, body = ""): Buffer => {
  const head = Buffer.alloc(9);
  head.writeUIntBE(length, 0, 3);
  head.writeUInt8(type, 3);
  head.writeUInt8(flags, 4);
  head.writeUInt32BE(stream, 5);
  return Buffer.concat([head, Buffer.from(body, "latin1")]);
};
const settings = frame(0, 4, 0, 0);

// What a peer sends, in pieces, before it waits.
const peers: readonly (readonly [what: string, pieces: readonly (string | Buffer)[]])[] = [
  ["nothing", []],
  ["HTTP/1", ["GET / HTTP/1.1\r\nhost: x\r\n\r\n"]],
  ["noise", [Buffer.from(Array.from({ length: 4096 }, (_, i) => (i * 131 + 7) & 255))]],
  ["a slow preface", [...PREFACE].slice(0, 20)],
  ["a preface and then noise", [PREFACE, "x".repeat(1000)]],
  ["a frame that is too long", [PREFACE, settings, frame(0xffffff, 0, 0, 1)]],
  ["headers that do not decode", [PREFACE, settings, frame(4, 1, 5, 1, "\xff\xff\xff\xff")]],
  ["data of a stream that is not there", [PREFACE, settings, frame(4, 0, 0, 7, "abcd")]],
  ["a flood of pings", [PREFACE, settings, ...Array.from({ length: 2000 }, () => frame(8, 6, 0, 0, "12345678"))]],
  ["a flood of settings", [PREFACE, ...Array.from({ length: 2000 }, () => settings)]],
];

test("peers that speak no gRPC leave the others alone", async () => {
  const served = await testServer();
  const [, port] = served.address.split(":");
  const sockets: Socket[] = [];
  try {
    const watch = served.thaw.health.watch({})[Symbol.asyncIterator]();
    await watch.next();
    for (const [what, pieces] of peers) {
      for (let i = 0; i < 10; i++) {
        const socket = connect(Number(port), "127.0.0.1");
        socket.on("error", () => {});
        socket.resume();
        sockets.push(socket);
        for (const piece of pieces) socket.write(piece);
      }
      await delay(20);
      const started = Date.now();
      await served.thaw.health.check({});
      assert.ok(Date.now() - started < 5000, `${what}: health took ${Date.now() - started} ms`);
    }
    const next = watch.next();
    served.thaw.system.getSystem({});
    assert.is(await Promise.race([next.then(() => "ended"), delay(100, "open")]), "open", "an open stream is unharmed");
    next.catch(() => {});
  } finally {
    for (const socket of sockets) socket.destroy();
    await served.stop();
  }
});

test.run();
