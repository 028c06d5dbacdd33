// One server for one data directory: a second would sweep the first one's uploads and train its runs twice.
//
// The lock is an open exclusive transaction on a SQLite file of its own, because the operating system drops it with the
// process, however that ends; no stale lock file can keep a server from starting.

import { mkdirSync } from "node:fs";
import { join } from "node:path";
import Database from "libsql";

/** A server that was told to stop may still be at it. */
const WAIT_MS = 5000;

/**
 * Takes the data directory for this process, making it where it is missing. Returns what gives it back.
 * @param waitMs how long another server may take to give it back
 * @throws Error when another server has it
 */
export function lockDataDirectory(root: string, waitMs = WAIT_MS): () => void {
  mkdirSync(root, { recursive: true, mode: 0o700 });
  const db = new Database(join(root, "server.lock"));
  try {
    db.exec(`PRAGMA busy_timeout = ${waitMs}; BEGIN EXCLUSIVE`);
  } catch (error) {
    db.close();
    if (!/locked|busy/i.test((error as Error).message)) throw error;
    throw new Error("another server uses this data directory; stop it, or give this one a --data-dir of its own");
  }
  return () => db.close();
}
