// A run's events as lines, and how far it has come as one line. Pure: what goes where on a terminal is live.ts.

import { durationMs } from "@bufbuild/protobuf/wkt";
import type { EvaluationResult } from "../../proto/gen/thaw/v1/evaluation_pb.ts";
import type { DataReport, RunEvent, StepMetrics } from "../../proto/gen/thaw/v1/event_pb.ts";
import { RunState, RunStateSchema } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import { problemsOfStatus } from "../typescript/index.ts";
import { bytes, count, duration, enumName, figure, id, percent, time, wireDuration } from "./format.ts";
import { planText, trainableText } from "./plan.ts";

/** Step durations that the time left is estimated from. */
const ETA_STEPS = 20;

export interface Progress {
  readonly state: RunState;
  /** Optimizer steps to do. */
  readonly steps: number;
  readonly step: number;
  readonly metrics?: StepMetrics;
  /** Milliseconds of the newest steps, oldest first. */
  readonly stepMs: readonly number[];
}

export const begin = (steps: number, state: RunState): Progress => ({ state, steps, step: 0, stepMs: [] });

/** Where the run stands after one more event. */
export function advance(progress: Progress, { event, step }: RunEvent): Progress {
  const next = { ...progress, step: Number(step) };
  if (event.case === "state") return { ...next, state: event.value.to };
  if (event.case !== "metrics") return next;
  const took = event.value.stepDuration ? [durationMs(event.value.stepDuration)] : [];
  return { ...next, metrics: event.value, stepMs: [...progress.stepMs, ...took].slice(-ETA_STEPS) };
}

export const ended = (state: RunState): boolean =>
  state === RunState.SUCCEEDED || state === RunState.FAILED || state === RunState.CANCELLED;

/** One line, at most `width` characters: bar, step, loss, speed, time left, state. */
export function progressLine(progress: Progress, width: number): string {
  const { state, steps, step, metrics, stepMs } = progress;
  const cells = 20;
  const full = Math.min(cells, Math.floor((cells * step) / Math.max(1, steps)));
  const mean = stepMs.reduce((sum, ms) => sum + ms, 0) / Math.max(1, stepMs.length);
  const left = state === RunState.RUNNING && mean > 0 ? `ETA ${duration(mean * (steps - step))}` : "";
  const parts = [
    `${"█".repeat(full)}${"░".repeat(cells - full)} ${step}/${steps}`,
    ...(metrics ? [`loss ${figure(metrics.loss)}`, `${count(metrics.tokensPerSecond)} tokens/s`] : []),
    left,
    state === RunState.RUNNING ? "" : enumName(RunStateSchema, state),
  ];
  return [...parts.filter((part) => part !== "").join("  ")].slice(0, width).join("");
}

/** An event as one line, with its revision and step. */
export function eventLine(event: RunEvent): string {
  return `${time(event.time)}  r${event.revision}  step ${event.step}  ${eventText(event)}`;
}

function eventText({ event }: RunEvent): string {
  switch (event.case) {
    case "state": {
      const { from, to, error } = event.value;
      const change = [from, to].map((state) => enumName(RunStateSchema, state)).filter((name) => name !== "");
      if (!error) return change.join(" → ");
      const { code, message } = problemsOfStatus(error);
      return `${change.join(" → ")}: ${code}: ${message}`;
    }
    case "metrics": {
      const { loss, gradientNorm, learningRate, tokensPerSecond, stepDuration } = event.value;
      const figures = `loss ${figure(loss)}  gradient norm ${figure(gradientNorm)}  learning rate ${figure(learningRate)}`;
      return `${figures}  ${count(tokensPerSecond)} tokens/s  ${wireDuration(stepDuration)}`;
    }
    case "evaluation":
      return `evaluation ${evaluationText(event.value)}`;
    case "trainable": {
      const { plan, report } = event.value;
      const trains = report?.after ? `: ${trainableText(report.after)}` : "";
      return `trains ${planText(plan)}${trains} from step ${report?.effectiveStep ?? 0}`;
    }
    case "checkpoint":
      return `checkpoint ${event.value.name} (${bytes(event.value.sizeBytes)})`;
    case "overfitting": {
      const { validationLoss, trainLoss, bestValue, bestStep, stops } = event.value;
      const losses = `train loss ${trainLoss === undefined ? "–" : figure(trainLoss)}, ${event.value.split} ${figure(validationLoss)}`;
      return `overfitting watch: ${losses}; best ${figure(bestValue)} at step ${bestStep}${stops ? "; the run ends" : ""}`;
    }
    case "warning":
      return `warning ${event.value.reason}: ${event.value.message}`;
    case "preparation": {
      const { dataset, split, done, total, truncatedInputs, truncatedTargets } = event.value;
      const cut = `${count(truncatedInputs)} inputs and ${count(truncatedTargets)} targets cut`;
      return `tokenised ${count(done)} of ${count(total)} examples of ${dataset} ${split}, ${cut}`;
    }
    case "data":
      return `data: ${dataText(event.value)}`;
    default:
      return "an event of a newer server";
  }
}

/** `2,490 examples, 3 inputs and 0 targets cut; rows of 24+8, 96+32 tokens, 12.5 % of them padding` */
export function dataText({
  examples,
  truncatedInputs,
  truncatedTargets,
  paddingShare,
  batchShapes,
}: DataReport): string {
  const cut = `${count(truncatedInputs)} inputs and ${count(truncatedTargets)} targets cut`;
  const shapes = batchShapes.map(({ inputTokens, targetTokens }) => `${inputTokens}+${targetTokens}`).join(", ");
  const batches = shapes && `; rows of ${shapes} tokens, ${percent(paddingShare)} of them padding`;
  return `${count(examples)} examples, ${cut}${batches}`;
}

/**
 * `validation of cb: loss 0.51  accuracy 71.2 %  exact match 70.1 %  (256 examples, 3.1 s)`; of data with a task its
 * metrics, the primary one first, in place of the two.
 */
export function evaluationText(result: EvaluationResult): string {
  const { primaryMetric: primary, metrics } = result;
  const others = Object.keys(metrics).filter((name) => name !== primary);
  const scores = primary
    ? [primary, ...others].map((name) => `${name} ${figure(metrics[name])}`).join("  ")
    : `accuracy ${percent(result.accuracy)}  exact match ${percent(result.exactMatch)}`;
  const of = result.dataset ? ` of ${id(result.dataset)}` : "";
  const took = result.duration ? `, ${wireDuration(result.duration)}` : "";
  return `${result.split}${of}: loss ${figure(result.loss)}  ${scores}  (${count(result.examples)} examples${took})`;
}
