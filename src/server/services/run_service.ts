// RunService: runs as resources. StartRun and SteerRun are in run_streams.ts, on the handlers here.

import { create } from "@bufbuild/protobuf";
import { durationMs } from "@bufbuild/protobuf/wkt";
import { status } from "@grpc/grpc-js";
import { Priority, PrioritySchema, type Run, RunSchema } from "../../../proto/gen/thaw/v1/run_pb.ts";
import {
  CancelRunRequestSchema,
  CancelRunResponseSchema,
  type CreateRunRequest,
  CreateRunRequestSchema,
  type CreateRunResponse,
  CreateRunResponseSchema,
  DeleteRunRequestSchema,
  DeleteRunResponseSchema,
  PauseRunRequestSchema,
  PauseRunResponseSchema,
  ResumeRunRequestSchema,
  ResumeRunResponseSchema,
  type RunService,
  UpdateRunRequestSchema,
  UpdateRunResponseSchema,
  type WatchRunRequest,
} from "../../../proto/gen/thaw/v1/run_service_pb.ts";
import { RunState, RunStateSchema } from "../../../proto/gen/thaw/v1/run_state_pb.ts";
import type { Core } from "../core.ts";
import { StaleEtagError } from "../registry/registry.ts";
import { callerOf } from "../rpc/caller.ts";
import { refusal } from "../rpc/errors.ts";
import type { Handlers } from "../rpc/serve.ts";
import type { WatchPart } from "../runs/log.ts";
import { ALLOWED, notFound, requireState } from "../runs/states.ts";
import { discard } from "../storage/layout.ts";
import { knownEnum } from "../validation/plan.ts";
import {
  checkDisplayName,
  checkLabels,
  checkName,
  checkNewId,
  checkPage,
  checkRange,
  checkRequestId,
  collectProblems,
  type Problems,
  pageOf,
} from "../validation/problems.ts";
import { checkRunSpec } from "../validation/run_spec.ts";
import { admit, completeSpec, price } from "./complete_spec.ts";
import { forkRun } from "./fork_run.ts";
import { runStreams } from "./run_streams.ts";

const MAX_STATES = 32;
const MIN_PROGRESS_MS = 100;
const MAX_PROGRESS_MS = 3_600_000;

/** The unary handlers and the watch, as StartRun and SteerRun use them. */
export type RunHandlers = Omit<Handlers<typeof RunService>, "startRun" | "steerRun">;

export function runService(core: Core): Handlers<typeof RunService> {
  const { registry, runs, runLog, answers } = core;

  /** The run's id, after checking the two fields every command has, and what else `check` asks. */
  function commanded(
    request: { name: string; requestId: string },
    check: (problems: Problems) => void = () => {},
  ): string {
    const problems = collectProblems();
    const id = checkName(problems, "runs", request.name, "name");
    checkRequestId(problems, request.requestId);
    check(problems);
    problems.throwIfAny();
    return id;
  }

  const handlers: RunHandlers = {
    createRun: (request, { metadata }) => createRun(core, request, callerOf(metadata)),
    forkRun: (request, { metadata }) => forkRun(core, request, callerOf(metadata)),

    async getRun({ name }) {
      const problems = collectProblems();
      const id = checkName(problems, "runs", name, "name");
      problems.throwIfAny();
      return { run: (await runs.get(id)).run };
    },

    async listRuns(request) {
      const problems = collectProblems();
      const page = checkPage(problems, request);
      problems.require(request.states.length <= MAX_STATES, "states", `more than ${MAX_STATES}`);
      request.states.slice(0, MAX_STATES).forEach((state, index) => {
        knownEnum(problems, `states[${index}]`, RunStateSchema, state, true);
      });
      checkLabels(problems, request.labels, "labels");
      problems.throwIfAny();
      const { states, labels } = request;
      const found = await registry.runs({ states, labels, before: page.before, limit: page.size + 1 });
      const { items, next } = pageOf(found, page);
      return { runs: items.map(({ run }) => run), nextPageToken: next };
    },

    async updateRun(request) {
      const problems = collectProblems();
      const run = request.run ?? create(RunSchema);
      const paths = request.updateMask?.paths ?? [];
      const id = checkName(problems, "runs", run.name, "run.name");
      checkRequestId(problems, request.requestId);
      problems.require(paths.length > 0, "update_mask", "required: `display_name`, `labels`, or both");
      for (const path of paths) {
        const known = path === "display_name" || path === "labels";
        problems.require(known, "update_mask", `${JSON.stringify(path.slice(0, 64))} cannot be changed`);
      }
      checkDisplayName(problems, run.displayName, "run.display_name");
      checkLabels(problems, run.labels, "run.labels");
      problems.throwIfAny();
      const change = {
        displayName: paths.includes("display_name") ? run.displayName : undefined,
        labels: paths.includes("labels") ? run.labels : undefined,
      };
      const once = { schema: UpdateRunRequestSchema, body: request };
      return answers.once(request.requestId, once, UpdateRunResponseSchema, async (remember) => {
        const answer = remember && ((changed: Run) => remember(create(UpdateRunResponseSchema, { run: changed })));
        const changed = await guarded(registry.updateRun(id, run.etag, change, answer));
        if (!changed) throw notFound(run.name);
        return create(UpdateRunResponseSchema, { run: changed.run });
      });
    },

    async deleteRun(request) {
      const id = commanded(request);
      const once = { schema: DeleteRunRequestSchema, body: request };
      return answers.once(request.requestId, once, DeleteRunResponseSchema, async (remember) => {
        const { run } = await runs.get(id);
        requireState(run, ALLOWED.delete);
        const response = create(DeleteRunResponseSchema);
        await guarded(registry.deleteRun(id, request.etag, remember?.(response)));
        runLog.wake(id);
        await discard(core.checkpoints.directoryOf(id, ""));
        return response;
      });
    },

    async pauseRun(request) {
      const id = commanded(request);
      const once = { schema: PauseRunRequestSchema, body: request };
      return answers.once(request.requestId, once, PauseRunResponseSchema, async () =>
        create(PauseRunResponseSchema, await runs.pause(id)),
      );
    },

    async resumeRun(request) {
      const { stayPaused, pauseAtStep } = request;
      const id = commanded(request, (problems) => {
        const both = stayPaused && pauseAtStep !== 0n;
        problems.require(!both, "pause_at_step", "a run that stays paused takes no step: not beside `stay_paused`");
      });
      const once = { schema: ResumeRunRequestSchema, body: request };
      return answers.once(request.requestId, once, ResumeRunResponseSchema, async () =>
        create(ResumeRunResponseSchema, await runs.resume(id, stayPaused, pauseAtStep)),
      );
    },

    async cancelRun(request) {
      const id = commanded(request);
      const once = { schema: CancelRunRequestSchema, body: request };
      return answers.once(request.requestId, once, CancelRunResponseSchema, async () =>
        create(CancelRunResponseSchema, await runs.cancel(id)),
      );
    },

    async *watchRun(request, { signal }) {
      for await (const reply of watch(core, request, signal)) yield { reply };
    },
  };
  return { ...handlers, ...runStreams(core, handlers) };
}

