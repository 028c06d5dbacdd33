// A run on this worker and what is to be done next for it: a step, a checkpoint or an evaluation of its policy, or its end.
// One `advance()` does one such thing, so that the loop can look for requests in between.
//
// Up to two steps are in flight, so that the device has work while the host reads the last one's results. Checkpoints and
// evaluations wait for both. A checkpoint comes before the evaluations of the same step: what fails then loses no training.
// A run that goes on from a checkpoint repeats the evaluations of its step, which may not have been reached.

import type { MessageInitShape } from "@bufbuild/protobuf";
import { CheckpointReason } from "../../../proto/gen/thaw/v1/checkpoint_pb.ts";
import type { OpenRun, RunUpdateSchema } from "../../../proto/gen/thaw/worker/v1/worker_pb.ts";
import { failpoint } from "../../failpoints.ts";
import { verifyCheckpoint } from "../../trainer/run/verify_checkpoint.ts";
import {
  type Engine,
  type EvaluationResult,
  InputError,
  type StepMetrics,
  type TrainingRun,
} from "../../trainer/types.ts";
import { newCheckpointDirectory, sweepPartialCheckpoints } from "./checkpoint_directory.ts";
import { evaluationToProto, metricsToProto } from "./convert/metrics.ts";
import { openRunToConfig, type RunPolicy } from "./convert/run_config.ts";
import { count, durationOf } from "./convert/scalars.ts";
import { reportEncoding } from "./encoding_reports.ts";
import { CancelledError, DIVERGENCE_REMEDY, DivergedError } from "./errors.ts";
import { watchOverfitting } from "./overfitting.ts";
import { keepRecordings, type Recordings } from "./recordings.ts";
import type { RouteSubscription } from "./route_subscription.ts";

const STEPS_IN_FLIGHT = 2;
/** Steps in a row without a finite loss and gradient that end a run which skips them. */
const MOST_SKIPPED = 8;

export type RunUpdateBody = NonNullable<MessageInitShape<typeof RunUpdateSchema>["update"]>;

export interface ActiveRun {
  /** `runs/{run}` */
  readonly name: string;
  readonly training: TrainingRun;
  /** Its turns for each turn of a run of weight 1. */
  readonly weight: number;
  /** Examples at a time, in generation too. */
  readonly batchSize: number;
  /** Whether it steps; false while paused. */
  stepping: boolean;
  /** The step after which it pauses by itself. */
  pauseAt: number | undefined;
  routes: RouteSubscription | undefined;
  /** Routes to be replayed. */
  readonly recordings: Recordings;
  /** Steps whose metrics have arrived. */
  readonly step: number;
  /** Whether `advance` has something to do now. */
  readonly ready: boolean;
  /** Does one thing. @throws whatever makes the run fail */
  advance(): Promise<void>;
  /** Takes a step of a caller's loop and sends its metrics; what the policy wants waits until the run steps again. */
  optimStep(rate: number | undefined): Promise<StepMetrics>;
  /** Waits for the steps in flight; needed before any other call of `training`. @throws what made one of them fail */
  settle(): Promise<void>;
  /** Waits for the steps in flight, whatever comes of them, and frees the run. */
  close(): Promise<void>;
}

/**
 * @param send takes the updates of the run, in the order in which things happened, with the step they happened at
 * @param cancelled whether the run is no longer wanted; asked while its data is tokenised
 * @throws CancelledError then; DamagedCheckpointError when the checkpoint it is to go on from is not whole
 */
