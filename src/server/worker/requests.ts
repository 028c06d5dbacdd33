// What each request does. Called between two steps, one at a time.

import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { RouteReferenceSchema } from "../../../proto/gen/thaw/v1/routing_pb.ts";
import type { RunSpec } from "../../../proto/gen/thaw/v1/run_pb.ts";
import type * as proto from "../../../proto/gen/thaw/worker/v1/worker_pb.ts";
import { type ReplySchema, RunOpenedSchema } from "../../../proto/gen/thaw/worker/v1/worker_pb.ts";
import type {
  Decoding,
  Engine,
  Generation,
  ModelDescription,
  RouteBatch,
  TrainablePlan,
  TrainableReport,
  TrainingRun,
} from "../../trainer/types.ts";
import { type ActiveRun, openActiveRun, type RunUpdateBody } from "./active_run.ts";
import { fillDirectory } from "./checkpoint_directory.ts";
import { checkpointStep } from "./checkpoint_state.ts";
import { decodingFromProto } from "./convert/decoding.ts";
import { drivenBatchToProto, drivenExample } from "./convert/driven.ts";
import { evaluationToProto, metricsToProto } from "./convert/metrics.ts";
import { descriptionToProto, generationToProto } from "./convert/model.ts";
import { planFromProto, planToProto } from "./convert/plan.ts";
import { costToProto, reportToProto, tensorToProto } from "./convert/report.ts";
import { count } from "./convert/scalars.ts";
import { scoringFromProto } from "./convert/task.ts";
import { WrongStateError } from "./errors.ts";
import type { ModelCache } from "./model_cache.ts";
import { subscribeRoutes } from "./route_subscription.ts";

export type Request = proto.ToWorker["request"];
export type ReplyResult = NonNullable<MessageInitShape<typeof ReplySchema>["result"]>;

/** What can be learnt of a model directory on the host, without opening it on the device. */
export interface HostModels {
  describe(directory: string): Promise<ModelDescription>;
  /** @param spec whose optimizer, routing and losses the steps have; the defaults when unset */
  plan(target: proto.ModelTarget, plan: TrainablePlan, spec: RunSpec | undefined): Promise<TrainableReport>;
}

/** What requests work on. */
export interface WorkerState {
  readonly engine: Engine;
  readonly host: HostModels;
  readonly models: ModelCache;
  /** The open ones, by name. */
  readonly runs: Map<string, ActiveRun>;
  readonly sendUpdate: (run: string, step: number, update: RunUpdateBody) => void;
  readonly backlogBytes: () => number;
}

export interface Answer {
  /** Sends a reply; the last one without `more`. */
  readonly reply: (result: ReplyResult, more?: boolean) => void;
  /** Whether the request has been given up meanwhile; replies then go nowhere. */
  readonly cancelled: () => boolean;
}

/** Requests that change nothing, or can be undone: these can be given up while they are carried out. */
const CANCELLABLE: ReadonlySet<Request["case"]> = new Set([
  "openRun",
  "planTrainable",
  "evaluate",
  "generate",
  "describeModel",
]);
/** Requests that leave a run which cannot be trusted when they break off half-way. */
const CHANGES_RUN: ReadonlySet<Request["case"]> = new Set(["resume", "setTrainable", "forwardBackward", "optimStep"]);
/** The name of the run that a request changes. */
export const changedRun = ({ case: kind, value }: Request): string =>
  CHANGES_RUN.has(kind) && value && "run" in value && typeof value.run === "string" ? value.run : "";

export const cancellable = (request: Request): boolean => CANCELLABLE.has(request.case);

/** Requests that ask about a model directory: they touch neither a run nor the device, and need not wait for either. */
export const needsNoGpu = (request: Request): boolean =>
  request.case === "describeModel" ||
  (request.case === "planTrainable" && request.value.target?.target.case === "model");

