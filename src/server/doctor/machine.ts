// The machine, whatever the settings: the runtime, memory, and how many files a process may open.

import { spawnSync } from "node:child_process";
import { availableParallelism, freemem, totalmem } from "node:os";
import process from "node:process";
import { type Finding, fail, gib, ok, warn } from "./findings.ts";

const LEAST_NODE = 20;
const LEAST_DENO = 2;
const GIB = 2 ** 30;
/** A server with its GPU process takes this much before any model is loaded. */
const LEAST_MEMORY_BYTES = GIB;
/** Every client is a descriptor; so is every file of a model that is read. */
const ENOUGH_FILES = 4096;

export function machineFindings(): Finding[] {
  return [runtime(process.versions), memory(), ...openFiles(fileLimit())];
}

export function runtime(versions: Readonly<Record<string, string | undefined>>): Finding {
  const [name, version, least] = versions.deno
    ? (["Deno", versions.deno, LEAST_DENO] as const)
    : (["Node", versions.node ?? "", LEAST_NODE] as const);
  const found = `${name} ${version}`;
  if (Number.parseInt(version, 10) >= least) return ok("runtime", found);
  return fail("runtime", found, `install ${name} ${least} or newer`);
}

function memory(): Finding {
  // A container may have less than the machine.
  const limit = process.constrainedMemory?.() ?? 0;
  const total = limit > 0 && limit < totalmem() ? limit : totalmem();
  const free = Math.min(process.availableMemory?.() ?? freemem(), total);
  const found = `${gib(free)} of ${gib(total)} free, ${availableParallelism()} cores`;
  if (free >= LEAST_MEMORY_BYTES) return ok("memory", found);
  return warn("memory", found, "end other programs: a server and its GPU process need 1 GiB, and models come on top");
}

/** Descriptors that this process may have open; undefined where the system does not say. */
function fileLimit(): number | undefined {
  if (process.platform === "win32") return undefined;
  const { stdout } = spawnSync("sh", ["-c", "ulimit -n"], { encoding: "utf8" });
  const said = stdout?.trim();
  return said === "unlimited" ? Number.POSITIVE_INFINITY : /^\d+$/.test(said ?? "") ? Number(said) : undefined;
}

export function openFiles(limit: number | undefined): Finding[] {
  if (limit === undefined) return [];
  const found = limit === Number.POSITIVE_INFINITY ? "no limit" : `${limit} a process`;
  if (limit >= ENOUGH_FILES) return [ok("open files", found)];
  return [
    warn("open files", found, `raise it for many clients: \`ulimit -n 65536\`, or LimitNOFILE= of a systemd unit`),
  ];
}