export async function openActiveRun(
  engine: Engine,
  open: OpenRun,
  send: (step: number, update: RunUpdateBody) => void,
  cancelled: () => boolean,
): Promise<ActiveRun> {
  const { config, policy } = openRunToConfig(open);
  const resumed = open.resumeDirectory || undefined;
  await sweepPartialCheckpoints(open.checkpointsDirectory);
  if (resumed) await verifyCheckpoint(resumed);
  const report = reportEncoding(open.datasets, (value) => send(0, { case: "preparation", value }));
  const training = await engine.openRun(config, resumed, (file, progress) => {
    if (cancelled()) throw new CancelledError();
    report(file, progress);
  });

  let asked = training.step;
  let arrived = training.step;
  let finished = false;
  /** Steps in a row that were skipped. */
  let skipped = 0;
  /** The step after which the run ends. */
  let last = policy.steps;
  const watch = policy.overfitting && watchOverfitting(policy.overfitting, open.overfitting, asked);
  if (open.overfitting?.stops && Number(open.overfitting.step) <= asked) last = asked;
  let failure: { readonly error: unknown } | undefined;
  const inFlight: Promise<void>[] = [];
  const tasks: Task[] = [];
  if (asked >= last) planTasks();
  else if (asked > 0 ? evaluationDue(policy, asked) : policy.evaluateAtStart) tasks.push(...evaluations(policy));

  /** What the policy wants after step `asked`. */
  function planTasks(): void {
    const ends = asked >= last;
    if (ends) tasks.push({ checkpoint: CheckpointReason.FINAL });
    else if (isMultiple(asked, policy.checkpointEverySteps)) tasks.push({ checkpoint: CheckpointReason.POLICY });
    else if (asked === run.pauseAt) tasks.push({ checkpoint: CheckpointReason.INTERRUPTED });
    if (ends || evaluationDue(policy, asked)) tasks.push(...evaluations(policy));
  }

  function launch(): void {
    failpoint("worker.step");
    // Each waits for the one before, so they arrive, and leave the list, in order.
    const arrival = arrive(training.trainStep(), inFlight.at(-1));
    const step = arrival.then(() => {
      inFlight.shift();
    });
    inFlight.push(step);
    asked++;
    planTasks();
  }

  async function arrive(result: Promise<StepMetrics>, previous: Promise<void> | undefined): Promise<void> {
    try {
      const [metrics] = await Promise.all([result, previous]);
      if (failure) return;
      arrived = metrics.step;
      send(arrived, { case: "metrics", value: metricsToProto(metrics) });
      watch?.trained(metrics.loss);
      checkFinite(metrics);
    } catch (error) {
      failure ??= { error };
    }
  }

  /**
   * @throws InputError where the policy is to stop, or too many steps in a row were skipped: the remedy is the caller's
   * @throws DivergedError where the policy is to go back, which is the server's to do: it has the checkpoints
   */
  function checkFinite(metrics: StepMetrics): void {
    const what = nonFinite(metrics);
    skipped = what === "" ? 0 : skipped + 1;
    if (what === "") return;
    const skips = policy.nonFinite === "skip";
    if (skips && skipped < MOST_SKIPPED) {
      const message = `step ${metrics.step} changed nothing: ${what}`;
      send(arrived, { case: "warning", value: { reason: "NON_FINITE_STEP_SKIPPED", message } });
      return;
    }
    const times = skips ? `, the ${skipped}th time in a row` : "";
    const diverged = `training diverged at step ${metrics.step}: ${what}${times}`;
    if (policy.nonFinite === "rollback") throw new DivergedError(metrics.step, diverged);
    throw new InputError([{ field: "spec.optimizer", message: `${diverged}; ${DIVERGENCE_REMEDY}` }]);
  }

  async function settle(): Promise<void> {
    await Promise.all(inFlight);
    if (failure) throw failure.error;
  }

  async function perform(task: Task): Promise<void> {
    if ("checkpoint" in task) {
      const started = performance.now();
      let bytes = 0;
      const directory = await newCheckpointDirectory(open.checkpointsDirectory, asked, async (partial) => {
        bytes = (await training.saveCheckpoint(partial)).bytes;
      });
      const duration = durationOf((performance.now() - started) / 1000);
      send(asked, {
        case: "checkpoint",
        value: { directory, sizeBytes: count(bytes), reason: task.checkpoint, duration },
      });
    } else {
      const result = await training.evaluate(task.file, task.split, policy.evaluateExamples, task.scoring);
      send(asked, { case: "evaluation", value: evaluationToProto(result, task.dataset) });
      if (task === policy.evaluateSplits[0]) judge(result);
    }
  }

  /** What the watched split's evaluation means for the run. */
  function judge(result: EvaluationResult): void {
    if (!watch) return;
    const { report, improved } = watch.evaluated(result);
    send(asked, { case: "overfitting", value: report });
    if (improved && policy.overfitting?.keepBest) tasks.unshift({ checkpoint: CheckpointReason.BEST });
    if (!report.stops || asked >= last) return;
    last = asked;
    tasks.push({ checkpoint: CheckpointReason.FINAL });
  }

  const run: ActiveRun = {
    name: open.run,
    training,
    weight: open.weight || 1,
    batchSize: config.batchSize,
    stepping: !open.paused,
    pauseAt: undefined,
    routes: undefined,
    recordings: keepRecordings(),
    get step() {
      return arrived;
    },
    get ready() {
      return run.stepping && !finished;
    },
    async advance() {
      if (failure) throw failure.error;
      if (tasks.length > 0 || asked >= last) {
        await settle();
        const task = tasks.shift();
        if (task) return perform(task);
        finished = true;
        run.routes?.end(); // what it has to say belongs into the log, which ends here
        send(asked, { case: "finished", value: {} });
      } else if (asked === run.pauseAt) {
        await settle();
        run.stepping = false;
        run.pauseAt = undefined;
        send(asked, { case: "paused", value: {} });
      } else if (inFlight.length >= STEPS_IN_FLIGHT) await inFlight[0];
      else launch();
    },
    async optimStep(rate) {
      const metrics = await training.optimStep(rate);
      asked = metrics.step;
      arrived = metrics.step;
      send(arrived, { case: "metrics", value: metricsToProto(metrics) });
      watch?.trained(metrics.loss);
      if (asked === last) planTasks();
      return metrics;
    },
    settle,
    async close() {
      await Promise.all(inFlight);
      run.routes?.end();
      training.onRoutes = undefined;
      training.close();
    },
  };
  return run;
}

type Task = { readonly checkpoint: CheckpointReason } | RunPolicy["evaluateSplits"][number];

const isMultiple = (step: number, every: number): boolean => every > 0 && step % every === 0;
const evaluationDue = (policy: RunPolicy, step: number): boolean => isMultiple(step, policy.evaluateEverySteps);
const evaluations = (policy: RunPolicy): Task[] => [...policy.evaluateSplits];

/** What of a step is not finite, in words; empty when everything is, or when only the scaled gradient overflowed. */
function nonFinite({ loss, totalLoss, gradientNorm, lossScale }: StepMetrics): string {
  if (lossScale?.overflowed) return "";
  return Object.entries({ loss, "total loss": totalLoss, "gradient norm": gradientNorm })
    .filter(([, value]) => !Number.isFinite(value))
    .map(([name, value]) => `the ${name} is ${value}`)
    .join(", ");
}
