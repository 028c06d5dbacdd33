// The watch log: events go in as they happen and to disk a tick later, in one transaction; readers read the disk.
//
// So training never waits for a reader, and a slow or stopped reader costs nothing: a watch keeps a revision, not a queue.
// Readers who have got as far as the log goes read the next piece once for all of them.
// The log only grows. When a run goes on from a checkpoint, the steps after it happen again: their events follow the
// earlier ones at new revisions, after a `warning` that names the checkpoint's step. A reader that plots by step lets the
// later event of a step win.

import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { timestampNow } from "@bufbuild/protobuf/wkt";
import { status } from "@grpc/grpc-js";
import { type RunEvent, RunEventSchema } from "../../../proto/gen/thaw/v1/event_pb.ts";
import type { TrainableReport } from "../../../proto/gen/thaw/v1/group_pb.ts";
import type { Run } from "../../../proto/gen/thaw/v1/run_pb.ts";
import { failpoint } from "../../failpoints.ts";
import type { Log } from "../log.ts";
import type { LogEntry, Registry, RunRecord } from "../registry/registry.ts";
import { refusal } from "../rpc/errors.ts";
import type { Limits } from "../settings.ts";
import { hasEnded, notFound } from "./states.ts";

/** How long events gather: one flush to disk per tick, however fast the steps are. */
const TICK_MS = 25;
/** After a failed write, for instance on a full disk. */
const RETRY_MS = 1000;
/** Events of a run that may wait for a disk that takes none. */
export const MOST_WAITING = 256;
/** Events per message of a watch, and bytes: of a model with many experts an event has tens of kilobytes. */
const BATCH_EVENTS = 256;
const BATCH_BYTES = 256 * 1024;

export type EventInit = NonNullable<MessageInitShape<typeof RunEventSchema>["event"]>;

/** A run in memory: the record that the next write stores. */
export interface LiveRun {
  readonly run: Run;
  report: TrainableReport | undefined;
}

export type WatchPart =
  | { readonly case: "events"; readonly value: { readonly events: RunEvent[] } }
  | { readonly case: "progress"; readonly value: { readonly revision: bigint } };

/** A piece of a log, read once. */
interface Head {
  readonly after: number;
  readonly events: Promise<RunEvent[]>;
  /** Read where there are no events. */
  readonly run: Promise<RunRecord | undefined>;
}

export interface RunLog {
  /** Adds an event at the run's present step; it is on disk a tick later. */
  append(live: LiveRun, event: EventInit, directory?: string): void;
  /** Resolves when everything appended so far is on disk. @throws when the disk refuses it */
  flush(): Promise<void>;
  /** Whether the disk refused the last write; it is tried again every second. */
  readonly refused: boolean;
  /** Called when the disk takes events again. */
  onCaughtUp: () => void;
  /** Whether the disk refuses events and so many of the run's wait that it should make no more. */
  stuck(run: string): boolean;
  /** Resolves when no event of the run waits for a disk that refused it. @throws when the disk refuses it again */
  caughtUp(run: string): Promise<void>;
  /** The log after a revision, then its future, until the run has ended and everything was sent. */
  watch(
    id: string,
    afterRevision: bigint,
    progressMs: number | undefined,
    signal: AbortSignal,
  ): AsyncGenerator<WatchPart>;
  /** Wakes the readers of a run: it was deleted. */
  wake(id: string): void;
  /** Ends every watch with UNAVAILABLE. */
  stop(): void;
  /** Watches that wait for the next event. */
  readonly watchers: number;
}

export function eventAt(step: bigint, event: EventInit): RunEvent {
  return create(RunEventSchema, { time: timestampNow(), step, event });
}