/** Carries out one request. @throws what the request fails with */
export async function carryOut(state: WorkerState, request: Request, answer: Answer): Promise<void> {
  const { reply } = answer;
  switch (request.case) {
    case "openRun":
      return openRun(state, request.value, answer);
    case "pause":
    case "resume": {
      const run = runNamed(state, request.value.run);
      if (request.case === "resume") {
        await run.training.endDriving();
        run.pauseAt = Number(request.value.pauseAtStep) || undefined;
      }
      run.stepping = request.case === "resume";
      return reply({ case: "stepping", value: { step: count(run.step) } });
    }
    case "closeRun": {
      const run = runNamed(state, request.value.run);
      state.runs.delete(run.name);
      await run.close();
      return reply({ case: "stepping", value: { step: count(run.step) } });
    }
    case "planTrainable": {
      const { target, plan, spec } = request.value;
      const { run, model } = targetOf(state, target);
      const wanted = planFromProto(plan);
      const report = run ? run.training.planTrainable(wanted) : await state.host.plan(model, wanted, spec);
      return reply({ case: "trainable", value: reportToProto(report) });
    }
    case "setTrainable":
      return setTrainable(state, request.value, answer);
    case "forwardBackward": {
      const { examples, targetTokens, recordRoutes } = request.value;
      const run = drivenRun(state, request.value);
      const { recordings, training } = run;
      const told = examples.map((example, i) => drivenExample(example, i, recordings));
      const batch = await training.forwardBackward(told, { divisor: Number(targetTokens) || undefined, recordRoutes });
      const recording = recordRoutes ? recordings.keep(batch.routes) : "";
      return reply({ case: "forwardBackward", value: drivenBatchToProto(run.step, batch, recording) });
    }
    case "optimStep": {
      const { batches, learningRate } = request.value;
      const run = drivenRun(state, request.value);
      const added = run.training.drivenBatches;
      if (added === 0) throw new WrongStateError(`${run.name} has no gradients: ForwardBackward adds them`);
      if (batches > 0n && added !== Number(batches))
        throw new WrongStateError(`${run.name} has the gradients of ${added} batches, not of ${batches}`);
      const metrics = metricsToProto(await run.optimStep(learningRate));
      return reply({ case: "optimStep", value: { metrics } });
    }
    case "saveCheckpoint": {
      const { training, step } = runNamed(state, request.value.run);
      const { directory } = request.value;
      const { bytes } = await fillDirectory(directory, () => training.saveCheckpoint(directory));
      return reply({ case: "written", value: { step: count(step), sizeBytes: count(bytes) } });
    }
    case "exportModel":
      return exportModel(state, request.value, answer);
    case "evaluate": {
      const { target, file, split, maxExamples, task } = request.value;
      const scoring = scoringFromProto(task);
      const result = await withTarget(state, target, (model) =>
        model.evaluate(file, split, Number(maxExamples), scoring),
      );
      return reply({ case: "evaluation", value: evaluationToProto(result, "") });
    }
    case "generate":
      return generate(state, request.value, answer);
    case "describeModel":
      return reply({
        case: "description",
        value: descriptionToProto(await state.host.describe(request.value.directory)),
      });
    case "subscribeRoutes": {
      const run = runNamed(state, request.value.run);
      stopRoutes(run);
      const subscription = subscribeRoutes(request.value, {
        backlogBytes: state.backlogBytes,
        send: (slice) => state.sendUpdate(run.name, Number(slice.step), { case: "routes", value: slice }),
        leftOut: (slices) =>
          state.sendUpdate(run.name, run.step, { case: "routesLeftOut", value: { slices: count(slices) } }),
        warn: (message) =>
          state.sendUpdate(run.name, run.step, { case: "warning", value: { reason: "ROUTES_DROPPED", message } }),
      });
      run.routes = subscription;
      run.training.onRoutes = subscription.offer;
      return reply({ case: "done", value: {} });
    }
    case "unsubscribeRoutes":
      stopRoutes(runNamed(state, request.value.run));
      return reply({ case: "done", value: {} });
    case "cancelRequest":
    case "shutdown":
      throw new Error(`${request.case} is not carried out between steps`);
    case undefined:
      throw new Error("the request is empty, or of a kind that this version does not know");
  }
}

async function openRun(state: WorkerState, request: proto.OpenRun, { reply, cancelled }: Answer): Promise<void> {
  if (state.runs.has(request.run)) throw new WrongStateError(`${request.run} is open already`);
  state.models.close(); // its memory may be needed
  const send = (step: number, update: RunUpdateBody) => state.sendUpdate(request.run, step, update);
  const run = await openActiveRun(state.engine, request, send, cancelled);
  if (cancelled()) return run.close();
  state.runs.set(run.name, run);
  const { training } = run;
  const opened = create(RunOpenedSchema, {
    step: count(run.step),
    trainable: planToProto(training.plan),
    matched: training.trainable.map(tensorToProto),
    cost: costToProto(training.cost),
    data: {
      examples: count(training.data.examples),
      truncatedInputs: count(training.data.truncatedInputs),
      truncatedTargets: count(training.data.truncatedTargets),
      paddingShare: training.data.padding,
      batchShapes: training.data.shapes.map(({ input, target, share }) => ({
        inputTokens: count(input),
        targetTokens: count(target),
        share,
      })),
    },
    kernels: kernelsOf(training),
  });
  reply({ case: "opened", value: opened });
}

/** Kernels of a training step, by name. */
function kernelsOf(training: TrainingRun) {
  const kernels = [...training.kernels].sort(([a], [b]) => (a < b ? -1 : 1));
  return kernels.map(([kernel, dispatches]) => ({ kernel, dispatches: count(dispatches) }));
}

