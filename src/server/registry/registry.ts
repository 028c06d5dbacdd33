// What the server remembers, as named operations over plain records. One implementation today: embedded SQLite
// (sqlite.ts). The operations are asynchronous and each is one transaction, so that a database on another machine can
// take its place. No caller ever sees SQL.

import type { Checkpoint } from "../../../proto/gen/thaw/v1/checkpoint_pb.ts";
import type { Dataset, SplitDescription } from "../../../proto/gen/thaw/v1/dataset_pb.ts";
import type { RunEvent } from "../../../proto/gen/thaw/v1/event_pb.ts";
import type { TrainableReport } from "../../../proto/gen/thaw/v1/group_pb.ts";
import type { Model, ModelDescription } from "../../../proto/gen/thaw/v1/model_pb.ts";
import type { Run } from "../../../proto/gen/thaw/v1/run_pb.ts";
import type { RunState } from "../../../proto/gen/thaw/v1/run_state_pb.ts";

/** The answer to a mutating request, kept so that its repetition gets the same one. */
export interface Answer {
  readonly requestId: string;
  readonly method: string;
  /** Digest of the request's canonical form. */
  readonly digest: string;
  readonly response: Uint8Array;
}

/** A run, and what its last freeze plan did (absent before the run has been opened or told a plan). */
export interface RunRecord {
  readonly run: Run;
  readonly report: TrainableReport | undefined;
}

/** One entry for a run's log; the registry gives it its revision. */
export interface LogEntry {
  readonly event: RunEvent;
  /** For a `checkpoint` event: its folder's name below the run's; the checkpoint is indexed with the event. */
  readonly directory?: string;
}

export interface ModelRecord {
  readonly model: Model;
  readonly description: ModelDescription;
  /** Below the data directory's models, or absolute for a loaded model. */
  readonly directory: string;
}

export interface DatasetRecord {
  readonly dataset: Dataset;
  readonly splits: readonly SplitDescription[];
}

export interface CheckpointRecord {
  readonly checkpoint: Checkpoint;
  /** Folder name below the run's checkpoints. */
  readonly directory: string;
}

/** A page, newest first, of items created before `before` (a position from an earlier page). */
export interface PageQuery {
  readonly before: number | undefined;
  readonly limit: number;
}

export interface Positioned<T> {
  readonly position: number;
  readonly item: T;
}

export interface RunQuery extends PageQuery {
  /** Empty: all. */
  readonly states: readonly RunState[];
  readonly labels: Readonly<Record<string, string>>;
}

/** The id is in use. */
export class NameTakenError extends Error {
  override name = "NameTakenError";
}

/** The etag is not the run's present one. */
export class StaleEtagError extends Error {
  override name = "StaleEtagError";
}

/** Ids are the last part of a name, already checked. `answer`, where given, is stored in the same transaction. */
export interface Registry {
  /** Adds a run with its first event. @throws NameTakenError */
  createRun(run: Run, first: LogEntry, answer?: (run: Run) => Answer): Promise<RunRecord>;
  /** `queue_position`, `latest_checkpoint` and `revision` are filled in. */
  run(id: string): Promise<RunRecord | undefined>;
  runs(query: RunQuery): Promise<Positioned<RunRecord>[]>;
  /** Runs in one of the states, oldest first. */
  runsInStates(states: readonly RunState[]): Promise<RunRecord[]>;
  /** How many runs are in each state; states without one may be missing. */
  countRuns(): Promise<ReadonlyMap<RunState, number>>;
  /** Appends to the run's log and replaces its record (labels and display_name stay). Nothing when the run is gone. */
  appendEvents(run: Run, report: TrainableReport | undefined, entries: readonly LogEntry[]): Promise<void>;
  /** @throws StaleEtagError when `etag` is set and not the present one. Undefined when there is no such run. */
  updateRun(
    id: string,
    etag: string,
    change: { readonly displayName?: string; readonly labels?: Readonly<Record<string, string>> },
    answer?: (run: Run) => Answer,
  ): Promise<RunRecord | undefined>;
  deleteRun(id: string, etag: string, answer?: Answer): Promise<void>;
  /**
   * Events after a revision, ascending: at most `limit`, and no more than `bytes` encoded unless the first alone has more.
   */
  events(id: string, afterRevision: number, limit: number, bytes: number): Promise<RunEvent[]>;
  /** Events of one kind with `step` in an inclusive window, ascending by revision. */
  eventsOfKind(id: string, kind: "metrics" | "evaluation", firstStep: number, lastStep: number): Promise<RunEvent[]>;
  /** The oldest revision kept; 1 unless the log was compacted. */
  oldestRevision(id: string): Promise<number>;

  /** Newest first. */
  checkpoints(run: string, page: PageQuery): Promise<Positioned<CheckpointRecord>[]>;
  checkpoint(run: string, id: string): Promise<CheckpointRecord | undefined>;
  deleteCheckpoint(run: string, id: string, answer?: Answer): Promise<void>;

  /** @throws NameTakenError */
  createModel(record: ModelRecord, answer?: Answer): Promise<void>;
  model(id: string): Promise<ModelRecord | undefined>;
  models(page: PageQuery): Promise<Positioned<ModelRecord>[]>;
  deleteModel(id: string, answer?: Answer): Promise<void>;

  /** @throws NameTakenError */
  createDataset(record: DatasetRecord, answer?: Answer): Promise<void>;
  dataset(id: string): Promise<DatasetRecord | undefined>;
  datasets(page: PageQuery): Promise<Positioned<DatasetRecord>[]>;
  deleteDataset(id: string, answer?: Answer): Promise<void>;

  /** A run that has not ended and starts from the model, or trains on the dataset. */
  runUsing(what: "model" | "dataset", id: string): Promise<string | undefined>;

  answer(requestId: string): Promise<Answer | undefined>;
  saveAnswer(answer: Answer): Promise<void>;

  close(): void;
}
