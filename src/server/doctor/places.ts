// The places that the settings name: the data directory with its disk, its lock and its registry, the folders of models,
// and the ports. Nothing is written: what is not there yet is looked at where it will be made.

import { accessSync, constants, existsSync, readdirSync, statSync } from "node:fs";
import { statfs } from "node:fs/promises";
import { createServer } from "node:net";
import { dirname, join } from "node:path";
import Database from "libsql";
import { readTls } from "../front/tls.ts";
import { MIGRATIONS } from "../registry/migrations.ts";
import { type Settings, UsageError } from "../settings.ts";
import { isDiskFull } from "../storage/disk_full.ts";
import { lockDataDirectory } from "../storage/lock.ts";
import { ROOM_REMEDY, WRITABLE_REMEDY } from "../storage/unusable.ts";
import { type Finding, fail, gib, ok, warn } from "./findings.ts";

const GIB = 2 ** 30;
const LEAST_DISK_BYTES = GIB;
const ENOUGH_DISK_BYTES = 10 * GIB;

export async function placeFindings(settings: Settings): Promise<Finding[]> {
  const folder = dataDirectory(settings.dataDirectory);
  const lock = folder.level === "fail" ? [] : dataLock(settings.dataDirectory);
  const served = lock.some(({ level }) => level === "warn");
  return [
    folder,
    ...(folder.level === "fail" ? [] : [await disk(settings.dataDirectory), ...registry(settings.dataDirectory)]),
    ...lock,
    ...settings.modelRoots.map(modelRoot),
    ...encryption(settings.tls),
    ...(await ports(settings, served)),
  ];
}

/** The path, or the nearest folder above it that is there. */
function existing(path: string): string {
  return existsSync(path) ? path : existing(dirname(path));
}

function dataDirectory(path: string): Finding {
  const there = existing(path);
  if (!statSync(there).isDirectory())
    return fail("data directory", `${there} is no folder`, "choose another --data-dir");
  try {
    accessSync(there, constants.R_OK | constants.W_OK | constants.X_OK);
  } catch {
    return fail("data directory", `${there} cannot be written`, WRITABLE_REMEDY);
  }
  return ok("data directory", there === path ? path : `${path}, which will be made`);
}

async function disk(path: string): Promise<Finding> {
  const { bavail, bsize } = await statfs(existing(path));
  const free = bavail * bsize;
  const remedy = "free some, or choose a --data-dir elsewhere: a checkpoint takes up to 12 bytes a parameter";
  if (free < LEAST_DISK_BYTES) return fail("disk", `${gib(free)} free`, remedy);
  return free < ENOUGH_DISK_BYTES ? warn("disk", `${gib(free)} free`, remedy) : ok("disk", `${gib(free)} free`);
}

function dataLock(path: string): Finding[] {
  if (!existsSync(join(path, "server.lock"))) return [];
  try {
    lockDataDirectory(path, 0)();
    return [ok("lock", "no server uses the data directory")];
  } catch (error) {
    if (isDiskFull(error)) return [fail("lock", "cannot be taken on a full disk", ROOM_REMEDY)];
    const remedy = "stop it before another one starts there, or give that one a --data-dir of its own";
    return [warn("lock", "a server uses the data directory", remedy)];
  }
}

function registry(path: string): Finding[] {
  const file = join(path, "thaw.sqlite");
  if (!existsSync(file)) return [];
  let version: number;
  try {
    const db = new Database(file, { readonly: true } as Database.Options);
    try {
      ({ user_version: version } = db.prepare("PRAGMA user_version").get() as { user_version: number });
    } finally {
      db.close();
    }
  } catch (error) {
    if (isDiskFull(error)) return [fail("registry", "cannot be read on a full disk", ROOM_REMEDY)];
    return [
      fail(
        "registry",
        `cannot be read: ${(error as Error).message}`,
        "restore it from a copy, or start with another --data-dir",
      ),
    ];
  }
  const found = `schema ${version}`;
  if (version > MIGRATIONS.length) {
    return [
      fail("registry", `${found}; this thaw knows ${MIGRATIONS.length}`, "use the thaw that wrote it, or a newer one"),
    ];
  }
  return [
    ok("registry", version === MIGRATIONS.length ? found : `${found}, brought to ${MIGRATIONS.length} at the start`),
  ];
}

function encryption(files: Settings["tls"]): Finding[] {
  if (!files) return [];
  try {
    readTls(files);
    return [
      ok("encryption", files.clientAuthority ? "certificate and key, clients need one too" : "certificate and key"),
    ];
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    return error.message.split("\n").map((problem) => fail("encryption", problem, "no server starts with these files"));
  }
}

function modelRoot(path: string): Finding {
  try {
    return ok("models", `${path}, ${readdirSync(path).length} entries`);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    return warn("models", `${path} cannot be read (${code})`, "LoadModel finds nothing there; correct --models");
  }
}

async function ports({ host, port, metricsPort }: Settings, served: boolean): Promise<Finding[]> {
  const wanted = [
    { about: "port", at: host, number: port, flag: "--port" },
    ...(metricsPort ? [{ about: "metrics port", at: "127.0.0.1", number: metricsPort, flag: "--metrics-port" }] : []),
  ];
  return Promise.all(
    wanted.map(async ({ about, at, number, flag }) => {
      const code = await listenError(at, number);
      const place = `${at}:${number}`;
      if (code === undefined) return ok(about, number === 0 ? `any free one at ${at}` : `${place} is free`);
      // It is the server's own port, most likely.
      if (code === "EADDRINUSE" && served)
        return warn(about, `${place} is in use`, `a second server needs another ${flag}`);
      const remedy =
        code === "EADDRINUSE" ? `end what listens there, or choose another ${flag}` : "correct --host or the port";
      return fail(about, `${place} cannot be listened on (${code})`, remedy);
    }),
  );
}

const listenError = (host: string, port: number): Promise<string | undefined> =>
  new Promise((resolve) => {
    const server = createServer();
    server.once("error", (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message));
    server.listen(port, host, () => server.close(() => resolve(undefined)));
  });
