// The schema, one migration per version, applied in order and each in one transaction. A released migration is never
// edited: add another. The version is SQLite's `user_version`.
//
// Messages are stored as protobuf bytes: fields that are only shown need no migration; columns exist for what queries use.

import type Database from "libsql";

export const MIGRATIONS: readonly string[] = [
  `
  CREATE TABLE runs (
    position INTEGER PRIMARY KEY AUTOINCREMENT, -- order of creation
    id TEXT NOT NULL UNIQUE,
    state INTEGER NOT NULL,
    model TEXT NOT NULL,
    dataset TEXT NOT NULL,
    display_name TEXT NOT NULL,
    labels TEXT NOT NULL,                       -- JSON object
    etag TEXT NOT NULL,
    revision INTEGER NOT NULL,                  -- newest in the log
    record BLOB NOT NULL,                       -- thaw.v1.Run
    report BLOB                                 -- thaw.v1.TrainableReport of the plan in force
  ) STRICT;
  CREATE INDEX runs_by_state ON runs (state, position);

  CREATE TABLE events (
    run TEXT NOT NULL,
    revision INTEGER NOT NULL,
    kind TEXT NOT NULL,
    step INTEGER NOT NULL,
    body BLOB NOT NULL,                         -- thaw.v1.RunEvent
    PRIMARY KEY (run, revision)
  ) STRICT, WITHOUT ROWID;
  CREATE INDEX events_by_kind ON events (run, kind, step);

  CREATE TABLE checkpoints (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    run TEXT NOT NULL,
    id TEXT NOT NULL,
    directory TEXT NOT NULL,
    body BLOB NOT NULL,                         -- thaw.v1.Checkpoint
    UNIQUE (run, id)
  ) STRICT;

  CREATE TABLE models (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    directory TEXT NOT NULL,
    body BLOB NOT NULL,                         -- thaw.v1.Model
    description BLOB NOT NULL                   -- thaw.v1.ModelDescription
  ) STRICT;

  CREATE TABLE datasets (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    body BLOB NOT NULL,                         -- thaw.v1.Dataset
    splits BLOB NOT NULL                        -- thaw.v1.DescribeDatasetResponse
  ) STRICT;

  CREATE TABLE answers (
    request_id TEXT PRIMARY KEY,
    method TEXT NOT NULL,
    digest TEXT NOT NULL,
    response BLOB NOT NULL,
    created INTEGER NOT NULL                    -- seconds since 1970
  ) STRICT;
  `,
  `
  CREATE TABLE tokens (
    id TEXT PRIMARY KEY,
    role TEXT NOT NULL,
    label TEXT NOT NULL,
    digest BLOB NOT NULL,                       -- SHA-256 of the secret
    create_time INTEGER NOT NULL,               -- milliseconds since 1970, as all three
    expire_time INTEGER,
    revoke_time INTEGER
  ) STRICT;
  `,
  `
  ALTER TABLE runs ADD COLUMN priority INTEGER NOT NULL DEFAULT 2; -- thaw.v1.Priority
  `,
];

/** Brings the schema to the newest version. @throws Error when a newer thaw wrote the file */
export function migrate(db: Database.Database): void {
  const { user_version: version } = db.prepare("PRAGMA user_version").get() as { user_version: number };
  if (version > MIGRATIONS.length) {
    throw new Error(
      `the registry has schema version ${version}; this thaw knows ${MIGRATIONS.length}. Use a newer thaw`,
    );
  }
  for (let next = version; next < MIGRATIONS.length; next++) {
    try {
      db.exec(`BEGIN IMMEDIATE; ${MIGRATIONS[next]} PRAGMA user_version = ${next + 1}; COMMIT`);
    } catch (error) {
      if (db.inTransaction) db.exec("ROLLBACK");
      throw error;
    }
  }
}
