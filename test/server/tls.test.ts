// Encryption on the port, with the front here and in a process of its own: who trusts the server gets in, and where client
// certificates are asked for, who has one of the right authority. Everybody else is told nothing.

import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { status } from "@grpc/grpc-js";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { type ConnectOptions, connectThaw, RpcError, type TlsOptions } from "../../clients/typescript/index.ts";
import { createToken } from "../../src/server/access/tokens.ts";
import { tlsFindings } from "../../src/server/doctor/tls.ts";
import { startFront } from "../../src/server/front/front.ts";
import { startRelayedFront } from "../../src/server/front/relay.ts";
import { readTls } from "../../src/server/front/tls.ts";
import { openTokens } from "../../src/server/registry/tokens.ts";
import { startServer } from "../../src/server/server.ts";
import { readSettings, UsageError } from "../../src/server/settings.ts";
import { registryFile } from "../../src/server/storage/layout.ts";
import { authority, type Issued } from "../support/certificates.ts";
import { fakeWorkers } from "../support/thaw_server.ts";

const test = suite("tls");
const folder = mkdtempSync(join(tmpdir(), "thaw-tls-"));
test.after(() => rmSync(folder, { recursive: true }));

const ours = authority("ours");
const theirs = authority("theirs");
const server = ours.issue("server");
const client = ours.issue("client");

function file(name: string, pem: string): string {
  const path = join(folder, name);
  writeFileSync(path, pem);
  return path;
}

const flags = ["--tls-cert", file("s.pem", server.certificate), "--tls-key", file("s.key", server.key)];
const clientFlags = ["--tls-client-ca", file("ca.pem", ours.certificate)];

const as = ({ certificate, key }: Issued): TlsOptions => ({
  authorities: ours.certificate,
  certificate: { chain: certificate, key },
});

// Whether a client gets in, without and with client certificates being asked for. (Under Deno the server looks at an expired
// one that it did not ask for.)
const clients: readonly (readonly [
  what: string,
  tls: TlsOptions | undefined,
  asked: { no?: boolean; yes: boolean },
])[] = [
  ["no encryption", undefined, { no: false, yes: false }],
  ["another authority trusted", { authorities: theirs.certificate }, { no: false, yes: false }],
  ["the right authority trusted, no certificate", { authorities: ours.certificate }, { no: true, yes: false }],
  ["a certificate of the right authority", as(client), { no: true, yes: true }],
  ["a certificate of another authority", as(theirs.issue("client")), { no: true, yes: false }],
  ["an expired certificate", as(ours.issue("client", -1)), { yes: false }],
];

const fronts = [
  ["here", startFront],
  ["in a process of its own", startRelayedFront],
] as const;

for (const [where, start] of fronts) {
  for (const asked of ["no", "yes"] as const) {
    test(`the front ${where}, client certificates asked for: ${asked}`, async () => {
      const data = mkdtempSync(join(folder, "data-"));
      const all = ["--port", "0", "--data-dir", data, "--tokens", "on", ...flags];
      const settings = readSettings(asked === "yes" ? [...all, ...clientFlags] : all, {});
      const log = () => undefined;
      const thawServer = await startServer(settings, { startWorker: fakeWorkers(() => ({})).start, log });
      const front = await start(settings, thawServer.handlersFor, log, () => {});
      const store = openTokens(registryFile(data));
      try {
        const { token } = createToken(store, { role: "viewer", label: "", expireTime: undefined });
        for (const [what, tls, entry] of clients) {
          if (entry[asked] === undefined) continue;
          const code = await codeOf(front.port, { tls, token });
          assert.is(code, entry[asked] ? status.OK : status.UNAVAILABLE, what);
        }
        assert.is(await codeOf(front.port, { tls: as(client) }), status.UNAUTHENTICATED, "a certificate is no token");
      } finally {
        store.close();
        await thawServer.stop();
        await front.stop(500);
        thawServer.close();
      }
    });
  }
}

async function codeOf(port: number, options: ConnectOptions): Promise<status> {
  const thaw = connectThaw(`localhost:${port}`, options);
  try {
    await thaw.system.getSystem({}, { deadline: Date.now() + 30_000 });
    return status.OK;
  } catch (error) {
    if (error instanceof RpcError) return error.code;
    throw error;
  } finally {
    thaw.close();
  }
}

test("everything wrong with the files is said before anything starts", () => {
  const told = (certificate: string, key: string, clientAuthority?: string): readonly string[] => {
    try {
      readTls({ certificate, key, clientAuthority });
    } catch (error) {
      if (error instanceof UsageError) return error.message.split("\n");
      throw error;
    }
    return [];
  };
  const none = join(folder, "none.pem");
  const text = file("text.pem", "hello");
  const expired = ours.issue("server", -1);
  assert.equal(told(flags[1], flags[3], clientFlags[1]), []);
  assert.equal(told(none, text, none), [
    `--tls-cert ${none} cannot be read (ENOENT)`,
    `--tls-key ${text} is not an unencrypted private key in PEM`,
    `--tls-client-ca ${none} cannot be read (ENOENT)`,
  ]);
  const otherKey = file("o.key", client.key);
  assert.equal(told(flags[1], otherKey), [`--tls-key ${otherKey} is not the key of --tls-cert ${flags[1]}`]);
  const old = told(file("e.pem", expired.certificate), file("e.key", expired.key));
  assert.match(old[0], /e\.pem expired on /);
  assert.is(old.length, 1);
});

test("thaw doctor says how long the certificate lasts", () => {
  const level = ({ certificate, key }: Issued): readonly string[] => {
    const files = ["--tls-cert", file("d.pem", certificate), "--tls-key", file("d.key", key)];
    return tlsFindings(readSettings(files, {})).map((finding) => finding.level);
  };
  assert.equal(level(ours.issue("server")), ["ok"]);
  assert.equal(level(ours.issue("server", 7)), ["warn"]);
  assert.equal(level(ours.issue("server", -7)), ["fail"]);
  assert.equal(level({ certificate: server.certificate, key: client.key }), ["fail"]);
  assert.equal(tlsFindings(readSettings([], {})), []);
});

test.run();
