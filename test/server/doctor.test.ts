// What `thaw doctor` says of a machine that is as it should be, and of each thing that is not.

import { spawn } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import Database from "libsql";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { adapterFindings } from "../../src/server/doctor/adapter.ts";
import { type Finding, findingText, warn } from "../../src/server/doctor/findings.ts";
import { openFiles, runtime } from "../../src/server/doctor/machine.ts";
import { placeFindings } from "../../src/server/doctor/places.ts";
import { runtimeCommand, type StartWorker } from "../../src/server/gpu/connection.ts";
import { openRegistry } from "../../src/server/registry/sqlite.ts";
import { readSettings } from "../../src/server/settings.ts";
import { lockDataDirectory } from "../../src/server/storage/lock.ts";
import { fakeWorkers } from "../support/thaw_server.ts";

const test = suite("doctor");
const folder = mkdtempSync(join(tmpdir(), "thaw-doctor-"));
test.after(() => rmSync(folder, { recursive: true }));

const levels = (findings: readonly Finding[]) => Object.fromEntries(findings.map(({ about, level }) => [about, level]));
const places = (data: string, ...flags: string[]) =>
  placeFindings(readSettings(["--port", "0", "--data-dir", data, ...flags], {}));
/** Everything that is not ok says what to do. */
const helps = (findings: readonly Finding[]) => findings.every(({ level, remedy }) => (level === "ok") === !remedy);

function listening(): Promise<{ readonly server: Server; readonly port: number }> {
  const server = createServer();
  return new Promise((resolve) => {
    server.listen(0, "127.0.0.1", () => resolve({ server, port: (server.address() as { port: number }).port }));
  });
}

test("a fresh machine is as it should be, and nothing is made", async () => {
  const data = join(folder, "fresh");
  const findings = await places(data);
  assert.equal(levels(findings), { "data directory": "ok", disk: findings[1].level, port: "ok" });
  assert.ok(findings[1].about === "disk" && /GiB free/.test(findings[1].found));
  assert.match(findings[0].found, /which will be made/);
  assert.not(existsSync(data));
});

test("a data directory in use, a port in use and folders that are not there are told apart", async () => {
  const data = join(folder, "used");
  const unlock = lockDataDirectory(data);
  openRegistry(join(data, "thaw.sqlite")).close();
  const { server, port } = await listening();
  try {
    const flags = ["--port", String(port), "--metrics-port", "0", "--models", join(folder, "none")];
    const served = await places(data, ...flags);
    assert.equal(levels(served), {
      "data directory": "ok",
      disk: served[1].level,
      registry: "ok",
      lock: "warn",
      models: "warn",
      port: "warn",
    });
    unlock();
    const free = await places(data, ...flags);
    assert.equal([levels(free).lock, levels(free).port], ["ok", "fail"], "somebody else's port");
    assert.ok(helps(served) && helps(free));
  } finally {
    server.close();
  }
});

test("a registry of a newer thaw, one that is none, and a file in the folder's place fail", async () => {
  const data = join(folder, "newer");
  mkdirSync(data);
  const path = join(data, "thaw.sqlite");
  openRegistry(path).close();
  const db = new Database(path);
  db.exec("PRAGMA user_version = 99");
  db.close();
  const newer = await places(data);
  assert.is(levels(newer).registry, "fail");
  writeFileSync(path, "no database, but long enough to be taken for the beginning of one".repeat(20));
  const broken = await places(data);
  assert.is(levels(broken).registry, "fail");
  const file = await places(path);
  assert.equal(levels(file), { "data directory": "fail", port: "ok" });
  assert.ok(helps([...newer, ...broken, ...file]));
});

test("certificates that are none fail, each with its file", async () => {
  const none = join(folder, "none.pem");
  const findings = await places(join(folder, "fresh"), "--tls-cert", none, "--tls-key", none);
  const told = findings.filter(({ about }) => about === "encryption");
  assert.equal(
    told.map(({ level, found }) => [level, found.split(" ")[0]]),
    [
      ["fail", "--tls-cert"],
      ["fail", "--tls-key"],
    ],
  );
});

test("old runtimes fail, few descriptors warn", () => {
  assert.equal(
    [
      { node: "18.19.0" },
      { node: "20.0.0" },
      { node: "22.1.0", deno: "1.46.0" },
      { node: "22.1.0", deno: "2.0.0" },
    ].map((versions) => runtime(versions).level),
    ["fail", "ok", "fail", "ok"],
  );
  assert.equal(
    [1024, 4096, Number.POSITIVE_INFINITY].flatMap((limit) => openFiles(limit).map(({ level }) => level)),
    ["warn", "ok", "ok"],
  );
  assert.equal(openFiles(undefined), []);
});

test("a software adapter warns unless it was asked for; none fails with what the process said", async () => {
  const workers = () => fakeWorkers(() => ({})).start; // Its adapter is a software one.
  const found = await adapterFindings(workers(), undefined, () => []);
  assert.is(found[0].level, "warn");
  assert.match(found[0].found, /adapter of the tests/);
  assert.is((await adapterFindings(workers(), "software", () => []))[0].level, "ok");
  const dead: StartWorker = () => ({
    send: () => undefined,
    messages: (async function* () {})(),
    ended: Promise.resolve("exit code 3"),
    kill: () => undefined,
  });
  const [none] = await adapterFindings(dead, undefined, () => ["gpu: first", "gpu: no adapter"]);
  assert.equal([none.level, none.found], ["fail", "the GPU process ended (exit code 3): gpu: no adapter"]);
  assert.ok(helps([...found, none]));
});

test("a finding is a line, and another for what to do", () => {
  assert.is(
    findingText(warn("disk", "3 GiB free", "free some")),
    "warn  disk             3 GiB free\n                       → free some\n",
  );
});

test("wrong settings are said one by one, and the exit code is 1", async () => {
  const [command, ...args] = runtimeCommand(new URL("../../src/server/doctor/main.ts", import.meta.url));
  const child = spawn(command, [...args, "--port", "x", "--adapter", "y"], {
    cwd: fileURLToPath(new URL("../../", import.meta.url)),
    stdio: ["ignore", "pipe", "inherit"],
  });
  let said = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    said += text;
  });
  const code = await new Promise((resolve) => child.once("close", resolve));
  assert.is(code, 1);
  assert.is(said.match(/^fail {2}settings {9}--(port|adapter) is/gm)?.length, 2);
});

test.run();
