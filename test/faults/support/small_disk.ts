// A disk of a few megabytes that can be filled: a tmpfs in a mount namespace of the server's own (Linux), which is gone with
// the server. It needs user namespaces, or root.

import { spawnSync } from "node:child_process";
import { open, rm } from "node:fs/promises";
import { isDiskFull } from "../../../src/server/storage/disk_full.ts";

const NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"];

/** Why there can be no small disk on this machine; empty when there can. */
export function noSmallDisk(): string {
  const [command, ...args] = [...NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/tmp"];
  const { status, stderr, error } = spawnSync(command, args, { encoding: "utf8" });
  return status === 0 ? "" : (error?.message ?? stderr.trim());
}

/** The command with a disk of its own at `place`, which has the contents of `data` to begin with. */
export const onSmallDisk =
  (data: string, place: string, megabytes: number) =>
  (command: readonly string[]): readonly string[] => {
    const script = `mkdir "$1" && mount -t tmpfs -o size=${megabytes}m tmpfs "$1" && cp -r "$0/." "$1" && shift && exec "$@"`;
    return [...NAMESPACE, "sh", "-c", script, data, place, ...command];
  };

/** A directory of the disk, as seen from outside. */
export const seenFrom = (processId: number, path: string): string => `/proc/${processId}/root${path}`;

/** Fills the disk up to its last byte. @returns what makes room again */
export async function fill(directory: string): Promise<() => Promise<void>> {
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
  } finally {
    await file.close();
  }
  return () => rm(path);
}
