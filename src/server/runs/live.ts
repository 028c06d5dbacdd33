// A run that holds the GPU, from the opening to its end: opened from its newest checkpoint, told the freeze plan in force,
// stepped or left paused as its owner wants, opened again when the GPU process dies or the run diverges and its policy is to
// go back, a bounded number of times.
//
// Commands (manager.ts) change `wanted` and the state; this file makes it so. What the worker reports is handled strictly
// in order, one update at a time.

import { setTimeout as delay } from "node:timers/promises";
import { create, equals } from "@bufbuild/protobuf";
import { timestampNow } from "@bufbuild/protobuf/wkt";
import { status } from "@grpc/grpc-js";
import { DataReportSchema } from "../../../proto/gen/thaw/v1/event_pb.ts";
import {
  TrainablePlanSchema,
  type TrainableReport,
  TrainableReportSchema,
} from "../../../proto/gen/thaw/v1/group_pb.ts";
import type { AssignmentSlice } from "../../../proto/gen/thaw/v1/routing_pb.ts";
import { RunState } from "../../../proto/gen/thaw/v1/run_state_pb.ts";
import type { KernelUse } from "../../../proto/gen/thaw/v1/system_pb.ts";
import type { Diverged, RunOpened, RunUpdate } from "../../../proto/gen/thaw/worker/v1/worker_pb.ts";
import { RpcError, toStatus } from "../../../proto/rpc/status.ts";
import { asCallerError, callerError, WorkerFailure, WorkerGone } from "../gpu/failures.ts";
import type { Gpu } from "../gpu/supervisor.ts";
import { idIn } from "../ids.ts";
import type { Log } from "../log.ts";
import type { Registry } from "../registry/registry.ts";
import { refusal } from "../rpc/errors.ts";
import { isDiskFull } from "../storage/disk_full.ts";
import { discard, type Layout } from "../storage/layout.ts";
import { invalidField } from "../validation/problems.ts";
import { DIVERGENCE_REMEDY } from "../worker/errors.ts";
import type { Checkpoints } from "./checkpoints.ts";
import type { EventInit, LiveRun, RunLog } from "./log.ts";
import { openRequest } from "./open_request.ts";
import { MAX_ROLLBACKS, trackRollbacks } from "./rollbacks.ts";
import { hasEnded } from "./states.ts";

/** Times a run is opened again without a new checkpoint in between. */
const MAX_TRIES = 3;

/** What a live run needs of the server. */
export interface LiveParts {
  readonly registry: Registry;
  readonly layout: Layout;
  readonly gpu: Gpu;
  readonly runLog: RunLog;
  readonly checkpoints: Checkpoints;
  readonly log: Log;
  /** First wait before a run is opened again, in milliseconds; doubles with each try. */
  readonly retryMs: number;
  /** The run is open on a process that knows no subscriptions yet. */
  readonly onOpen: (name: string) => void;
  readonly onRoutes: (name: string, slice: AssignmentSlice) => void;
  readonly onRoutesLeftOut: (name: string, slices: number) => void;
  readonly onEnd: (name: string) => void;
}

export type Wanted = "run" | "pause" | "cancel" | "stop";

export interface Live extends LiveRun {
  /** What its owner wants of it. */
  wanted: Wanted;
  /** Whether it is open on the worker and takes requests. */
  open: boolean;
  kernels: readonly KernelUse[];
  /** Gives up opening, or waiting to open, when it is cancelled or the server stops. */
  readonly giveUp: AbortController;
  /** Hears of everything the worker reports about the run. */
  update(update: RunUpdate): void;
  /** Resolves when every update so far has been handled. */
  settled(): Promise<void>;
  /** The GPU process ended. */
  gone(how: string): void;
  /** Ends its life on the GPU: it was cancelled, or the server stops. */
  release(): void;
  /** Resolves when it no longer holds the GPU. */
  readonly over: Promise<void>;
}

