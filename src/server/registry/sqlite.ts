// The registry in one SQLite file beside the data. WAL with synchronous=full: what an operation has returned is on disk.
//
// This file opens the database and gives the operation files (sqlite_runs.ts, sqlite_resources.ts, tokens.ts) three verbs;
// it knows no table of its own. libsql is used because the same synchronous API loads on Node 20 and on Deno.

import Database from "libsql";
import { migrate } from "./migrations.ts";
import type { Registry } from "./registry.ts";
import { resourceOperations } from "./sqlite_resources.ts";
import { runOperations } from "./sqlite_runs.ts";

export type Value = string | number | Uint8Array | null;

export interface Sql {
  all<Row>(sql: string, ...values: Value[]): Row[];
  get<Row>(sql: string, ...values: Value[]): Row | undefined;
  /** Rows changed. */
  run(sql: string, ...values: Value[]): number;
  transaction<T>(work: () => T): T;
}

/** A blob column: libsql gives an ArrayBuffer or a Buffer, depending on how the row was asked for. */
export type Blob = ArrayBuffer | Uint8Array;
/** Its bytes as a plain Uint8Array, which protobuf needs (a Buffer would give Buffers in `bytes` fields). */
export const bytesOf = (blob: Blob): Uint8Array =>
  blob instanceof ArrayBuffer ? new Uint8Array(blob) : new Uint8Array(blob.buffer, blob.byteOffset, blob.byteLength);

/** SQLite's word for a second row with the same key. */
export const isUniqueViolation = (error: unknown): boolean =>
  error instanceof Error && /UNIQUE constraint failed/.test(error.message);

/**
 * Opens, or creates, a database of the registry's schema.
 * @param path file name, or ":memory:"
 * @throws Error when the file was written by a newer thaw
 */
export function openDatabase(path: string): { readonly sql: Sql; close(): void } {
  const db = new Database(path);
  try {
    db.exec("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 5000");
    migrate(db);
  } catch (error) {
    db.close();
    throw error;
  }

  const statements = new Map<string, Database.Statement<unknown[]>>();
  const prepared = (sql: string): Database.Statement<unknown[]> => {
    const statement = statements.get(sql) ?? db.prepare<unknown[]>(sql);
    statements.set(sql, statement);
    return statement;
  };
  let depth = 0;
  const sql: Sql = {
    all: <Row>(text: string, ...values: Value[]) => prepared(text).all(...values) as Row[],
    get: <Row>(text: string, ...values: Value[]) => (prepared(text).all(...values) as Row[])[0],
    run: (text, ...values) => prepared(text).run(...values).changes,
    transaction(work) {
      if (depth > 0) return work();
      db.exec("BEGIN IMMEDIATE");
      depth++;
      try {
        const result = work();
        db.exec("COMMIT");
        return result;
      } catch (error) {
        // A full disk has it rolled back already, and a failure of this would hide why.
        if (db.inTransaction) db.exec("ROLLBACK");
        throw error;
      } finally {
        depth--;
      }
    },
  };
  return { sql, close: () => void db.close() };
}

/** Opens, or creates, the registry, as `openDatabase` does. */
export function openRegistry(path: string): Registry {
  const { sql, close } = openDatabase(path);
  return { ...runOperations(sql), ...resourceOperations(sql), close };
}
