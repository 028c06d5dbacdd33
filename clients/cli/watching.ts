// Watching a run on a terminal, through a pipe, or as JSON lines, until it ends or Ctrl-C detaches.

import process from "node:process";
import { type RunEvent, RunEventSchema } from "../../proto/gen/thaw/v1/event_pb.ts";
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import type { RpcError } from "../typescript/index.ts";
import { advance, begin, ended, eventLine, type Progress, progressLine } from "./events.ts";
import { EXIT } from "./exit_codes.ts";
import { duration } from "./format.ts";
import { liveLine } from "./live.ts";
import { messageJson, note, print, type Session } from "./session.ts";

export interface Watched {
  /** `runs/{run}`. */
  readonly name: string;
  /** Optimizer steps it will do. */
  readonly steps: number;
  /** As it stands; when its log ends before any event says so, this decides the exit code. */
  readonly state: RunState;
  /** The revision before the first event. */
  readonly after: bigint;
  readonly events: AsyncIterable<RunEvent>;
}

/** Begins to watch, so that StartRun, WatchRun and SteerRun look the same from here on. */
export type Open = (hooks: {
  readonly signal: AbortSignal;
  readonly onReconnect: (lost: RpcError, waitMs: number) => void;
  /** Says something to a person, above the live line where there is one. */
  readonly say: (text: string) => void;
}) => Promise<Watched>;

/**
 * Shows events as they come. @returns the exit code: 0 when the run succeeded, 1 when it failed or was cancelled, 130 when
 * Ctrl-C detached; the run then goes on, and a line says how to come back.
 */
export async function showEvents(session: Session, open: Open): Promise<number> {
  const detach = new AbortController();
  const live = session.terminal && !session.json ? liveLine(process.stdout) : undefined;
  const say = (text: string) => (live ? live.print(text) : note(text));
  const onReconnect = (lost: RpcError, waitMs: number) =>
    say(`connection lost (${lost.message}); trying again in ${duration(waitMs)}`);
  const run = await open({ signal: detach.signal, onReconnect, say });
  const interrupt = () => detach.abort();
  process.once("SIGINT", interrupt);
  let progress: Progress = begin(run.steps, run.state);
  let revision = run.after;
  try {
    for await (const event of run.events) {
      progress = advance(progress, event);
      revision = event.revision;
      if (session.json) print(JSON.stringify(messageJson(RunEventSchema, event)));
      else if (!live) print(eventLine(event));
      else if (event.event.case !== "metrics") live.print(eventLine(event));
      live?.paint(progressLine(progress, (process.stdout.columns ?? 80) - 1));
    }
  } catch (error) {
    if (!detach.signal.aborted) throw error;
  } finally {
    process.off("SIGINT", interrupt);
    live?.end();
  }
  if (detach.signal.aborted && !ended(progress.state)) {
    note(`Detached; ${run.name} goes on.`);
    note(`  come back:  thaw runs watch ${run.name} --after ${revision}${session.serverFlag}`);
    note(`  stop it:    thaw runs cancel ${run.name}${session.serverFlag}`);
    return EXIT.DETACHED;
  }
  return progress.state === RunState.SUCCEEDED ? EXIT.OK : EXIT.FAILED;
}