async function setTrainable(state: WorkerState, request: proto.SetTrainable, { reply }: Answer): Promise<void> {
  const run = runNamed(state, request.run);
  const plan = planFromProto(request.plan);
  const report = reportToProto(await run.training.setTrainable(plan));
  state.sendUpdate(run.name, run.step, { case: "trainable", value: { plan: planToProto(plan), report } });
  reply({ case: "trainable", value: report });
}

async function exportModel(state: WorkerState, request: proto.ExportModel, { reply }: Answer): Promise<void> {
  const { directory } = request;
  const { run, model } = targetOf(state, request.target);
  const { bytes } = await fillDirectory(directory, () =>
    withTarget(state, request.target, (training) => training.exportModel(directory)),
  );
  let step = run?.step ?? 0;
  if (model?.checkpointDirectory) step = await checkpointStep(model.checkpointDirectory);
  reply({ case: "written", value: { step: count(step), sizeBytes: count(bytes) } });
}

/** A batch of inputs at a time, so that answers stream and the request can be given up in between. */
async function generate(state: WorkerState, request: proto.Generate, { reply, cancelled }: Answer): Promise<void> {
  const { inputs, includeRoutes, recordRoutes } = request;
  const { run, model } = targetOf(state, request.target);
  const batchSize = run ? run.batchSize : Number(model.batchSize);
  const maxNewTokens = Number(request.maxNewTokens);
  const decoding = decodingFromProto(request.decoding);
  await withTarget(state, request.target, async (training) => {
    const listener = training.onRoutes;
    try {
      for (let first = 0; first < inputs.length && !cancelled(); first += batchSize) {
        training.onRoutes = listener && ((batch) => listener(shifted(batch, first)));
        const options = { maxNewTokens, decoding: decodingAt(decoding, first) };
        const generations = await training.generate(inputs.slice(first, first + batchSize), options);
        const recording = recordRoutes && run?.recordings.keep(generations.map(({ routes }) => routes));
        generations.forEach((generation, i) => {
          const index = first + i;
          const value = generationToProto(withShiftedRoutes(generation, first), index, includeRoutes);
          if (recording) value.recorded = create(RouteReferenceSchema, { recording, example: i });
          reply({ case: "generation", value }, index + 1 < inputs.length);
        });
      }
    } finally {
      training.onRoutes = listener;
    }
  });
}

/** The trainer draws by seed and place in the batch: without a seed for each batch, equal inputs would be answered alike. */
const decodingAt = (decoding: Decoding, first: number): Decoding =>
  decoding.kind === "sample" ? { ...decoding, seed: (decoding.seed + first) % 2 ** 32 } : decoding;

/** Example ids count from the first input of the request. */
const shifted = (batch: RouteBatch, by: number): RouteBatch =>
  by === 0 ? batch : { ...batch, exampleIds: batch.exampleIds.map((id) => id + by) };

const withShiftedRoutes = (generation: Generation, by: number): Generation => ({
  ...generation,
  routes: generation.routes.map((batch) => shifted(batch, by)),
});

function stopRoutes(run: ActiveRun): void {
  run.training.onRoutes = undefined;
  run.routes?.end();
  run.routes = undefined;
}

function runNamed(state: WorkerState, name: string): ActiveRun {
  const run = state.runs.get(name);
  if (!run) throw new WrongStateError(`${name} is not open on this worker`);
  return run;
}

/** An open run that does not step by itself, at the step that the caller takes it to be at. */
function drivenRun(
  state: WorkerState,
  { run: name, step }: { readonly run: string; readonly step?: bigint },
): ActiveRun {
  const run = runNamed(state, name);
  if (run.stepping) throw new WrongStateError(`${name} steps by itself; pause it first`);
  if (step !== undefined && run.step !== Number(step))
    throw new WrongStateError(`${name} is at step ${run.step}, not at ${step}`);
  return run;
}

type ResolvedTarget =
  | { readonly run: ActiveRun; readonly model?: undefined }
  | { readonly run?: undefined; readonly model: proto.ModelTarget };

function targetOf(state: WorkerState, target: proto.Target | undefined): ResolvedTarget {
  switch (target?.target.case) {
    case "run":
      return { run: runNamed(state, target.target.value) };
    case "model":
      return { model: target.target.value };
    default:
      throw new Error("the request has no target");
  }
}

function withTarget<R>(
  state: WorkerState,
  target: proto.Target | undefined,
  work: (training: TrainingRun) => Promise<R>,
): Promise<R> {
  const { run, model } = targetOf(state, target);
  return run ? work(run.training) : state.models.use(model, work);
}
