// Directories of files that are either whole and on the disk, or not there. Checkpoints by a run's policy get a directory
// of their own, which appears under its name only when it is complete; a directory the server has made is filled or empty.

import { randomBytes } from "node:crypto";
import { mkdir, open, readdir, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { failpoint } from "../../failpoints.ts";

const PARTIAL = ".partial-";

/**
 * Makes a new directory `step-<step>-<random>` in `folder`, filled by `write` under a temporary name first. The random
 * part lets a run that went back to an earlier checkpoint pass the same step again.
 * @returns the directory's path; on an error nothing stays
 */
export async function newCheckpointDirectory(
  folder: string,
  step: number,
  write: (directory: string) => Promise<void>,
): Promise<string> {
  const name = `step-${String(step).padStart(8, "0")}-${randomBytes(4).toString("hex")}`;
  const partial = join(folder, `${PARTIAL}${name}`);
  const complete = join(folder, name);
  await mkdir(partial);
  try {
    failpoint("checkpoint.begun");
    await write(partial);
    await syncDirectory(partial);
    failpoint("checkpoint.before_rename");
    await rename(partial, complete);
  } catch (error) {
    await rm(partial, { recursive: true, force: true });
    throw error;
  }
  await sync(folder);
  failpoint("checkpoint.renamed");
  return complete;
}

/** Removes what a worker that died while it wrote has left in `folder`. */
export async function sweepPartialCheckpoints(folder: string): Promise<void> {
  const names = await readdir(folder);
  const partial = names.filter((name) => name.startsWith(PARTIAL));
  await Promise.all(partial.map((name) => rm(join(folder, name), { recursive: true, force: true })));
}

/** Fills an existing empty directory durably; on an error it is empty again. */
export async function fillDirectory<R>(directory: string, write: () => Promise<R>): Promise<R> {
  try {
    const result = await write();
    await syncDirectory(directory);
    return result;
  } catch (error) {
    const names = await readdir(directory);
    await Promise.all(names.map((name) => rm(join(directory, name), { recursive: true, force: true })));
    throw error;
  }
}

/** Makes the files of a flat directory, and their names, durable. */
async function syncDirectory(directory: string): Promise<void> {
  for (const name of await readdir(directory)) await sync(join(directory, name));
  await sync(directory);
}

async function sync(path: string): Promise<void> {
  const handle = await open(path, "r");
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}
