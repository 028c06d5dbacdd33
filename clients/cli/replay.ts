// What a run's log says was trained: the loss of every step that counts, and what trained it. A run that went on from a
// checkpoint took some steps twice; what was taken back does not count, and a freeze plan set in between holds from there.
//
// The log does not hold everything: not the batches that a caller gave (StepService), nor those passed over after a
// divergence. A run with either cannot be replayed.

import { equals } from "@bufbuild/protobuf";
import type { RunEvent } from "../../proto/gen/thaw/v1/event_pb.ts";
import { type TrainablePlan, TrainablePlanSchema } from "../../proto/gen/thaw/v1/group_pb.ts";
import type { Run } from "../../proto/gen/thaw/v1/run_pb.ts";
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";

export interface PlanChange {
  /** Optimizer steps completed when it took effect. */
  readonly step: bigint;
  readonly plan: TrainablePlan;
}

export interface History {
  /** Cross-entropy per target token, in nats, of each step, the first after the run's start first. */
  readonly losses: readonly number[];
  /** In the order in which they took effect. */
  readonly changes: readonly PlanChange[];
}

/**
 * @param events the run's log from its beginning
 * @throws Error when the log does not hold what a replay needs
 */
export function historyOf(run: Pick<Run, "name" | "startStep" | "spec">, events: readonly RunEvent[]): History {
  const start = Number(run.startStep);
  const losses: number[] = [];
  let changes: PlanChange[] = [];
  let paused = false;
  const inForce = (): TrainablePlan | undefined => changes.at(-1)?.plan ?? run.spec?.trainable;
  const change = (step: bigint, plan: TrainablePlan): void => {
    const now = inForce();
    if (!now || !equals(TrainablePlanSchema, now, plan)) changes.push({ step, plan });
  };
  for (const { event, step } of events) {
    if (event.case === "state") paused = event.value.to === RunState.PAUSED;
    else if (event.case === "metrics") {
      if (paused)
        throw new Error(`${run.name}: a caller took step ${event.value.step}, with batches that no log holds`);
      losses[Number(event.value.step) - start - 1] = event.value.loss;
    } else if (event.case === "trainable" && event.value.plan) {
      change(event.value.report?.effectiveStep ?? step, event.value.plan);
    } else if (event.case === "warning") {
      if (event.value.reason === "NON_FINITE_ROLLED_BACK") {
        throw new Error(`${run.name} went back after a divergence, and no log holds which batches it passed over`);
      }
      // Only a run that goes on from a checkpoint warns at a step before its newest.
      losses.length = Math.min(losses.length, Number(step) - start);
      const latest = inForce();
      changes = changes.filter((one) => one.step <= step);
      if (latest) change(step, latest);
    }
  }
  return { losses, changes };
}

export interface Difference {
  readonly step: number;
  /** Undefined where that run did not take the step. */
  readonly losses: readonly [number | undefined, number | undefined];
}

/** The first step whose losses are not the same number, to the bit. */
export function firstDifference(startStep: bigint, a: History, b: History): Difference | undefined {
  const steps = Math.max(a.losses.length, b.losses.length);
  for (let i = 0; i < steps; i++) {
    if (!Object.is(a.losses[i], b.losses[i])) {
      return { step: Number(startStep) + i + 1, losses: [a.losses[i], b.losses[i]] };
    }
  }
  return undefined;
}
