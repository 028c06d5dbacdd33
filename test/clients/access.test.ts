// The thaw command and a server that asks who is there: tokens made and revoked on its data directory, sent over TLS.

import { execFile } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { authority } from "../support/certificates.ts";
import { type TestServer, testServer } from "../support/thaw_server.ts";

const file = (name: string) => fileURLToPath(new URL(`../../clients/cli/${name}`, import.meta.url));
const THAW = "Deno" in globalThis ? ["run", "-A", file("main.ts")] : [file("thaw.mjs")];

interface Outcome {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

function thaw(args: readonly string[], variables: Readonly<Record<string, string>> = {}): Promise<Outcome> {
  const env = { ...process.env, ...variables };
  return new Promise((resolve) => {
    const child = execFile(process.execPath, [...THAW, ...args], { env }, (_, stdout, stderr) =>
      resolve({ code: child.exitCode ?? -1, stdout, stderr }),
    );
  });
}

const test = suite("access of the command");
let folder: string;
let server: TestServer;
let connection: readonly string[];
const pem = async (name: string, text: string): Promise<string> => {
  await writeFile(join(folder, name), text);
  return join(folder, name);
};
test.before(async () => {
  folder = await mkdtemp(join(tmpdir(), "thaw-access-"));
  const ours = authority("ours");
  const [own, client] = [ours.issue("server"), ours.issue("client")];
  const ca = await pem("ca.pem", ours.certificate);
  const serving = ["--tls-cert", await pem("s.pem", own.certificate), "--tls-key", await pem("s.key", own.key)];
  server = await testServer({ flags: ["--tokens", "on", ...serving, "--tls-client-ca", ca] });
  const certificate = [
    "--tls-cert",
    await pem("c.pem", client.certificate),
    "--tls-key",
    await pem("c.key", client.key),
  ];
  // By name: Deno's TLS connects to no bare address.
  connection = ["--server", server.address.replace("127.0.0.1", "localhost"), "--tls-ca", ca, ...certificate];
});
test.after(async () => {
  await server.stop();
  await rm(folder, { recursive: true });
});

test("a token is shown once, opens what its role may do, and nothing once revoked", async () => {
  const place = ["--data-dir", server.dataDirectory];
  const made = await thaw([
    "tokens",
    "create",
    "--role",
    "viewer",
    "--label",
    "a dashboard",
    "--expires",
    "1d",
    ...place,
  ]);
  assert.equal([made.code, made.stdout.match(/^thaw_t-\w{10}_[\w-]{43}\n$/) !== null], [0, true]);
  const token = made.stdout.trim();
  const id = token.split("_")[1];
  const withToken = { THAW_TOKEN_FILE: await pem("token", made.stdout) };

  const [seen, nobody, denied, plain] = await Promise.all([
    thaw([...connection, "runs", "list"], withToken),
    thaw([...connection, "runs", "list"]),
    thaw([...connection, "models", "delete", "m"], { THAW_TOKEN: token }),
    thaw(["--server", server.address, "runs", "list"], withToken),
  ]);
  assert.is(seen.code, 0, seen.stderr);
  assert.equal([nobody.code, /UNAUTHENTICATED/.test(nobody.stderr)], [8, true]);
  assert.equal([denied.code, /role admin; the token's is viewer/.test(denied.stderr)], [8, true]);

  assert.equal([plain.code, /hangs up: it may want TLS/.test(plain.stderr)], [6, true], plain.stderr);

  const listed = await thaw(["tokens", "list", ...place]);
  assert.match(listed.stdout, new RegExp(`^${id} +viewer +good .*a dashboard$`, "m"));
  assert.not(listed.stdout.includes(token.slice(-43)));
  assert.is((await thaw(["tokens", "revoke", id, ...place])).code, 0);
  const closed = await thaw([...connection, "runs", "list"], withToken);
  assert.equal([closed.code, /the token was revoked/.test(closed.stderr)], [8, true]);
});

// What is typed, the exit code, and what is said.
const mistakes: readonly (readonly [args: readonly string[], code: number, said: readonly RegExp[]])[] = [
  [["tokens", "create"], 2, [/--role is missing/]],
  [["tokens", "create", "--role", "boss", "--expires", "soon", "x"], 2, [/"boss"/, /"soon"/, /only revoke takes ids/]],
  [["tokens", "list", "--role", "viewer"], 2, [/are of create/]],
  [["tokens", "revoke"], 2, [/which one/]],
  [["tokens", "mint"], 2, [/"mint" is not create, list or revoke/]],
  [["--tls-ca", "/none", "--tls-cert", "/none", "system"], 2, [/--tls-ca .*ENOENT/, /--tls-key belong together/]],
  [["--tls-ca", file("main.ts"), "system"], 6, [/UNAVAILABLE/]],
];

for (const [args, code, said] of mistakes) {
  test(`thaw ${args.map((arg) => arg.split("/").at(-1)).join(" ")} ends with ${code}`, async () => {
    const outcome = await thaw(args, { THAW_DATA_DIR: join(folder, "none"), THAW_SERVER: "127.0.0.1:1" });
    assert.is(outcome.code, code, outcome.stderr);
    for (const words of said) assert.match(outcome.stderr, words);
  });
}

test("a token that leaves the machine unencrypted is remarked on", async () => {
  const to = (address: string) => thaw(["--server", address, "system"], { THAW_TOKEN: "x" });
  const [beyond, here] = await Promise.all([to("[::ffff:127.0.0.1]:1"), to("127.0.0.1:1")]);
  assert.equal([beyond.code, /without encryption/.test(beyond.stderr)], [6, true], beyond.stderr);
  assert.equal([here.code, /without encryption/.test(here.stderr)], [6, false]);
});

test.run();
