// The processes below this one, as Linux tells of them in /proc: what each holds of memory and how many files it has open.

import { readdirSync, readFileSync } from "node:fs";
import process from "node:process";

export interface Held {
  /** Resident memory, in MiB. */
  readonly mib: number;
  /** Open file descriptors: files, sockets, pipes. */
  readonly descriptors: number;
}

const PARTS: readonly (readonly [name: string, script: string])[] = [
  ["server", "src/server/main.ts"],
  ["GPU process", "src/server/worker/main.ts"],
];

function parentOf(pid: string): string {
  const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  return stat.slice(stat.lastIndexOf(")") + 2).split(" ")[1];
}

function isBelow(pid: string): boolean {
  for (let at = pid; at !== "0" && at !== "1"; at = parentOf(at)) if (at === String(process.pid)) return true;
  return false;
}

/** What the server and its GPU process hold now; one that is not up is missing. */
export function heldNow(): Map<string, Held> {
  const found = new Map<string, Held>();
  for (const pid of readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
    try {
      const command = readFileSync(`/proc/${pid}/cmdline`, "latin1");
      const part = PARTS.find(([, script]) => command.includes(script));
      if (!part || !isBelow(pid)) continue;
      const resident = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"));
      const descriptors = readdirSync(`/proc/${pid}/fd`).length;
      // A launcher has the same command line; the process that works is the larger.
      const mib = Number(resident?.[1] ?? 0) / 1024;
      if (mib > (found.get(part[0])?.mib ?? 0)) found.set(part[0], { mib, descriptors });
    } catch {
      // It ended while it was looked at.
    }
  }
  return found;
}