/** The watch behind WatchRun, StartRun and SteerRun. */
export function watch(core: Core, request: WatchRunRequest, signal: AbortSignal): AsyncGenerator<WatchPart> {
  const problems = collectProblems();
  const id = checkWatch(problems, request);
  problems.throwIfAny();
  const { progressInterval } = request;
  const progressMs = progressInterval && durationMs(progressInterval);
  return core.runLog.watch(id, request.afterRevision, progressMs, signal);
}

function checkWatch(
  problems: Problems,
  { name, afterRevision, progressInterval }: WatchRunRequest,
  prefix = "",
): string {
  const id = checkName(problems, "runs", name, `${prefix}name`);
  checkRange(problems, `${prefix}after_revision`, afterRevision, 0, Number.MAX_SAFE_INTEGER);
  checkProgress(problems, progressInterval, `${prefix}progress_interval`);
  return id;
}

export function checkProgress(
  problems: Problems,
  interval: WatchRunRequest["progressInterval"],
  field = "progress_interval",
): void {
  if (!interval) return;
  const ms = durationMs(interval);
  const fits = ms >= MIN_PROGRESS_MS && ms <= MAX_PROGRESS_MS;
  problems.require(fits, field, "must be from 100 ms to 1 hour");
}

async function guarded<T>(change: Promise<T>): Promise<T> {
  try {
    return await change;
  } catch (error) {
    if (!(error instanceof StaleEtagError)) throw error;
    throw refusal(status.ABORTED, "STALE_ETAG", "the run has changed since that etag; read it again");
  }
}

async function createRun(core: Core, request: CreateRunRequest, owner: string): Promise<CreateRunResponse> {
  const problems = collectProblems();
  checkNewId(problems, request.runId, "run_id");
  checkRequestId(problems, request.requestId);
  checkDisplayName(problems, request.displayName, "display_name");
  checkLabels(problems, request.labels, "labels");
  checkRunSpec(problems, request.spec, "spec");
  knownEnum(problems, "priority", PrioritySchema, request.priority);
  problems.throwIfAny();

  const make = async () => {
    const spec = await completeSpec(core, request.spec!);
    const { displayName, labels, startPaused } = request;
    const priority = request.priority || Priority.NORMAL;
    const cost = await admit(core, spec);
    return { displayName, labels, priority, owner, startPaused, spec, trainable: spec.trainable, cost };
  };
  if (request.validateOnly) {
    const init = await make();
    const report = await price(core, init.spec);
    return create(CreateRunResponseSchema, { run: { ...init, state: RunState.QUEUED, cost: report.after }, report });
  }
  const once = { schema: CreateRunRequestSchema, body: request };
  return core.answers.once(request.requestId, once, CreateRunResponseSchema, async (remember) => {
    const answer = remember && ((run: Run) => remember(create(CreateRunResponseSchema, { run })));
    const { run } = await core.runs.create(request.runId, await make(), answer);
    return create(CreateRunResponseSchema, { run });
  });
}
