// Runs as resources with a life: every command on them. Which runs hold the GPU is the queue's to say, and a command on a
// run waits for the one before it (queue.ts).

import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { timestampNow } from "@bufbuild/protobuf/wkt";
import { status } from "@grpc/grpc-js";
import { type Checkpoint, CheckpointReason } from "../../../proto/gen/thaw/v1/checkpoint_pb.ts";
import type { EvaluationResult } from "../../../proto/gen/thaw/v1/evaluation_pb.ts";
import type { StepMetrics } from "../../../proto/gen/thaw/v1/event_pb.ts";
import {
  type TrainablePlan,
  type TrainableReport,
  TrainableReportSchema,
} from "../../../proto/gen/thaw/v1/group_pb.ts";
import { type Run, RunSchema } from "../../../proto/gen/thaw/v1/run_pb.ts";
import { RunState } from "../../../proto/gen/thaw/v1/run_state_pb.ts";
import type {
  ForwardBackwardRequest,
  ForwardBackwardResponse,
  OptimStepRequest,
} from "../../../proto/gen/thaw/v1/step_service_pb.ts";
import type { KernelUse } from "../../../proto/gen/thaw/v1/system_pb.ts";
import type { ModelTarget, Target } from "../../../proto/gen/thaw/worker/v1/worker_pb.ts";
import { ModelTargetSchema, TargetSchema } from "../../../proto/gen/thaw/worker/v1/worker_pb.ts";
import { asCallerError, forCaller, WorkerFailure, WorkerGone } from "../gpu/failures.ts";
import { idIn, newId } from "../ids.ts";
import { type Answer, NameTakenError, type RunRecord } from "../registry/registry.ts";
import { refusal } from "../rpc/errors.ts";
import type { Limits } from "../settings.ts";
import { modelDirectory } from "../storage/layout.ts";
import { invalidField } from "../validation/problems.ts";
import { fillRunSpec } from "../worker/convert/run_spec.ts";
import { interruptions } from "./interruptions.ts";
import { changeState, type Live, type LiveParts } from "./live.ts";
import { eventAt, type LiveRun } from "./log.ts";
import { runQueue } from "./queue.ts";
import { recoverRuns } from "./recovery.ts";
import { ALLOWED, hasEnded, notFound, requireState, wrongState } from "./states.ts";

const { QUEUED, STARTING, RUNNING, PAUSING, PAUSED, CANCELLING, CANCELLED } = RunState;

/** What a command did, and the step at which it takes, or took, effect. */
export interface Effect {
  readonly run: Run;
  readonly effectiveStep: bigint;
}

export interface Runs {
  /** Brings runs that a stop or a crash interrupted back into the queue, and begins. */
  start(): Promise<void>;
  get(id: string): Promise<RunRecord>;
  /** @param init a run without a name. @throws RpcError when the id is taken or the queue is full */
  create(
    id: string,
    init: MessageInitShape<typeof RunSchema>,
    answer: ((run: Run) => Answer) | undefined,
  ): Promise<RunRecord>;
  pause(id: string): Promise<Effect>;
  /**
   * @param stayPaused only onto the GPU
   * @param pauseAtStep where it pauses by itself again; 0 for nowhere
   * @throws RpcError INVALID_ARGUMENT for a step that it has passed or will not come to
   */
  resume(id: string, stayPaused: boolean, pauseAtStep: bigint): Promise<Effect>;
  cancel(id: string): Promise<Effect>;
  setTrainable(id: string, plan: TrainablePlan): Promise<TrainableReport>;
  save(id: string): Promise<Checkpoint>;
  /** Adds the gradients of a batch. @throws RpcError FAILED_PRECONDITION for a run that is not paused on the GPU */
  forwardBackward(id: string, request: ForwardBackwardRequest): Promise<ForwardBackwardResponse>;
  /** Takes a step on the gradients. @throws RpcError as forwardBackward does */
  optimStep(id: string, request: OptimStepRequest): Promise<StepMetrics>;
  /** Prices a plan on the run, on the GPU or as a model with the run's shapes. */
  plan(id: string, plan: TrainablePlan): Promise<TrainableReport>;
  /** Logs an evaluation that somebody asked for. */
  evaluated(id: string, result: EvaluationResult): Promise<void>;
  /** The open run as a worker's target; undefined when it is not on the GPU. */
  target(id: string): Target | undefined;
  /** The model a run started from, with the run's shapes and routing and a checkpoint's parameters. */
  modelTarget(run: Run, checkpointDirectory: string): Promise<ModelTarget>;
  /** What is on the GPU, and the device bytes planned for it. */
  readonly active: readonly {
    readonly name: string;
    readonly kernels: readonly KernelUse[];
    readonly allocatedBytes: bigint;
  }[];
  /** Checkpoints the runs on the GPU and puts them back into the queue; starts nothing more. */
  stop(): Promise<void>;
}

