// Writes a registry of the present schema as SQL, with a little of everything in it, for migrations.test.ts to open with
// every later thaw. To be run before a migration is added, while the schema is still the released one:
//
//   npx tsx test/server/schemas/dump.ts        writes {version}.sql beside this file

import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { create } from "@bufbuild/protobuf";
import Database from "libsql";
import { CheckpointReason } from "../../../proto/gen/thaw/v1/checkpoint_pb.ts";
import { DatasetSchema } from "../../../proto/gen/thaw/v1/dataset_pb.ts";
import { TrainableReportSchema } from "../../../proto/gen/thaw/v1/group_pb.ts";
import { ModelDescriptionSchema, ModelSchema } from "../../../proto/gen/thaw/v1/model_pb.ts";
import { RunSchema } from "../../../proto/gen/thaw/v1/run_pb.ts";
import { RunState } from "../../../proto/gen/thaw/v1/run_state_pb.ts";
import type { Registry } from "../../../src/server/registry/registry.ts";
import { openRegistry } from "../../../src/server/registry/sqlite.ts";
import { eventAt } from "../../../src/server/runs/log.ts";

const TIME = { seconds: 1_780_000_000n, nanos: 0 };

/** One of everything: `runs/r` at step 4 with a checkpoint, `models/m`, `datasets/d`, and the answer to request `q`. */
async function fill(registry: Registry): Promise<void> {
  const name = "runs/r";
  const answer = { requestId: "q", method: "thaw.v1.CreateRunRequest", digest: "d1", response: Uint8Array.of(1, 2) };
  const spec = { model: "models/m", dataset: "datasets/d", steps: 9n, batchSize: 4n };
  const init = { name, state: RunState.QUEUED, displayName: "first", labels: { team: "a" }, spec, createTime: TIME };
  const { run } = await registry.createRun(
    create(RunSchema, init),
    { event: eventAt(0n, { case: "state", value: { to: RunState.QUEUED } }) },
    () => answer,
  );
  const at = create(RunSchema, { ...run, state: RunState.PAUSED, step: 4n });
  const checkpoint = {
    name: `${name}/checkpoints/step-4`,
    step: 4n,
    reason: CheckpointReason.POLICY,
    createTime: TIME,
  };
  await registry.appendEvents(at, create(TrainableReportSchema, { effectiveStep: 2n }), [
    { event: eventAt(4n, { case: "metrics", value: { step: 4n, loss: 0.5 } }) },
    { event: eventAt(4n, { case: "checkpoint", value: checkpoint }), directory: "step-4" },
    { event: eventAt(4n, { case: "state", value: { from: RunState.RUNNING, to: RunState.PAUSED } }) },
  ]);
  await registry.createModel({
    model: create(ModelSchema, { name: "models/m", modelType: "switch_transformers" }),
    description: create(ModelDescriptionSchema, {}),
    directory: "m",
  });
  await registry.createDataset({ dataset: create(DatasetSchema, { name: "datasets/d" }), splits: [] });
}

const literal = (value: unknown): string => {
  if (value === null) return "NULL";
  if (typeof value === "string") return `'${value.replaceAll("'", "''")}'`;
  if (typeof value === "number") return String(value);
  const bytes = new Uint8Array(value as ArrayBuffer);
  return `X'${Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")}'`;
};

/** Every statement that makes the database again, tables first. */
function dump(path: string): { readonly version: number; readonly sql: string } {
  const db = new Database(path);
  const rows = (sql: string) => db.prepare(sql).all() as Record<string, unknown>[];
  const version = Number(rows("PRAGMA user_version")[0].user_version);
  const objects = rows("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'");
  const lines = objects.map(({ sql }) => `${sql};`);
  for (const { name } of objects.filter(({ type }) => type === "table")) {
    for (const row of rows(`SELECT * FROM ${name}`)) {
      lines.push(`INSERT INTO ${name} VALUES (${Object.values(row).map(literal).join(", ")});`);
    }
  }
  db.close();
  return { version, sql: `${lines.join("\n")}\nPRAGMA user_version = ${version};\n` };
}

const folder = mkdtempSync(join(tmpdir(), "thaw-schema-"));
try {
  const path = join(folder, "registry.sqlite");
  const registry = openRegistry(path);
  await fill(registry);
  registry.close();
  const { version, sql } = dump(path);
  writeFileSync(new URL(`${version}.sql`, import.meta.url), sql);
  console.log(`wrote ${version}.sql`);
} finally {
  rmSync(folder, { recursive: true });
}
