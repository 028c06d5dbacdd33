// Flags, environment, configuration file and defaults, and what is refused about them.

import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "uvu";
import * as assert from "uvu/assert";
import { HELP, printedSettings, readSettings, UsageError } from "../../src/server/settings.ts";

const folder = mkdtempSync(join(tmpdir(), "thaw-settings-"));
test.after(() => rmSync(folder, { recursive: true }));

function configuration(content: string): string {
  const path = join(folder, "thaw.yaml");
  writeFileSync(path, content);
  return path;
}

/** Everything that the settings are refused for. */
function mistakes(args: readonly string[], env: Record<string, string> = {}): readonly string[] {
  try {
    readSettings(args, env);
  } catch (error) {
    if (error instanceof UsageError) return error.message.split("\n");
    throw error;
  }
  return [];
}

test("a flag wins over the environment, the environment over the file, the file over the default", () => {
  const file = configuration(
    "max_queued_runs: 3\nport: 5000\nmodels: [one, /two]\nadapter: software\ninsecure: true\n",
  );
  const env = { THAW_PORT: "6000", THAW_MAX_QUEUED_RUNS: "4", THAW_INSECURE: "0" };
  const settings = readSettings(["--port", "7000", "--config", file], env);
  assert.equal([settings.host, settings.port, settings.adapter], ["127.0.0.1", 7000, "software"]);
  assert.equal(settings.modelRoots, [join(folder, "one"), "/two"], "a file's paths start at its folder");
  assert.equal([settings.limits.maxQueuedRuns, settings.limits.assignmentBufferMessages], [4, 64]);
  assert.is(settings.insecure, false);
  assert.equal(readSettings(["--models", "/a", "--models=/b"], { THAW_MODELS: "/c:/d" }).modelRoots, ["/a", "/b"]);
  assert.equal(readSettings([], { THAW_MODELS: "/c:/d", THAW_CONFIG: file }).modelRoots, ["/c", "/d"]);
  assert.is(readSettings([], { THAW_CONFIG: configuration('{"port": 8000}') }).port, 8000, "JSON is YAML");
  assert.is(readSettings([], { THAW_CONFIG: configuration("# nothing\n") }).port, 50051);
  for (const flag of ["--host", "--data-dir", "--models", "--insecure", "THAW_PORT"]) assert.ok(HELP.includes(flag));
});

const PAIR = ["--tls-cert", "c.pem", "--tls-key", "k.pem"];
const CLIENTS = ["--tls-client-ca", "ca.pem"];
// What is said about an address, by what is given with it; tokens is what callers need when nothing is said.
const reached: { given: readonly string[]; beyond: RegExp[]; tokens: { loopback: boolean; beyond: boolean } }[] = [
  { given: [], beyond: [/--tls-cert and --tls-key/], tokens: { loopback: false, beyond: true } },
  { given: PAIR, beyond: [], tokens: { loopback: false, beyond: true } },
  { given: [...PAIR, ...CLIENTS], beyond: [], tokens: { loopback: false, beyond: true } },
  { given: ["--insecure"], beyond: [], tokens: { loopback: false, beyond: false } },
  { given: ["--insecure", "--tokens", "on"], beyond: [], tokens: { loopback: true, beyond: true } },
  { given: ["--tokens", "on"], beyond: [/--tls-cert and --tls-key/], tokens: { loopback: true, beyond: true } },
  { given: [...PAIR, "--tokens", "off"], beyond: [/--tls-client-ca/], tokens: { loopback: false, beyond: false } },
  { given: [...PAIR, ...CLIENTS, "--tokens", "off"], beyond: [], tokens: { loopback: false, beyond: false } },
  { given: ["--tokens", "off"], beyond: [/--tls-cert/, /client-ca/], tokens: { loopback: false, beyond: false } },
];

for (const { given, beyond, tokens } of reached) {
  test(`loopback needs nothing; any other address encryption and tokens: ${given.join(" ") || "nothing given"}`, () => {
    for (const host of ["127.0.0.1", "127.8.0.1", "localhost", "::1"]) {
      const settings = readSettings(["--host", host, ...given], {});
      assert.equal([settings.host, settings.tokens], [host, tokens.loopback]);
    }
    for (const host of ["0.0.0.0", "::", "10.0.0.1", "127.0.0.1.example.com"]) {
      const told = mistakes(["--host", host, ...given]);
      assert.is(told.length, beyond.length);
      beyond.forEach((expected, i) => void assert.match(told[i], expected));
      for (const line of told) assert.match(line, `--host ${host} is reachable from other machines`);
      if (told.length === 0) assert.is(readSettings(["--host", host, ...given], {}).tokens, tokens.beyond);
    }
  });
}

test("encryption needs a certificate and its key", () => {
  for (const [given, missing] of [
    [["--tls-cert", "c"], ["--tls-key"]],
    [["--tls-key", "k"], ["--tls-cert"]],
    [CLIENTS, ["--tls-cert", "--tls-key"]],
  ]) {
    assert.equal(
      mistakes(given).map((line) => line.split(" is missing")[0]),
      missing,
    );
  }
});

test("everything wrong is said at once, with its place", () => {
  const file = configuration("host: 0.0.0.0\nmax_upload_bytes: 1.5\nprot: 1\nadapter:\n  - hardware\n");
  const env = { THAW_PORT: "70000", THAW_MAX_QUEUED_RUNS: "1e3" };
  const args = ["--config", file, "--adaptor", "x", "--max-message-bytes", "1", "--insecure=yes", "--data-dir"];
  const places = mistakes(args, env).map((message) => message.split(/ (?:is|must|takes|needs) /)[0]);
  assert.equal(places.sort(), [
    '"x"',
    "--adaptor",
    "--data-dir",
    "--insecure",
    "--max-message-bytes",
    "THAW_MAX_QUEUED_RUNS",
    "THAW_PORT",
    "thaw.yaml:1:1: host 0.0.0.0",
    "thaw.yaml:2:1: max_upload_bytes",
    "thaw.yaml:3:1: prot",
    "thaw.yaml:4:1: adapter",
  ]);
  assert.match(mistakes(["--config", configuration("port: [")])[0], /^thaw\.yaml:\d+:\d+: /);
  assert.match(mistakes(["--config", configuration("port: 1\nport: 2\n")])[0], /^thaw\.yaml:2:1: .*unique/);
  assert.match(mistakes(["--config", configuration("- port\n")])[0], /^thaw\.yaml:1:1: must be settings/);
  assert.match(mistakes(["--config", join(folder, "none.yaml")])[0], /none\.yaml cannot be read \(ENOENT\)/);
});

test("what is printed says the same again, and where it is from", () => {
  const args = ["--port", "1", "--models", "/a b", "--config", configuration("max_queued_runs: 7\n")];
  const printed = printedSettings([...args, "--print-config"], { THAW_ADAPTER: "software" });
  assert.match(printed, /^port: 1 {2}# --port$/m);
  assert.match(printed, /^adapter: "software" {2}# THAW_ADAPTER$/m);
  assert.match(printed, /^max_queued_runs: 7 {2}# thaw\.yaml:1:1: max_queued_runs$/m);
  assert.match(printed, /^host: "127\.0\.0\.1" {2}# default$/m);
  const again = readSettings(["--config", configuration(printed)], {});
  assert.equal(
    again,
    readSettings(["--port", "1", "--models", "/a b"], { THAW_ADAPTER: "software", THAW_MAX_QUEUED_RUNS: "7" }),
  );
});

test.run();