/** Changes the state and logs it; in the log before anything that follows. */
export function changeState(runLog: RunLog, live: LiveRun, to: RunState, error?: RpcError): void {
  const from = live.run.state;
  const problem = error && toStatus(error);
  live.run.state = to;
  live.run.error = problem;
  if (hasEnded(to)) live.run.endTime = timestampNow();
  runLog.append(live, { case: "state", value: { from, to, error: problem } });
}

/** A report that says what trains, for when nothing was changed. */
const reportOf = (opened: Pick<RunOpened, "matched" | "cost" | "step">): TrainableReport =>
  create(TrainableReportSchema, {
    matched: opened.matched,
    before: opened.cost,
    after: opened.cost,
    effectiveStep: opened.step,
  });

/** Why a run has to be opened again: how its process ended, how it diverged, or which checkpoint is damaged, and how. */
type Reopening = { readonly gone: string } | { readonly diverged: string } | { readonly damaged: string };

const INTERNAL = () => refusal(status.INTERNAL, "INTERNAL", "a fault of thaw; the server's log says more");

export function liveRun(start: LiveRun, parts: LiveParts): Live {
  const { gpu, runLog, checkpoints, log, retryMs } = parts;
  let tries = 0;
  const rollbacks = trackRollbacks();
  let handled: Promise<void> = Promise.resolve();
  /** Ends the present opening: with why the run is to be opened again, or without when it is done with the GPU. */
  let leave: (why: Reopening | undefined) => void = () => {};
  let left = false;
  /** Where this opening's checkpoints are written. */
  let folder = "";

  const live: Live = {
    run: start.run,
    report: start.report,
    wanted: start.run.startPaused ? "pause" : "run",
    open: false,
    kernels: [],
    giveUp: new AbortController(),
    update(update) {
      handled = handled
        .then(() => apply(update))
        .then(() => (!left && runLog.stuck(live.run.name) ? pauseForRoom() : undefined))
        .catch((thrown) => {
          if (isDiskFull(thrown)) return pauseForRoom();
          // The run cannot keep its promises any more.
          log("error", `${thrown}`, { run: live.run.name });
          return end(RunState.FAILED, INTERNAL());
        })
        .catch((thrown) => log("error", `${thrown}`, { run: live.run.name }));
    },
    settled: () => handled,
    gone: (how) => leave({ gone: how }),
    release() {
      left = true;
      live.open = false;
      live.giveUp.abort(refusal(status.CANCELLED, "CANCELLED", "given up"));
      leave(undefined);
    },
    over: Promise.resolve(),
  };
  const append = (event: EventInit): void => runLog.append(live, event);

  async function apply({ step, update }: RunUpdate): Promise<void> {
    // What comes after it has left the GPU is of steps that will be taken again.
    if (left || hasEnded(live.run.state)) return;
    // Comes before the run is open, and says nothing of its step.
    if (update.case === "preparation") return append(update);
    live.run.step = step;
    switch (update.case) {
      case "metrics":
        live.run.metrics = update.value;
        return append(update);
      case "evaluation":
      case "warning":
        return append(update);
      case "overfitting":
        live.run.overfitting = update.value;
        return append(update);
      case "trainable":
        live.run.trainable = update.value.plan;
        live.run.cost = update.value.report?.after;
        live.report = update.value.report;
        return append(update);
      case "checkpoint": {
        const { directory, sizeBytes, reason } = update.value;
        await checkpoints.adopt(live, directory, sizeBytes, reason);
        tries = 0;
        return;
      }
      case "paused":
        // Somebody's command may have come first.
        if (live.run.state !== RunState.RUNNING) return;
        live.wanted = "pause";
        live.run.pauseAtStep = 0n;
        return changeState(runLog, live, RunState.PAUSED);
      case "finished":
        return end(RunState.SUCCEEDED);
      case "failed": {
        const error = update.value.error?.error ?? { case: undefined };
        log("warning", `failed: ${new WorkerFailure(update.value.error).message}`, { run: live.run.name });
        // A lost device takes its process along; the run goes on in the next one.
        if (error.case === "deviceLost") return;
        if (error.case === "diverged") return goBack(error.value);
        if (error.case === "diskFull") return pauseForRoom();
        return end(RunState.FAILED, callerError(error) ?? INTERNAL());
      }
    }
  }

  async function end(state: RunState, error?: RpcError): Promise<void> {
    if (hasEnded(live.run.state)) return;
    changeState(runLog, live, state, error);
    await runLog.flush().catch(() => {}); // It is tried again until it is written.
    try {
      await closeOnWorker();
    } finally {
      live.release();
    }
  }

  /** The disk takes no checkpoint, or no events: whoever makes room on it resumes the run. It leaves the GPU. */
  async function pauseForRoom(): Promise<void> {
    if (hasEnded(live.run.state)) return;
    if (live.wanted === "run" || live.wanted === "pause") {
      const { place, step } = await restart();
      live.run.step = step;
      const message = `the server's disk is full; the run is paused, and goes on from ${from(place, step)} when it is resumed`;
      append({ case: "warning", value: { reason: "DISK_FULL", message } });
      changeState(runLog, live, RunState.PAUSED);
    }
    const closed = closeOnWorker();
    live.release();
    await closed;
  }

  async function closeOnWorker(): Promise<void> {
    if (!live.open) return;
    live.open = false;
    try {
      await gpu.request({ case: "closeRun", value: { run: live.run.name } });
    } catch (error) {
      // It closed the run by itself, or is gone.
      if (!(error instanceof WorkerFailure || error instanceof WorkerGone)) throw error;
    }
  }

  /** Opens the run, and brings plan and stepping to what is wanted. */
  async function open(): Promise<void> {
    const { place } = await restart();
    const request = { ...(await openRequest(live.run, parts)), passedOverSteps: rollbacks.passedOver(place) };
    folder = request.checkpointsDirectory;
    const reply = await gpu.request({ case: "openRun", value: request }, live.giveUp.signal);
    if (reply.result.case !== "opened") throw new Error(`OpenRun answered with ${reply.result.case}`);
    const opened = reply.result.value;
    live.open = true;
    live.kernels = opened.kernels;
    live.run.step = opened.step;
    live.run.startTime ??= timestampNow();
    live.run.cost = opened.cost;
    live.report = { ...reportOf(opened), effectiveStep: live.report?.effectiveStep ?? opened.step };
    if (opened.data && !(live.run.data && equals(DataReportSchema, live.run.data, opened.data))) {
      live.run.data = opened.data;
      append({ case: "data", value: opened.data });
    }
    // A plan set after the checkpoint was written was acknowledged: it holds again from here.
    const { trainable } = live.run;
    if (trainable && opened.trainable && !equals(TrainablePlanSchema, trainable, opened.trainable)) {
      await gpu.request({ case: "setTrainable", value: { run: live.run.name, plan: trainable } });
    }
    parts.onOpen(live.run.name);
    if (live.wanted === "run") await resumeStepping();
    else if (live.wanted === "pause") changeState(runLog, live, RunState.PAUSED);
  }

  async function resumeStepping(): Promise<void> {
    changeState(runLog, live, RunState.RUNNING);
    const { name: run, pauseAtStep } = live.run;
    await gpu.request({ case: "resume", value: { run, pauseAtStep } });
  }

  /** Where the run goes on from when it is opened now; place is a checkpoint's name, or "" for its start. */
  async function restart(): Promise<{ readonly place: string; readonly step: bigint }> {
    const newest = await checkpoints.newest(idIn("runs", live.run.name)!);
    return { place: newest?.checkpoint.name ?? "", step: newest?.checkpoint.step ?? live.run.startStep };
  }

  const from = (place: string, step: bigint): string =>
    `${place || live.run.sourceCheckpoint || "the beginning"}, step ${step}`;

  /** After a step that was not finite; the worker has closed the run. */
  async function goBack({ step, message }: Diverged): Promise<void> {
    live.open = false;
    const to = await restart();
    const times = rollbacks.diverged(to.place, to.step, step);
    if (times <= MAX_ROLLBACKS) return leave({ diverged: message });
    const back = `the run has gone back to ${to.place || "its start"} ${MAX_ROLLBACKS} times`;
    return end(RunState.FAILED, invalidField("spec.optimizer", `${message}; ${back}; ${DIVERGENCE_REMEDY}`));
  }

  /** One opening, until the run is done with the GPU (undefined) or has to be opened again. */
  async function opening(): Promise<Reopening | undefined> {
    const { state } = live.run;
    if (state !== RunState.PAUSING && state !== RunState.STARTING) changeState(runLog, live, RunState.STARTING);
    const leaving = new Promise<Reopening | undefined>((resolve) => {
      leave = resolve;
    });
    try {
      await open();
    } catch (thrown) {
      if (left || live.giveUp.signal.aborted) return undefined;
      if (isDiskFull(thrown) || (thrown instanceof WorkerFailure && thrown.error.case === "diskFull")) {
        await pauseForRoom();
        return undefined;
      }
      if (thrown instanceof WorkerGone) return { gone: thrown.message };
      if (thrown instanceof WorkerFailure && thrown.error.case === "deviceLost") return { gone: thrown.message };
      if (thrown instanceof WorkerFailure && thrown.error.case === "damagedCheckpoint") {
        const { place } = await restart();
        if (place !== "") {
          checkpoints.setAside(place);
          return { damaged: `${place} is damaged: ${thrown.error.value.message}` };
        }
      }
      const error = asCallerError(thrown);
      if (error instanceof RpcError && error.code === status.UNAVAILABLE) return { gone: error.message };
      if (!(error instanceof RpcError)) log("error", `could not be opened: ${thrown}`, { run: live.run.name });
      await end(RunState.FAILED, error instanceof RpcError ? error : INTERNAL());
      return undefined;
    }
    return leaving;
  }

  /** Nobody writes into the folder any more, and what it still has was never indexed. */
  async function tidy(): Promise<void> {
    live.open = false;
    await live.settled();
    if (folder !== "") await discard(folder);
    folder = "";
  }

  async function life(): Promise<void> {
    while (true) {
      const why = await opening();
      await tidy();
      if (why === undefined || left) return;
      if (left || hasEnded(live.run.state)) return;
      if ("gone" in why) {
        tries++;
        live.run.restarts++;
        if (tries > MAX_TRIES) {
          const message = `the GPU process ended ${tries} times without a new checkpoint, the last time by ${why.gone}`;
          return end(RunState.FAILED, refusal(status.INTERNAL, "GPU_PROCESS_ENDED", message));
        }
      }
      const { place, step } = await restart();
      live.run.step = step;
      append({ case: "warning", value: warningOf(why, from(place, step)) });
      if (live.wanted === "pause") changeState(runLog, live, RunState.PAUSING);
      await runLog.flush();
      if ("gone" in why)
        await delay(retryMs * 2 ** (tries - 1), undefined, { signal: live.giveUp.signal }).catch(() => {});
      if (left) return;
    }
  }

  return Object.assign(live, {
    over: life().catch(async (thrown) => {
      if (isDiskFull(thrown)) return pauseForRoom().catch(() => {});
      log("error", `${thrown}`, { run: live.run.name });
      await end(RunState.FAILED, INTERNAL()).catch(() => {});
    }),
  });
}

function warningOf(why: Reopening, from: string): { reason: string; message: string } {
  const goesOn = `the run goes on from ${from}, and`;
  if ("gone" in why) {
    const message = `the GPU process ended (${why.gone}); ${goesOn} later steps are repeated`;
    return { reason: "GPU_PROCESS_RESTARTED", message };
  }
  if ("damaged" in why) {
    return { reason: "CHECKPOINT_DAMAGED", message: `${why.damaged}; ${goesOn} later steps are repeated` };
  }
  const message = `${why.diverged}; ${goesOn} the batches it has seen since are passed over`;
  return { reason: "NON_FINITE_ROLLED_BACK", message };
}
