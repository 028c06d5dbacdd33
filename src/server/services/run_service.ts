// RunService: runs as resources. StartRun and SteerRun are in run_streams.ts, on the handlers here.

import { create } from "@bufbuild/protobuf";
import { durationMs } from "@bufbuild/protobuf/wkt";
import { status } from "@grpc/grpc-js";
import type { TrainableReport } from "../../../proto/gen/thaw/v1/group_pb.ts";
import { type Run, RunSchema, type RunSpec } from "../../../proto/gen/thaw/v1/run_pb.ts";
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
import { ModelTargetSchema, TargetSchema } from "../../../proto/gen/thaw/worker/v1/worker_pb.ts";
import type { Core } from "../core.ts";
import { forCaller } from "../gpu/failures.ts";
import { checkpointIn, idIn } from "../ids.ts";
import { StaleEtagError } from "../registry/registry.ts";
import { refusal } from "../rpc/errors.ts";
import type { Handlers } from "../rpc/serve.ts";
import type { WatchPart } from "../runs/log.ts";
import { ALLOWED, notFound, requireState } from "../runs/states.ts";
import { discard, modelDirectory } from "../storage/layout.ts";
import { checkMatches, knownEnum } from "../validation/plan.ts";
import {
  check,
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
import { checkRoutes } from "../validation/routing.ts";
import { checkRunSpec } from "../validation/run_spec.ts";
import { fillRunSpec } from "../worker/convert/run_spec.ts";
import { runStreams } from "./run_streams.ts";

const MAX_STATES = 32;
const MIN_PROGRESS_MS = 100;
const MAX_PROGRESS_MS = 3_600_000;

/** The unary handlers and the watch, as StartRun and SteerRun use them. */
export type RunHandlers = Omit<Handlers<typeof RunService>, "startRun" | "steerRun">;

export function runService(core: Core): Handlers<typeof RunService> {
  const { registry, runs, runLog, answers } = core;

  /** The run's id, after checking the two fields every command has. */
  function commanded(request: { name: string; requestId: string }): string {
    const problems = collectProblems();
    const id = checkName(problems, "runs", request.name, "name");
    checkRequestId(problems, request.requestId);
    problems.throwIfAny();
    return id;
  }

  const handlers: RunHandlers = {
    createRun: (request) => createRun(core, request),

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
      const id = commanded(request);
      const once = { schema: ResumeRunRequestSchema, body: request };
      return answers.once(request.requestId, once, ResumeRunResponseSchema, async () =>
        create(ResumeRunResponseSchema, await runs.resume(id)),
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

export function checkWatch(
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

async function createRun(core: Core, request: CreateRunRequest): Promise<CreateRunResponse> {
  const problems = collectProblems();
  checkNewId(problems, request.runId, "run_id");
  checkRequestId(problems, request.requestId);
  checkDisplayName(problems, request.displayName, "display_name");
  checkLabels(problems, request.labels, "labels");
  checkRunSpec(problems, request.spec, "spec");
  problems.throwIfAny();

  const make = async () => {
    const spec = await completeSpec(core, request.spec!);
    const { displayName, labels } = request;
    return { displayName, labels, spec, trainable: spec.trainable };
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

/** The spec with every default, after looking up what it refers to. @throws RpcError with everything that is missing */
async function completeSpec(core: Core, spec: RunSpec): Promise<RunSpec & Required<Pick<RunSpec, "trainable">>> {
  const { registry } = core;
  const model = await registry.model(idIn("models", spec.model)!);
  const dataset = await registry.dataset(idIn("datasets", spec.dataset)!);
  if (!model) throw notFound(spec.model);
  if (!dataset) throw notFound(spec.dataset);
  const splits = dataset.dataset.splits.map(({ name }) => name);
  const filled = fillRunSpec(spec, splits);
  check((problems) => {
    problems.require(splits.includes("train"), "spec.dataset", "has no split `train`");
    filled.evaluation.splits.forEach((split, index) => {
      problems.require(splits.includes(split), `spec.evaluation.splits[${index}]`, `${spec.dataset} has no such split`);
    });
    checkRoutes(problems, filled.routing, model.description, "spec.routing");
  });
  checkMatches(filled.trainable, model.description, "spec.trainable");
  if (spec.initialCheckpoint) await checkInitialCheckpoint(core, spec);
  return filled;
}

async function checkInitialCheckpoint({ registry }: Core, spec: RunSpec): Promise<void> {
  const ids = checkpointIn(spec.initialCheckpoint)!;
  const source = await registry.run(ids.run);
  if (!source || !(await registry.checkpoint(ids.run, ids.checkpoint))) throw notFound(spec.initialCheckpoint);
  check((problems) => {
    const from = source.run.spec?.model;
    problems.require(from === spec.model, "spec.initial_checkpoint", `its run started from ${from}`);
  });
}

/** What the first step would train and cost. */
async function price({ registry, layout, gpu }: Core, spec: RunSpec): Promise<TrainableReport> {
  const model = await registry.model(idIn("models", spec.model)!);
  const value = create(ModelTargetSchema, {
    directory: modelDirectory(layout, model!.directory),
    batchSize: spec.batchSize,
    maxInputTokens: spec.maxInputTokens,
    maxTargetTokens: spec.maxTargetTokens,
  });
  const target = create(TargetSchema, { target: { case: "model", value } });
  const reply = await forCaller(gpu.request({ case: "planTrainable", value: { target, plan: spec.trainable } }));
  if (reply.result.case !== "trainable") throw new Error(`PlanTrainable answered with ${reply.result.case}`);
  return reply.result.value;
}
