// The step loop: steps the open runs by itself, in turn, and carries out requests in order, between two steps. It knows
// messages and the trainer; the process, its pipes and its device are main.ts's.

import { clearInterval, setInterval } from "node:timers";
import { setImmediate } from "node:timers/promises";
import type { ToWorker } from "../../../proto/gen/thaw/worker/v1/worker_pb.ts";
import type { Engine } from "../../trainer/types.ts";
import type { ActiveRun } from "./active_run.ts";
import { CancelledError, errorToProto, isRefusal } from "./errors.ts";
import { openModelCache } from "./model_cache.ts";
import type { Outbox } from "./outbox.ts";
import {
  cancellable,
  carryOut,
  changedRun,
  type HostModels,
  needsNoGpu,
  type Request,
  type WorkerState,
} from "./requests.ts";
import { takeTurns } from "./turns.ts";

/** How often the server hears that the process lives. */
const HEARTBEAT_MS = 1000;

export interface GpuWorker {
  /** Takes a request; never waits. */
  receive(message: ToWorker): void;
  /** Steps and serves until Shutdown is carried out or `stop` is called, then closes everything. */
  run(): Promise<void>;
  /** Ends `run` at the next step boundary; requests not begun are forgotten. */
  stop(): void;
  /** Fails every run and every unanswered request with `error`, when nothing can be carried out any more. */
  fail(error: Error): void;
}

/** A request that has been received. */
interface Pending {
  readonly id: bigint;
  readonly request: Request;
  answered: boolean;
}

/**
 * @param deviceActivity grows while the device gets on
 * @param collect frees what closed runs have left to the collector; called when a run has been closed
 */
export function createWorker(
  engine: Engine,
  host: HostModels,
  outbox: Outbox,
  deviceActivity: () => number = () => 0,
  collect: () => void = () => undefined,
): GpuWorker {
  const queue: Pending[] = [];
  /** Being carried out: at most one that needs the GPU. */
  const current = new Set<Pending>();
  const turns = takeTurns();
  let stopped = false;
  let idle = false;
  /** Turns of the loop, and requests carried out. */
  let done = 0;
  let wake: () => void = () => undefined;

  const state: WorkerState = {
    engine,
    host,
    models: openModelCache(engine),
    runs: new Map(),
    sendUpdate: (run, step, update) => outbox.send({ case: "update", value: { run, step: BigInt(step), update } }),
    backlogBytes: () => outbox.backlogBytes,
  };

  function receive({ id, request }: ToWorker): void {
    if (request.case === "cancelRequest") {
      cancel(request.value.id);
    } else if (needsNoGpu(request)) {
      void serve({ id, request, answered: false });
    } else {
      queue.push({ id, request, answered: false });
      wake();
    }
  }

  function cancel(id: bigint): void {
    const waiting = queue.findIndex((pending) => pending.id === id);
    if (waiting >= 0) refuse(queue.splice(waiting, 1)[0], new CancelledError());
    for (const pending of current)
      if (pending.id === id && cancellable(pending.request)) refuse(pending, new CancelledError());
  }

  function refuse(pending: Pending, error: unknown): void {
    if (pending.answered) return;
    pending.answered = true;
    outbox.send({ case: "failure", value: { id: pending.id, error: errorToProto(error) } });
  }

  async function serve(pending: Pending): Promise<void> {
    current.add(pending);
    try {
      await carryOut(state, pending.request, {
        cancelled: () => pending.answered,
        reply(result, more = false) {
          if (pending.answered) return;
          pending.answered = !more;
          outbox.send({ case: "reply", value: { id: pending.id, more, result } });
        },
      });
    } catch (error) {
      refuse(pending, error);
      const run = isRefusal(error) ? undefined : state.runs.get(changedRun(pending.request));
      if (run) await failRun(run, error);
    } finally {
      current.delete(pending);
      done++;
    }
  }

  async function failRun(run: ActiveRun, error: unknown): Promise<void> {
    if (!state.runs.delete(run.name)) return;
    state.sendUpdate(run.name, run.step, { case: "failed", value: { error: errorToProto(error) } });
    await run.close();
    collect();
  }

  /** Part of the run's life; an error in it ends the run, not the worker. */
  async function guarded(run: ActiveRun, work: Promise<void>): Promise<void> {
    try {
      await work;
    } catch (error) {
      await failRun(run, error);
    }
  }

  function beat(): void {
    const value = { busy: !idle || current.size > 0, progress: BigInt(done + deviceActivity()) };
    outbox.send({ case: "heartbeat", value });
  }

  async function run(): Promise<void> {
    const pulse = setInterval(beat, HEARTBEAT_MS);
    pulse.unref(); // what keeps a worker alive is its work and who asks for it
    while (!stopped) {
      done++;
      await setImmediate(); // lets input in, however quickly steps follow each other
      const pending = queue.shift();
      const run = pending ? undefined : turns.next(state.runs.values());
      if (pending) {
        for (const open of [...state.runs.values()]) await guarded(open, open.settle());
        if (pending.request.case === "shutdown") stopped = true;
        else await serve(pending);
        if (pending.request.case === "closeRun") collect();
      } else if (run) {
        await guarded(run, run.advance());
      } else if (!stopped) {
        idle = true;
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
        idle = false;
      }
    }
    clearInterval(pulse);
    for (const run of state.runs.values()) await run.close();
    state.models.close();
  }

  return {
    receive,
    run,
    stop() {
      stopped = true;
      wake();
    },
    fail(error) {
      for (const run of [...state.runs.values()]) void failRun(run, error);
      for (const pending of [...current, ...queue]) refuse(pending, error);
      queue.length = 0;
    },
  };
}
