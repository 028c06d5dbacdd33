// Runs, their logs and their checkpoints in SQLite. A run's row holds its record as the run manager wrote it; what people
// change (display_name, labels), what the log counts (revision) and what follows from other rows (queue_position,
// latest_checkpoint) is laid over it when it is read.

import { fromBinary, toBinary } from "@bufbuild/protobuf";
import { CheckpointSchema } from "../../../proto/gen/thaw/v1/checkpoint_pb.ts";
import { RunEventSchema } from "../../../proto/gen/thaw/v1/event_pb.ts";
import { TrainableReportSchema } from "../../../proto/gen/thaw/v1/group_pb.ts";
import { type Priority, RunSchema } from "../../../proto/gen/thaw/v1/run_pb.ts";
import { RunState } from "../../../proto/gen/thaw/v1/run_state_pb.ts";
import { failpoint } from "../../failpoints.ts";
import { newId } from "../ids.ts";
import { datasetsOf } from "../runs/datasets.ts";
import {
  type LogEntry,
  NameTakenError,
  type PageQuery,
  type Positioned,
  type Registry,
  type RunRecord,
  StaleEtagError,
} from "./registry.ts";
import { type Blob, bytesOf, isUniqueViolation, type Sql, type Value } from "./sqlite.ts";
import { storeAnswer } from "./sqlite_resources.ts";

interface RunRow {
  position: number;
  id: string;
  state: number;
  priority: Priority;
  display_name: string;
  labels: string;
  etag: string;
  revision: number;
  record: Blob;
  report: Blob | null;
  latest: string | null;
  ahead: number;
}

const SELECT_RUN = `
  SELECT r.*,
    (SELECT c.id FROM checkpoints c WHERE c.run = r.id ORDER BY c.position DESC LIMIT 1) AS latest,
    CASE r.state WHEN ${RunState.QUEUED}
      THEN (SELECT count(*) FROM runs a WHERE a.state = ${RunState.QUEUED}
        AND (a.priority > r.priority OR a.priority = r.priority AND a.position < r.position)) ELSE 0 END AS ahead
  FROM runs r`;

/** States from which a run never moves again. */
export const ENDED: readonly RunState[] = [RunState.CANCELLED, RunState.SUCCEEDED, RunState.FAILED];

function recordOf(row: RunRow): RunRecord {
  const run = fromBinary(RunSchema, bytesOf(row.record));
  run.displayName = row.display_name;
  run.priority = row.priority;
  run.labels = JSON.parse(row.labels);
  run.etag = row.etag;
  run.revision = BigInt(row.revision);
  run.queuePosition = BigInt(row.ahead);
  run.latestCheckpoint = row.latest === null ? "" : `${run.name}/checkpoints/${row.latest}`;
  return { run, report: row.report === null ? undefined : fromBinary(TrainableReportSchema, bytesOf(row.report)) };
}

const lastPart = (name: string): string => name.slice(name.lastIndexOf("/") + 1);
const marks = (list: readonly unknown[]): string => list.map(() => "?").join(", ");

/** Rows of a page: `WHERE` conditions and their values, newest first. */
export function pageRows<Row>(
  sql: Sql,
  select: string,
  column: string,
  conditions: readonly [string, ...Value[]][],
  page: PageQuery,
): Row[] {
  const all = page.before === undefined ? conditions : [...conditions, [`${column} < ?`, page.before] as const];
  const where = all.length > 0 ? `WHERE ${all.map(([condition]) => condition).join(" AND ")}` : "";
  const values = all.flatMap(([, ...rest]) => rest);
  return sql.all<Row>(`${select} ${where} ORDER BY ${column} DESC LIMIT ?`, ...values, page.limit);
}

type RunOperations = Pick<
  Registry,
  | "createRun"
  | "run"
  | "runs"
  | "runsInStates"
  | "countRuns"
  | "appendEvents"
  | "updateRun"
  | "deleteRun"
  | "events"
  | "eventsOfKind"
  | "oldestRevision"
  | "checkpoints"
  | "checkpoint"
  | "deleteCheckpoint"
  | "runUsing"
>;

