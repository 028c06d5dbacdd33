// A disk of a few megabytes that can be filled: a tmpfs in a mount namespace (Linux) that a process of its own keeps, so
// that one server after another can be started on it. It needs user namespaces, or root.

import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { open, rm } from "node:fs/promises";
import { isDiskFull } from "../../../src/server/storage/disk_full.ts";

const NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"];

export interface SmallDisk {
  /** Its root, as seen from outside. */
  readonly seen: string;
  /** The command on it: it sees the disk where it was mounted. */
  within(command: readonly string[]): readonly string[];
  /** Takes the disk away, when nothing runs on it any more. */
  end(): void;
}

/** Why there can be no small disk on this machine; empty when there can. */
export function noSmallDisk(): string {
  const [command, ...args] = [...NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/tmp"];
  const { status, stderr, error } = spawnSync(command, args, { encoding: "utf8" });
  return status === 0 ? "" : (error?.message ?? stderr.trim());
}

/** A disk at the empty folder `place`. */
export async function smallDisk(place: string, megabytes: number): Promise<SmallDisk> {
  // It ends with this process, whose end closes its input.
  const script = 'mount -t tmpfs -o "size=$1m" tmpfs "$0" && echo mounted && exec cat';
  const [command, ...args] = [...NAMESPACE, "sh", "-c", script, place, String(megabytes)];
  const keeper = spawn(command, args, { stdio: ["pipe", "pipe", "inherit"] });
  const [how] = await Promise.race([once(keeper.stdout, "data"), once(keeper, "exit")]);
  if (String(how).trim() !== "mounted") throw new Error(`no disk at ${place}: mount ended with ${how}`);
  const namespace = ["nsenter", `--target=${keeper.pid}`, "--user", "--mount", "--preserve-credentials"];
  return {
    seen: `/proc/${keeper.pid}/root${place}`,
    within: (ran) => [...namespace, ...ran],
    end: () => keeper.stdin.end(),
  };
}

/** Makes the disk at `place` one that nothing can be written on, or one that it can again. */
export function mountAgain(disk: SmallDisk, place: string, how: "ro" | "rw"): void {
  const [command, ...args] = disk.within(["mount", "-o", `remount,${how}`, place]);
  const { status, stderr } = spawnSync(command, args, { encoding: "utf8" });
  if (status !== 0) throw new Error(`mount -o remount,${how}: ${stderr}`);
}

/**
 * Fills the disk up to its last byte.
 * @param leave bytes that stay free
 * @returns what makes room again
 */
export async function fill(directory: string, leave = 0): Promise<() => Promise<void>> {
  const path = `${directory}/filler`;
  const file = await open(path, "w");
  try {
    for (let bytes = 1 << 20; bytes >= 1; bytes >>= 1) {
      try {
        while (true) await file.appendFile(new Uint8Array(bytes));
      } catch (error) {
        if (!isDiskFull(error)) throw error;
      }
    }
    const { size } = await file.stat();
    await file.truncate(size - leave);
  } finally {
    await file.close();
  }
  return () => rm(path);
}
