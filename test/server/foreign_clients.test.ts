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
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import { createToken } from "../../src/server/access/tokens.ts";
import { ALL_SERVICES } from "../../src/server/front/front.ts";
import { openTokens } from "../../src/server/registry/tokens.ts";
import { PACKAGE } from "../../src/server/services/system_service.ts";
import { registryFile } from "../../src/server/storage/layout.ts";
import { authority } from "../support/certificates.ts";
import { FAKE_TENSOR } from "../support/fake_engine.ts";
import { testServer } from "../support/thaw_server.ts";
import { serverForTour, tourRoot } from "../support/tour.ts";

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

interface Seen extends Record<"full" | "invalid" | "wrong_state" | "stranger" | "denied" | "large", Refusal> {
  readonly services: readonly string[];
  readonly revisions: readonly number[];
  readonly watched: readonly number[];
  readonly [other: string]: unknown;
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

/** What must have come of the script's calls. */
const EXPECTED = {
  health: 1,
  version: PACKAGE.version,
  model: "models/python",
  model_back: true,
  uploaded: "datasets/python",
  pages: [["models/exported"], ["models/python"]],
  started: "runs/python",
  steps: [1, 2, 3, 4, 5],
  summary: 5,
  plan: FAKE_TENSOR.name,
  loss: 0.5,
  step: 1,
  checkpoint: ["runs/driven/checkpoints/step-1"],
  texts: ["A", "B"],
  score: 0.25,
  subscribed: [0],
  exported: "models/exported",
  forked: 7,
  steered: ["pause", "cancel"],
  state: RunState.CANCELLED,
};

for (const mutual of [false, true]) {
  const title = `Python's client over ${mutual ? "mTLS" : "TLS"}: reflection, every kind of call, details of errors`;
  (python ? test : test.skip)(title, async () => {
    const root = await tourRoot();
    const limits = ["--tokens", "on", "--max-queued-runs", "1"];
    const flags = [...limits, ...encrypted, ...(mutual ? ["--tls-client-ca", ca] : [])];
    const served = await serverForTour(root, { flags });
    const store = openTokens(registryFile(served.dataDirectory));
    const { token } = createToken(store, { role: "operator", label: "", expireTime: undefined });
    try {
      const strangers = [[served.address, pem("theirs.pem", authority("theirs").certificate)]];
      if (mutual) strangers.push([served.address, ca]);
      for (const stranger of strangers) {
        const ended = await pythonClient([...stranger, join(root, "tiny")], token).catch((error: Error) => error);
        assert.match(ended instanceof Error ? ended.message : "got in", "StatusCode.UNAVAILABLE");
      }
      const seen = await pythonClient([served.address, ca, join(root, "tiny"), ...(mutual ? own : [])], token);
      assert.equal([...seen.services].sort(), ALL_SERVICES.map(({ typeName }) => typeName).sort());
      assert.equal(
        seen.revisions,
        seen.revisions.map((_, i) => i + 1),
      );
      assert.equal(seen.watched, seen.revisions.slice(1));
      assert.equal(seen, { ...seen, ...EXPECTED });

      const details = ({ details: all }: Refusal) => Object.fromEntries(all.map(({ type, text }) => [type, text]));
      assert.is(seen.invalid.code, "INVALID_ARGUMENT");
      for (const field of ["run_id", "spec.steps"]) {
        assert.ok(details(seen.invalid)["google.rpc.BadRequest"]?.includes(`field: "${field}"`), field);
      }
      assert.is(seen.full.code, "RESOURCE_EXHAUSTED");
      assert.match(details(seen.full)["google.rpc.ErrorInfo"] ?? "", 'reason: "QUEUE_FULL"');
      assert.match(details(seen.full)["google.rpc.RetryInfo"] ?? "", /retry_delay \{\s*seconds: 30/);
      assert.is(seen.wrong_state.code, "FAILED_PRECONDITION");
      assert.match(details(seen.wrong_state)["google.rpc.ErrorInfo"] ?? "", 'value: "SUCCEEDED"');
      assert.is(seen.stranger.code, "UNAUTHENTICATED");
      assert.match(details(seen.stranger)["google.rpc.ErrorInfo"] ?? "", 'reason: "TOKEN_MISSING"');
      assert.is(seen.denied.code, "PERMISSION_DENIED");
      assert.match(details(seen.denied)["google.rpc.ErrorInfo"] ?? "", 'reason: "ROLE_TOO_LOW"');
      assert.is(seen.large.code, "RESOURCE_EXHAUSTED");
      assert.match(seen.large.message, "16777216");
    } finally {
      store.close();
      await served.stop();
      rmSync(root, { recursive: true });
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
