// Watching a run as if the connection never broke. A run's log has gap-free revisions and any of them can be asked for
// again, so after a lost connection, a restarted server or a stream that went silent the watch goes on from its last
// revision: every event arrives once and in order. Errors that waiting cannot cure are thrown.

import type { MessageInitShape } from "@bufbuild/protobuf";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { status } from "@grpc/grpc-js";
import type { RunEvent, RunEventBatch, WatchProgress } from "../../proto/gen/thaw/v1/event_pb.ts";
import type { CreateRunRequestSchema, CreateRunResponse } from "../../proto/gen/thaw/v1/run_service_pb.ts";
import { fromWire, RpcError } from "../../proto/rpc/status.ts";
import { problemsOf } from "./problems.ts";
import type { Thaw } from "./thaw.ts";

export interface WatchOptions {
  /** Events after this revision. Default: 0, the whole log. */
  readonly afterRevision?: bigint;
  /** Ends the watch; it throws CANCELLED. The run goes on. */
  readonly signal?: AbortSignal;
  /** How long to go on trying without hearing from the server, in milliseconds. Default: 5 minutes. */
  readonly patienceMs?: number;
  /** Told before every wait; for a line on a terminal. */
  readonly onReconnect?: (lost: RpcError, waitMs: number) => void;
}

type LogReply =
  | { readonly case: "events"; readonly value: RunEventBatch }
  | { readonly case: "progress"; readonly value: WatchProgress }
  | { readonly case: "created"; readonly value: CreateRunResponse }
  | { readonly case: undefined };
type LogStream = AsyncIterable<{ readonly reply: LogReply }>;

/** The server says "nothing new" this often, so that silence means a dead connection. */
const PROGRESS_MS = 10_000;
const SILENCE_MS = 3 * PROGRESS_MS;
const FIRST_WAIT_MS = 200;
const LONGEST_WAIT_MS = 10_000;
const progressInterval = durationFromMs(PROGRESS_MS);

/**
 * The events of a run, from a revision on until the run has ended and everything was sent.
 * @param name `runs/{run}`
 * @throws RpcError NOT_FOUND, or OUT_OF_RANGE when the log before `afterRevision` was compacted; UNAVAILABLE when the
 * server stayed away longer than `patienceMs`; CANCELLED by `signal`.
 */
export function watchRun(thaw: Pick<Thaw, "runs">, name: string, options: WatchOptions = {}): AsyncGenerator<RunEvent> {
  return followLog(thaw, name, undefined, options);
}

/**
 * Creates a run and watches it from the beginning in one call (StartRun). When that call breaks after the run was created
 * the events go on through WatchRun.
 * @throws RpcError as CreateRun does. When it is UNAVAILABLE the run may exist: the same `requestId` finds out safely.
 */
export async function startRun(
  thaw: Pick<Thaw, "runs">,
  create: MessageInitShape<typeof CreateRunRequestSchema>,
  options: Omit<WatchOptions, "afterRevision"> = {},
): Promise<{ readonly created: CreateRunResponse; readonly events: AsyncGenerator<RunEvent> }> {
  const cut = new AbortController();
  const stream = thaw.runs.startRun({ create, progressInterval }, { signal: eitherOf(cut.signal, options.signal) });
  const iterator = stream[Symbol.asyncIterator]();
  const first = await iterator.next();
  if (first.done || first.value.reply.case !== "created") {
    throw new RpcError(status.INTERNAL, "the server did not begin with the created run");
  }
  const created = first.value.reply.value;
  const rest: LogStream = { [Symbol.asyncIterator]: () => iterator };
  return { created, events: followLog(thaw, created.run?.name ?? "", { stream: rest, cut }, options) };
}

async function* followLog(
  thaw: Pick<Thaw, "runs">,
  name: string,
  opened: { readonly stream: LogStream; readonly cut: AbortController } | undefined,
  { afterRevision = 0n, signal, patienceMs = 300_000, onReconnect }: WatchOptions,
): AsyncGenerator<RunEvent> {
  let revision = afterRevision;
  let waitMs = FIRST_WAIT_MS;
  let heard = performance.now();
  let current = opened;
  for (;;) {
    const cut = current?.cut ?? new AbortController();
    const stream: LogStream =
      current?.stream ??
      thaw.runs.watchRun({ name, afterRevision: revision, progressInterval }, { signal: eitherOf(cut.signal, signal) });
    current = undefined;
    try {
      for await (const { reply } of listen(stream, cut)) {
        heard = performance.now();
        waitMs = FIRST_WAIT_MS;
        if (reply.case !== "events") continue;
        for (const event of reply.value.events) {
          if (event.revision <= revision) continue;
          if (event.revision > revision + 1n) {
            throw new RpcError(status.DATA_LOSS, `the log jumped from revision ${revision} to ${event.revision}`);
          }
          revision = event.revision;
          yield event;
        }
        // The reader may have taken its time.
        heard = performance.now();
      }
      return;
    } catch (error) {
      const lost = fromWire(error);
      const silent = cut.signal.aborted;
      if (signal?.aborted || !(silent || comesBack(lost)) || performance.now() - heard > patienceMs) throw lost;
      const wait = Math.max(problemsOf(lost).retryAfterMs ?? 0, waitMs * (0.5 + Math.random() / 2));
      onReconnect?.(lost, wait);
      await sleep(wait, signal);
      waitMs = Math.min(waitMs * 2, LONGEST_WAIT_MS);
    }
  }
}

/** The same messages; cuts the call when none comes for SILENCE_MS. Time the reader takes does not count. */
async function* listen(stream: LogStream, cut: AbortController): AsyncGenerator<{ readonly reply: LogReply }> {
  const cutLater = () => setTimeout(() => cut.abort(), SILENCE_MS);
  let timer = cutLater();
  try {
    for await (const message of stream) {
      clearTimeout(timer);
      yield message;
      timer = cutLater();
    }
  } finally {
    clearTimeout(timer);
  }
}

/** Whether the server is only away: UNAVAILABLE, or how grpc-js reports a connection closed in the middle of a stream. */
function comesBack(error: RpcError): boolean {
  return (
    error.code === status.UNAVAILABLE || (error.code === status.INTERNAL && /RST_STREAM.*code 0\b/.test(error.message))
  );
}

function eitherOf(one: AbortSignal, other: AbortSignal | undefined): AbortSignal {
  return other ? AbortSignal.any([one, other]) : one;
}

function sleep(milliseconds: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(new RpcError(status.CANCELLED, "the watch was ended"));
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, milliseconds);
    if (signal?.aborted) stop();
    else signal?.addEventListener("abort", stop, { once: true });
  });
}
