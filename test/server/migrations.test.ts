// A registry that any released thaw wrote opens with this one: nothing is lost, and its schema becomes the one that a new
// registry has. schemas/{version}.sql is what that thaw left.

import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import Database from "libsql";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import { MIGRATIONS } from "../../src/server/registry/migrations.ts";
import { openRegistry } from "../../src/server/registry/sqlite.ts";
import { eventAt } from "../../src/server/runs/log.ts";

const test = suite("migrations");
const folder = mkdtempSync(join(tmpdir(), "thaw-migrations-"));
test.after(() => rmSync(folder, { recursive: true }));

const dumpOf = (version: number): URL => new URL(`schemas/${version}.sql`, import.meta.url);
const ALL = { before: undefined, limit: 10 };

interface Column {
  readonly name: string;
  readonly type: string;
  readonly notnull: number;
  readonly dflt_value: unknown;
  readonly pk: number;
}

/** Tables with their columns, and indexes with what they are on: not their text, which ALTER TABLE changes. */
function schemaOf(path: string) {
  const db = new Database(path);
  const rows = <Row>(sql: string) => db.prepare(sql).all() as Row[];
  const objects = rows<{ type: string; name: string }>("SELECT type, name FROM sqlite_master ORDER BY type, name");
  const described = objects.map(({ type, name }) => {
    const columns = rows<Column>(`PRAGMA table_info(${name})`)
      .map(({ name, type, notnull, dflt_value, pk }) => ({ name, type, notnull, dflt_value, pk }))
      .sort((a, b) => (a.name < b.name ? -1 : 1));
    const on = rows<{ name: string }>(`PRAGMA index_info(${name})`).map((column) => column.name);
    return { type, name, columns, on };
  });
  const [{ user_version }] = rows<{ user_version: number }>("PRAGMA user_version");
  db.close();
  return { described, user_version };
}

const fresh = join(folder, "new.sqlite");
openRegistry(fresh).close();

test("every released schema has its dump", () => {
  // The newest may still change: it is dumped before the next one is added.
  for (let version = 1; version < MIGRATIONS.length; version++) {
    assert.ok(existsSync(dumpOf(version)), `schemas/${version}.sql is missing; dump.ts in that folder says how`);
  }
});

for (let version = 1; version <= MIGRATIONS.length; version++) {
  if (!existsSync(dumpOf(version))) continue;
  test(`what a thaw with schema ${version} wrote is all there`, async () => {
    const path = join(folder, `${version}.sqlite`);
    const db = new Database(path);
    db.exec(readFileSync(dumpOf(version), "utf8"));
    db.close();
    const registry = openRegistry(path);
    const { run, report } = (await registry.run("r"))!;
    assert.equal(
      [run.state, run.step, run.revision, run.displayName, run.labels, run.spec?.steps, report?.effectiveStep],
      [RunState.PAUSED, 4n, 4n, "first", { team: "a" }, 9n, 2n],
    );
    assert.is(run.latestCheckpoint, "runs/r/checkpoints/step-4");
    const events = await registry.events("r", 0, 10, 2 ** 20);
    assert.equal(
      events.map(({ revision, event }) => [revision, event.case]),
      [
        [1n, "state"],
        [2n, "metrics"],
        [3n, "checkpoint"],
        [4n, "state"],
      ],
    );
    assert.is((await registry.checkpoint("r", "step-4"))?.checkpoint.step, 4n);
    assert.is((await registry.model("m"))?.model.modelType, "switch_transformers");
    assert.is((await registry.datasets(ALL)).length, 1);
    assert.equal((await registry.answer("q"))?.response, Uint8Array.of(1, 2));
    // It goes on: what is written now follows what was there.
    const next = { event: eventAt(4n, { case: "warning", value: { reason: "NEXT" } }) };
    await registry.appendEvents(run, report, [next]);
    assert.equal(
      (await registry.events("r", 4, 10, 2 ** 20)).map(({ revision, event }) => [revision, event.case]),
      [[5n, "warning"]],
    );
    assert.is(await registry.runUsing("model", "m"), "r");
    registry.close();
    assert.equal(schemaOf(path), schemaOf(fresh));
  });
}

test("a migration that fails leaves the registry as it was", () => {
  const path = join(folder, "broken.sqlite");
  const db = new Database(path);
  // Something of the first migration is in the way.
  db.exec("CREATE TABLE events (own TEXT); INSERT INTO events VALUES ('mine')");
  db.close();
  const before = schemaOf(path);
  assert.throws(() => openRegistry(path), /already exists/);
  assert.equal(schemaOf(path), before);
  const again = new Database(path);
  again.exec("BEGIN EXCLUSIVE; COMMIT"); // Nobody holds it any more.
  again.close();
});

test.run();