export function runOperations(sql: Sql): RunOperations {
  const readRun = (id: string): RunRecord | undefined => {
    const row = sql.get<RunRow>(`${SELECT_RUN} WHERE r.id = ?`, id);
    return row && recordOf(row);
  };

  function append(id: string, revision: number, { event, directory }: LogEntry): void {
    event.revision = BigInt(revision);
    const { case: kind, value } = event.event;
    const body = toBinary(RunEventSchema, event);
    sql.run("INSERT INTO events VALUES (?, ?, ?, ?, ?)", id, revision, kind ?? "", Number(event.step), body);
    if (kind !== "checkpoint" || directory === undefined) return;
    const checkpoint = toBinary(CheckpointSchema, value);
    const name = lastPart(value.name);
    sql.run("INSERT INTO checkpoints (run, id, directory, body) VALUES (?, ?, ?, ?)", id, name, directory, checkpoint);
  }

  const checkpointOf = (row: { position: number; directory: string; body: Blob }) => ({
    position: row.position,
    item: { checkpoint: fromBinary(CheckpointSchema, bytesOf(row.body)), directory: row.directory },
  });

  return {
    async createRun(run, first, answer) {
      const id = lastPart(run.name);
      return sql.transaction(() => {
        try {
          sql.run(
            `INSERT INTO runs (id, state, priority, model, dataset, display_name, labels, etag, revision, record)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1, ?)`,
            id,
            run.state,
            run.priority,
            run.spec?.model ?? "",
            run.spec ? datasetsOf(run.spec).join(" ") : "",
            run.displayName,
            JSON.stringify(run.labels),
            newId("e"),
            toBinary(RunSchema, run),
          );
        } catch (error) {
          throw isUniqueViolation(error) ? new NameTakenError(run.name) : error;
        }
        append(id, 1, first);
        const record = readRun(id)!;
        if (answer) storeAnswer(sql, answer(record.run));
        return record;
      });
    },

    run: async (id) => readRun(id),

    async runs({ states, labels, before, limit }) {
      const found: Positioned<RunRecord>[] = [];
      const wanted = Object.entries(labels);
      const conditions: [string, ...Value[]][] =
        states.length > 0 ? [[`r.state IN (${marks(states)})`, ...states]] : [];
      let from = before;
      while (found.length < limit) {
        const rows = pageRows<RunRow>(sql, SELECT_RUN, "r.position", conditions, { before: from, limit });
        for (const row of rows) {
          from = row.position;
          const has: Record<string, string> = JSON.parse(row.labels);
          if (!wanted.every(([key, value]) => has[key] === value)) continue;
          found.push({ position: row.position, item: recordOf(row) });
          if (found.length === limit) break;
        }
        if (rows.length < limit) break;
      }
      return found;
    },

    runsInStates: async (states) =>
      sql
        .all<RunRow>(`${SELECT_RUN} WHERE r.state IN (${marks(states)}) ORDER BY r.position`, ...states)
        .map((row) => recordOf(row)),

    countRuns: async () =>
      new Map(
        sql
          .all<{ state: RunState; runs: number }>("SELECT state, count(*) AS runs FROM runs GROUP BY state")
          .map(({ state, runs }) => [state, runs]),
      ),

    async appendEvents(run, report, entries) {
      const id = lastPart(run.name);
      sql.transaction(() => {
        const row = sql.get<{ revision: number }>("SELECT revision FROM runs WHERE id = ?", id);
        if (!row) return;
        entries.forEach((entry, index) => void append(id, row.revision + 1 + index, entry));
        failpoint("log.in_transaction");
        sql.run(
          "UPDATE runs SET state = ?, revision = ?, record = ?, report = ? WHERE id = ?",
          run.state,
          row.revision + entries.length,
          toBinary(RunSchema, run),
          report ? toBinary(TrainableReportSchema, report) : null,
          id,
        );
      });
    },

    async updateRun(id, etag, change, answer) {
      return sql.transaction(() => {
        const now = readRun(id);
        if (!now) return undefined;
        if (etag !== "" && etag !== now.run.etag) throw new StaleEtagError();
        const displayName = change.displayName ?? now.run.displayName;
        const labels = JSON.stringify(change.labels ?? now.run.labels);
        const fresh = newId("e");
        sql.run("UPDATE runs SET display_name = ?, labels = ?, etag = ? WHERE id = ?", displayName, labels, fresh, id);
        const changed = readRun(id)!;
        if (answer) storeAnswer(sql, answer(changed.run));
        return changed;
      });
    },

    async deleteRun(id, etag, answer) {
      sql.transaction(() => {
        if (etag !== "" && etag !== readRun(id)?.run.etag) throw new StaleEtagError();
        sql.run("DELETE FROM events WHERE run = ?", id);
        sql.run("DELETE FROM checkpoints WHERE run = ?", id);
        sql.run("DELETE FROM runs WHERE id = ?", id);
        if (answer) storeAnswer(sql, answer);
      });
    },

    async events(id, afterRevision, limit, bytes) {
      const after = "FROM events WHERE run = ? AND revision > ? ORDER BY revision LIMIT ?";
      const sizes = sql.all<{ size: number }>(`SELECT length(body) AS size ${after}`, id, afterRevision, limit);
      let count = 0;
      let total = 0;
      for (const { size } of sizes) {
        total += size;
        if (count > 0 && total > bytes) break;
        count++;
      }
      const rows = sql.all<{ body: Blob }>(`SELECT body ${after}`, id, afterRevision, count);
      return rows.map((row) => fromBinary(RunEventSchema, bytesOf(row.body)));
    },

    eventsOfKind: async (id, kind, firstStep, lastStep) =>
      sql
        .all<{ body: Blob }>(
          "SELECT body FROM events WHERE run = ? AND kind = ? AND step BETWEEN ? AND ? ORDER BY revision",
          id,
          kind,
          firstStep,
          lastStep,
        )
        .map((row) => fromBinary(RunEventSchema, bytesOf(row.body))),

    oldestRevision: async (id) =>
      sql.get<{ oldest: number | null }>("SELECT min(revision) AS oldest FROM events WHERE run = ?", id)?.oldest ?? 1,

    checkpoints: async (run, page) =>
      pageRows<{ position: number; directory: string; body: Blob }>(
        sql,
        "SELECT * FROM checkpoints",
        "position",
        [["run = ?", run]],
        page,
      ).map(checkpointOf),

    async checkpoint(run, id) {
      const row = sql.get<{ position: number; directory: string; body: Blob }>(
        "SELECT * FROM checkpoints WHERE run = ? AND id = ?",
        run,
        id,
      );
      return row && checkpointOf(row).item;
    },

    async deleteCheckpoint(run, id, answer) {
      sql.transaction(() => {
        sql.run("DELETE FROM checkpoints WHERE run = ? AND id = ?", run, id);
        if (answer) storeAnswer(sql, answer);
      });
    },

    async runUsing(what, id) {
      const name = `${what}s/${id}`;
      // Names have no spaces; the datasets of a mixture stand in one column with spaces between.
      return sql.get<{ id: string }>(
        `SELECT id FROM runs WHERE instr(' ' || ${what} || ' ', ' ' || ? || ' ') AND state NOT IN (${ENDED.join(", ")}) LIMIT 1`,
        name,
      )?.id;
    },
  };
}