/** @param onWritten hears of every event of a live run when it is on disk */
export function createRunLog(
  registry: Registry,
  log: Log,
  limits: Pick<Limits, "maxWatchers">,
  onWritten: (run: string, event: RunEvent) => void = () => {},
): RunLog {
  const pending = new Map<string, { live: LiveRun; entries: LogEntry[] }>();
  const readers = new Map<string, Set<() => void>>();
  /** Open watches by run. */
  const watches = new Map<string, number>();
  /** The newest piece of a run's log, until it changes. */
  const heads = new Map<string, Head>();
  let timer: ReturnType<typeof setTimeout> | undefined;
  let writing: Promise<void> = Promise.resolve();
  let stopping = false;
  let refused = false;

  const wake = (id: string): void => {
    heads.delete(id);
    for (const reader of readers.get(id) ?? []) reader();
  };

  /** The events after a revision, and the run as it was then where there are none. */
  function read(id: string, after: number): Head {
    const known = heads.get(id);
    if (known?.after === after) return known;
    const events = registry.events(id, after, BATCH_EVENTS, BATCH_BYTES);
    const run = events.then((found) => (found.length === 0 ? registry.run(id) : undefined));
    const head = { after, events, run };
    run.catch(() => {}); // Told to whoever waits for the events.
    events.then(
      (found) => heads.get(id) === head && found.length === BATCH_EVENTS && heads.delete(id),
      () => heads.get(id) === head && heads.delete(id),
    );
    heads.set(id, head);
    return head;
  }

  async function write(): Promise<void> {
    for (const [name, { live, entries }] of [...pending]) {
      const batch = entries.slice();
      failpoint("log.before_write");
      await registry.appendEvents(live.run, live.report, batch);
      failpoint("log.after_commit");
      entries.splice(0, batch.length);
      if (entries.length === 0) pending.delete(name);
      wake(name.replace(/^runs\//, ""));
      try {
        for (const { event } of batch) onWritten(name, event);
      } catch (error) {
        log("error", `a listener of the event log: ${error}`, { run: name });
      }
    }
    if (!refused) return;
    refused = false;
    runLog.onCaughtUp();
  }

  function flush(): Promise<void> {
    clearTimeout(timer);
    timer = undefined;
    const done = writing.then(write);
    writing = done.catch((error) => {
      refused = true;
      log("error", `the event log cannot be written: ${error}`);
      schedule(RETRY_MS);
    });
    return done;
  }

  function schedule(delay: number): void {
    timer ??= setTimeout(() => void flush().catch(() => {}), delay);
  }

  /** Resolves true on the next change after `begin`, false after `progressMs`. */
  function nextChange(id: string, progressMs: number | undefined, signal: AbortSignal) {
    let resolve = (_changed: boolean): void => {};
    const changed = new Promise<boolean>((done) => {
      resolve = done;
    });
    const reader = () => resolve(true);
    const set = readers.get(id) ?? new Set();
    readers.set(id, set.add(reader));
    const timeout = progressMs === undefined ? undefined : setTimeout(() => resolve(false), progressMs);
    signal.addEventListener("abort", reader);
    const end = (): void => {
      clearTimeout(timeout);
      signal.removeEventListener("abort", reader);
      set.delete(reader);
      if (set.size === 0 && readers.get(id) === set) readers.delete(id);
    };
    return { changed, end };
  }

  /** Counts a watch; returns what ends it. @throws RpcError RESOURCE_EXHAUSTED when the run has too many */
  function enter(id: string): () => void {
    const { maxWatchers } = limits;
    const open = watches.get(id) ?? 0;
    if (open >= maxWatchers) {
      const message = `runs/${id} has ${maxWatchers} watches already (--max-watchers)`;
      throw refusal(status.RESOURCE_EXHAUSTED, "TOO_MANY_WATCHERS", message, { limit: String(maxWatchers) }, 1);
    }
    watches.set(id, open + 1);
    return () => {
      const left = watches.get(id)! - 1;
      if (left > 0) return void watches.set(id, left);
      watches.delete(id);
      heads.delete(id);
    };
  }

  async function* follow(
    id: string,
    afterRevision: bigint,
    progressMs: number | undefined,
    signal: AbortSignal,
  ): AsyncGenerator<WatchPart> {
    const record = await registry.run(id);
    if (!record) throw notFound(`runs/${id}`);
    const oldest = await registry.oldestRevision(id);
    if (afterRevision < oldest - 1 || afterRevision > record.run.revision) {
      const message =
        afterRevision > record.run.revision
          ? `the newest revision is ${record.run.revision}`
          : `revisions below ${oldest} were compacted`;
      throw refusal(status.OUT_OF_RANGE, "REVISION_OUT_OF_RANGE", message, {
        oldest_revision: String(oldest),
        newest_revision: String(record.run.revision),
      });
    }
    let sent = Number(afterRevision);
    while (true) {
      // Listening begins before reading, so that nothing falls between the two.
      const next = nextChange(id, progressMs, signal);
      try {
        const head = read(id, sent);
        const events = await head.events;
        if (events.length > 0) {
          sent = Number(events[events.length - 1].revision);
          yield { case: "events", value: { events } };
          continue;
        }
        const now = await head.run;
        if (!now) throw notFound(`runs/${id}`);
        if (hasEnded(now.run.state) && now.run.revision === BigInt(sent)) return;
        if (stopping) throw refusal(status.UNAVAILABLE, "STOPPING", "the server is stopping", {}, 5);
        const changed = await next.changed;
        signal.throwIfAborted();
        if (!changed) yield { case: "progress", value: { revision: BigInt(sent) } };
      } finally {
        next.end();
      }
    }
  }

  const runLog: RunLog = {
    append(live, event, directory) {
      const entry = { event: eventAt(live.run.step, event), directory };
      const waiting = pending.get(live.run.name);
      if (waiting) waiting.entries.push(entry);
      pending.set(live.run.name, { live, entries: waiting?.entries ?? [entry] });
      schedule(TICK_MS);
    },
    flush,
    get refused() {
      return refused;
    },
    onCaughtUp: () => {},
    stuck: (run) => refused && (pending.get(run)?.entries.length ?? 0) >= MOST_WAITING,
    async caughtUp(run) {
      if (refused && pending.has(run)) await flush();
    },
    wake,

    async *watch(id, afterRevision, progressMs, signal) {
      const leave = enter(id);
      try {
        yield* follow(id, afterRevision, progressMs, signal);
      } finally {
        leave();
      }
    },

    stop() {
      stopping = true;
      for (const id of readers.keys()) wake(id);
    },

    get watchers() {
      return [...readers.values()].reduce((sum, set) => sum + set.size, 0);
    },
  };
  return runLog;
}