export function createRuns(parts: LiveParts, limits: Pick<Limits, "maxQueuedRuns" | "maxRunsOnGpu">): Runs {
  const { registry, gpu, runLog, checkpoints, log, layout } = parts;
  const queue = runQueue(parts, limits.maxRunsOnGpu);
  const { exclusively } = queue;
  const { stopStepping, saveInterrupted, close, takeOff } = interruptions(parts);

  /** One that reads and changes how the run stands, which the disk must know before. */
  function command<T>(id: string, work: () => Promise<T>): Promise<T> {
    return exclusively(id, async () => {
      await runLog.caughtUp(`runs/${id}`);
      return work();
    });
  }

  /** Work that a command leaves behind it; later commands wait for it. */
  function afterwards(id: string, work: () => Promise<void>): void {
    exclusively(id, work).catch((error) => log("error", `${error}`, { run: `runs/${id}` }));
  }

  async function get(id: string): Promise<RunRecord> {
    const record = await registry.run(id);
    if (!record) throw notFound(`runs/${id}`);
    return record;
  }

  const activeRun = (id: string): Live | undefined => queue.active.find(({ run }) => run.name === `runs/${id}`);
  /** The run as it is: in memory while it holds the GPU, else from the registry. */
  const present = async (id: string): Promise<LiveRun> => activeRun(id) ?? get(id);

  /** The run, paused on the GPU, whose steps somebody else takes. */
  async function driven(id: string): Promise<Live> {
    const live = await present(id);
    requireState(live.run, ALLOWED.drive);
    const on = activeRun(id);
    if (on?.open) return on;
    throw wrongState(live.run, ALLOWED.drive, "it is not on the GPU; ResumeRun with stay_paused takes it there");
  }

  function checkPauseAt({ step, spec }: Run, pauseAtStep: bigint): void {
    if (pauseAtStep === 0n || (pauseAtStep > step && pauseAtStep < spec!.steps)) return;
    throw invalidField("pause_at_step", `must be above the run's step, ${step}, and below its ${spec!.steps} steps`);
  }

  async function settledState(live: LiveRun, to: RunState): Promise<Effect> {
    changeState(runLog, live, to);
    if (hasEnded(to)) parts.onEnd(live.run.name);
    await runLog.flush();
    return effect(live);
  }

  const effect = async (live: LiveRun): Promise<Effect> => ({
    run: (await get(idIn("runs", live.run.name)!)).run,
    effectiveStep: live.run.step,
  });

  const runs: Runs = {
    async start() {
      await recoverRuns(registry, runLog, checkpoints);
      queue.schedule();
    },

    get,

    async create(id, init, answer) {
      const queued = await registry.runsInStates([QUEUED]);
      if (queued.length >= Math.max(limits.maxQueuedRuns, queue.active.length > 0 ? 0 : 1)) {
        throw refusal(
          status.RESOURCE_EXHAUSTED,
          "QUEUE_FULL",
          `${limits.maxQueuedRuns} runs wait already`,
          {
            limit: String(limits.maxQueuedRuns),
          },
          30,
        );
      }
      const name = `runs/${id || newId("run")}`;
      const run = create(RunSchema, { ...init, name, state: QUEUED, createTime: timestampNow() });
      try {
        const first = { event: eventAt(run.step, { case: "state", value: { to: QUEUED } }) };
        const record = await registry.createRun(run, first, answer);
        queue.schedule();
        return record;
      } catch (error) {
        if (!(error instanceof NameTakenError)) throw error;
        throw refusal(status.ALREADY_EXISTS, "NAME_TAKEN", `${name} exists`, { name });
      }
    },

    pause: (id) =>
      command(id, async () => {
        const live = await present(id);
        requireState(live.run, ALLOWED.pause);
        const on = activeRun(id);
        if (!on) return settledState(live, PAUSED);
        on.wanted = "pause";
        const wasRunning = on.run.state === RUNNING;
        changeState(runLog, on, PAUSING);
        if (!wasRunning) {
          await runLog.flush();
          return effect(on);
        }
        const stopped = await forCaller(stopStepping(on));
        if (hasEnded(on.run.state)) throw wrongState(on.run, ALLOWED.pause, "it ended before it could pause");
        if (!stopped) return effect(on);
        const paused = await settledState(on, PAUSED);
        afterwards(id, async () => {
          if (on.open && on.run.state === PAUSED) await saveInterrupted(on);
        });
        return paused;
      }),

    resume: (id, stayPaused, pauseAtStep) =>
      command(id, async () => {
        const live = await present(id);
        requireState(live.run, ALLOWED.resume);
        checkPauseAt(live.run, pauseAtStep);
        const on = activeRun(id);
        // One that is leaving the GPU goes back to it by the queue, when it has left.
        const leaving = on?.giveUp.signal.aborted;
        if (on && stayPaused && !leaving) return effect(on);
        live.run.startPaused = stayPaused;
        live.run.pauseAtStep = pauseAtStep;
        if (!on || leaving) {
          const resumed = await settledState(live, QUEUED);
          queue.schedule();
          return resumed;
        }
        on.wanted = "run";
        // Not open yet, or not any more: it will step once it is.
        if (on.run.state === PAUSING || !on.open) return settledState(on, STARTING);
        const { step } = on.run;
        changeState(runLog, on, RUNNING);
        try {
          await gpu.request({ case: "resume", value: { run: on.run.name, pauseAtStep } });
        } catch (error) {
          // No room any more for the programs of its own steps.
          if (error instanceof WorkerFailure && error.error.case === "outOfMemory") {
            on.wanted = "pause";
            await settledState(on, PAUSED);
          }
          // The process ended meanwhile: the run is opened again, and steps then.
          if (on.open && !(error instanceof WorkerGone)) throw asCallerError(error);
        }
        await runLog.flush();
        return { ...(await effect(on)), effectiveStep: step };
      }),

    cancel: (id) =>
      command(id, async () => {
        const live = await present(id);
        requireState(live.run, ALLOWED.cancel);
        const on = activeRun(id);
        if (!on) return settledState(live, CANCELLED);
        on.wanted = "cancel";
        changeState(runLog, on, CANCELLING);
        const stopped = on.open && (await forCaller(stopStepping(on)));
        await runLog.flush();
        const answer = await effect(on);
        if (stopped) afterwards(id, () => close(on));
        else on.release();
        return answer;
      }),

    setTrainable: (id, plan) =>
      command(id, async () => {
        const live = await present(id);
        requireState(live.run, ALLOWED.setTrainable);
        const on = activeRun(id);
        if (on?.open) {
          const set = { case: "setTrainable" as const, value: { run: on.run.name, plan } };
          const reply = await forCaller(gpu.request(set));
          await on.settled();
          await runLog.flush();
          if (reply.result.case !== "trainable") throw new Error(`SetTrainable answered with ${reply.result.case}`);
          return reply.result.value;
        }
        const priced = await runs.plan(id, plan);
        const report = create(TrainableReportSchema, { ...priced, effectiveStep: live.run.step });
        live.run.trainable = plan;
        live.run.cost = report.after;
        live.report = report;
        runLog.append(live, { case: "trainable", value: { plan, report } });
        await runLog.flush();
        return report;
      }),

    save: (id) =>
      command(id, async () => {
        const live = await present(id);
        requireState(live.run, ALLOWED.saveCheckpoint);
        const on = activeRun(id);
        if (!on?.open) throw wrongState(live.run, ALLOWED.saveCheckpoint, "it is not on the GPU; resume it first");
        return forCaller(checkpoints.save(on, CheckpointReason.REQUESTED));
      }),

    forwardBackward: (id, request) =>
      exclusively(id, async () => {
        await driven(id);
        const { result } = await forCaller(gpu.request({ case: "forwardBackward", value: request }));
        if (result.case !== "forwardBackward") throw new Error(`ForwardBackward answered with ${result.case}`);
        return result.value;
      }),

    optimStep: (id, request) =>
      exclusively(id, async () => {
        const on = await driven(id);
        const { result } = await forCaller(gpu.request({ case: "optimStep", value: request }));
        if (result.case !== "optimStep") throw new Error(`OptimStep answered with ${result.case}`);
        await on.settled();
        await runLog.flush();
        return result.value.metrics!;
      }),

    async plan(id, plan) {
      const { run } = await present(id);
      const target = runs.target(id) ?? create(TargetSchema, { target: { case: "model", value: await modelOf(run) } });
      const value = { target, plan, spec: run.spec };
      const reply = await forCaller(gpu.request({ case: "planTrainable", value }));
      if (reply.result.case !== "trainable") throw new Error(`PlanTrainable answered with ${reply.result.case}`);
      return reply.result.value;
    },

    async evaluated(id, result) {
      const on = activeRun(id);
      if (!on) return;
      await on.settled();
      runLog.append(on, { case: "evaluation", value: result });
      await runLog.flush();
    },

    target: (id) =>
      activeRun(id)?.open ? create(TargetSchema, { target: { case: "run", value: `runs/${id}` } }) : undefined,

    async modelTarget(run, checkpointDirectory) {
      // Filled again: a run of an older server may lack what is new since.
      const { routing } = fillRunSpec(run.spec!, []);
      return create(ModelTargetSchema, { ...(await modelOf(run)), checkpointDirectory, routing });
    },

    get active() {
      return queue.active.map(({ run, kernels }) => ({
        name: run.name,
        kernels,
        allocatedBytes: run.cost?.peakBytes ?? 0n,
      }));
    },

    async stop() {
      const message = "the server was stopped; the run goes on when it starts again";
      for (const on of await queue.halt()) {
        const { name } = on.run;
        const leaves = exclusively(idIn("runs", name)!, () => takeOff(on, "SERVER_STOPPED", message));
        await leaves.catch((error) => log("error", `stopping: ${error}`, { run: name })); // The others leave all the same.
      }
      await runLog.flush();
    },
  };

  async function modelOf(run: Run): Promise<ModelTarget> {
    const spec = run.spec!;
    const model = await registry.model(idIn("models", spec.model) ?? "");
    if (!model) throw notFound(spec.model);
    return create(ModelTargetSchema, {
      directory: modelDirectory(layout, model.directory),
      batchSize: spec.batchSize,
      maxInputTokens: spec.maxInputTokens,
      maxTargetTokens: spec.maxTargetTokens,
    });
  }

  gpu.onUp = queue.schedule;
  runLog.onCaughtUp = queue.schedule;
  gpu.onGone = (how) => {
    for (const on of queue.active) on.gone(how);
  };
  gpu.onUpdate = (update) => {
    if (update.update.case === "routes") parts.onRoutes(update.run, update.update.value);
    else if (update.update.case === "routesLeftOut")
      parts.onRoutesLeftOut(update.run, Number(update.update.value.slices));
    else queue.active.find(({ run }) => run.name === update.run)?.update(update);
  };
  return runs;
}
