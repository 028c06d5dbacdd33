// The registry's promises: revisions without gaps, answers stored with the change, everything there after reopening.

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { create } from "@bufbuild/protobuf";
import Database from "libsql";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { RunSchema } from "../../proto/gen/thaw/v1/run_pb.ts";
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import { NameTakenError, StaleEtagError } from "../../src/server/registry/registry.ts";
import { openDatabase, openRegistry } from "../../src/server/registry/sqlite.ts";
import { eventAt } from "../../src/server/runs/log.ts";
import { isDiskFull } from "../../src/server/storage/disk_full.ts";

const { QUEUED, RUNNING } = RunState;
const test = suite("registry");
let folder: string;
test.before(async () => {
  folder = await mkdtemp(join(tmpdir(), "thaw-registry-"));
});
test.after(() => rm(folder, { recursive: true }));

const run = (name: string) => create(RunSchema, { name, state: QUEUED, labels: { a: "b" } });
const state = (to: RunState) => ({ event: eventAt(0n, { case: "state", value: { to } }) });
const warning = (reason: string) => ({ event: eventAt(0n, { case: "warning", value: { reason } }) });

async function thrown(call: Promise<unknown>): Promise<unknown> {
  return call.then(
    () => undefined,
    (error) => error,
  );
}

test("a full disk is said to be full, and leaves the database in order", async () => {
  const { sql, close } = openDatabase(join(folder, "full.sqlite"));
  const [{ page_count: pages }] = sql.all<{ page_count: number }>("PRAGMA page_count");
  sql.all(`PRAGMA max_page_count = ${pages + 4}`);
  const insert = (name: string) =>
    sql.transaction(() => {
      for (let i = 0; i < 100; i++) {
        sql.run("INSERT INTO events VALUES (?, ?, '', 0, ?)", name, i, new Uint8Array(4096));
      }
    });
  const error = await thrown((async () => insert("a"))());
  assert.ok(isDiskFull(error), `${error}`);
  assert.equal(sql.all("SELECT run FROM events"), [], "nothing of it is there");
  sql.all("PRAGMA max_page_count = 1000000");
  insert("b");
  assert.is(sql.all("SELECT run FROM events").length, 100);
  close();
});

test("events are read up to a number and up to so many bytes, one at least", async () => {
  const registry = openRegistry(join(folder, "bytes.sqlite"));
  const { run: live } = await registry.createRun(run("runs/a"), state(QUEUED));
  await registry.appendEvents(
    live,
    undefined,
    [100, 100, 5000, 10].map((length) => warning("x".repeat(length))),
  );
  const read = async (after: number, limit: number, bytes: number) =>
    (await registry.events("a", after, limit, bytes)).map(({ revision }) => Number(revision));
  assert.equal(await read(1, 10, 300), [2, 3]);
  assert.equal(await read(1, 1, 300), [2]);
  assert.equal(await read(3, 10, 300), [4], "larger than what may be, and alone");
  assert.equal(await read(4, 10, 300), [5]);
  assert.equal(await read(0, 10, 10_000), [1, 2, 3, 4, 5]);
  assert.equal(await read(5, 10, 300), []);
  registry.close();
});

test("a run, its log, its labels and its answer are there after reopening", async () => {
  const path = join(folder, "a.sqlite");
  const first = openRegistry(path);
  const answer = { requestId: "q", method: "m", digest: "d", response: Uint8Array.of(1, 2) };
  const created = await first.createRun(run("runs/a"), state(QUEUED), () => answer);
  await first.createRun(run("runs/b"), state(QUEUED));
  assert.ok((await thrown(first.createRun(run("runs/a"), state(QUEUED)))) instanceof NameTakenError);
  const live = create(RunSchema, {
    ...created.run,
    state: RUNNING,
    step: 7n,
    displayName: "not the manager's to change",
  });
  await first.appendEvents(live, undefined, [state(RUNNING), warning("ONE")]);
  await first.appendEvents(live, undefined, [warning("TWO")]);
  const { etag } = created.run;
  const renamed = await first.updateRun("a", etag, { displayName: "new" });
  assert.is.not(renamed?.run.etag, etag);
  assert.ok((await thrown(first.updateRun("a", etag, { displayName: "late" }))) instanceof StaleEtagError);
  first.close();

  const second = openRegistry(path);
  const again = (await second.run("a"))!.run;
  assert.equal(
    [again.state, again.step, again.revision, again.displayName, again.labels],
    [RUNNING, 7n, 4n, "new", { a: "b" }],
  );
  const events = await second.events("a", 1, 2, 2 ** 20);
  assert.equal(
    events.map(({ revision, event }) => [revision, event.case]),
    [
      [2n, "state"],
      [3n, "warning"],
    ],
  );
  assert.equal(await second.answer("q"), answer);
  assert.equal(
    (await second.runsInStates([QUEUED])).map((record) => [record.run.name, record.run.queuePosition]),
    [["runs/b", 0n]],
  );
  await second.deleteRun("a", "");
  assert.equal(await second.events("a", 0, 10, 2 ** 20), []);
  second.close();
});

test("a page of filtered runs is full although others stand between", async () => {
  const registry = openRegistry(":memory:");
  for (let i = 0; i < 20; i++) {
    await registry.createRun(
      create(RunSchema, { name: `runs/r${i}`, state: QUEUED, labels: { odd: String(i % 2) } }),
      state(QUEUED),
    );
  }
  const query = { states: [], labels: { odd: "1" }, limit: 4 };
  const page = await registry.runs({ ...query, before: undefined });
  const next = await registry.runs({ ...query, before: page.at(-1)!.position });
  assert.equal(
    [...page, ...next].map(({ item }) => item.run.name),
    [19, 17, 15, 13, 11, 9, 7, 5].map((i) => `runs/r${i}`),
  );
  registry.close();
});

test("what is written is on disk, and a newer schema is refused", async () => {
  const path = join(folder, "b.sqlite");
  openRegistry(path).close();
  const db = new Database(path);
  assert.equal((db.prepare("PRAGMA journal_mode").get() as { journal_mode: string }).journal_mode, "wal");
  db.exec("PRAGMA user_version = 99");
  db.close();
  assert.throws(() => openRegistry(path), /schema version 99/);
});

test.run();
