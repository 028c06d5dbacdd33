// What a log says was trained: steps taken twice, plans set in between, and what no log holds.

import { create } from "@bufbuild/protobuf";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { firstDifference, historyOf } from "../../clients/cli/replay.ts";
import { type RunEvent, RunEventSchema } from "../../proto/gen/thaw/v1/event_pb.ts";
import { Preset } from "../../proto/gen/thaw/v1/group_pb.ts";
import { RunSchema } from "../../proto/gen/thaw/v1/run_pb.ts";
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";

const trainable = (preset: Preset) => ({ selection: { preset } });
const run = create(RunSchema, { name: "runs/r", startStep: 2n, spec: { trainable: trainable(Preset.ALL) } });

const event = (step: number, value: NonNullable<Parameters<typeof create<typeof RunEventSchema>>[1]>["event"]) =>
  create(RunEventSchema, { step: BigInt(step), event: value });
const step = (at: number, loss: number) => event(at, { case: "metrics", value: { step: BigInt(at), loss } });
const plan = (at: number, preset: Preset) =>
  event(at, {
    case: "trainable",
    value: { plan: trainable(preset), report: { effectiveStep: BigInt(at) } },
  });
const warning = (at: number, reason: string) => event(at, { case: "warning", value: { reason } });
const state = (at: number, to: RunState) => event(at, { case: "state", value: { to } });

const told = (events: readonly RunEvent[]) => {
  const { losses, changes } = historyOf(run, events);
  return { losses, changes: changes.map((one) => [one.step, one.plan.selection?.preset]) };
};

const test = suite("replay");

test("an unbroken run: its losses, and its plans at their steps", () => {
  const log = [state(2, RunState.RUNNING), step(3, 0.5), plan(3, Preset.FFN), step(4, 0.25), plan(4, Preset.FFN)];
  assert.equal(told(log), { losses: [0.5, 0.25], changes: [[3n, Preset.FFN]] });
});

test("steps taken twice count once, and a plan set before the death holds from where the run went on", () => {
  const log = [step(3, 0.5), step(4, 0.25), plan(4, Preset.FFN), step(5, 0.125), warning(3, "GPU_PROCESS_RESTARTED")];
  assert.equal(told(log), { losses: [0.5], changes: [[3n, Preset.FFN]] });
  const reopened = [...log, plan(3, Preset.FFN), step(4, 0.75), step(5, 0.625)];
  assert.equal(told(reopened), { losses: [0.5, 0.75, 0.625], changes: [[3n, Preset.FFN]] });
  const other = [step(3, 0.5), step(4, 0.25), warning(4, "NON_FINITE_STEP_SKIPPED"), step(5, 1)];
  assert.equal(told(other).losses, [0.5, 0.25, 1]);
});

test("steps that a caller took, and batches passed over, are refused", () => {
  assert.throws(() => historyOf(run, [state(2, RunState.PAUSED), step(3, 1)]), /a caller took step 3/);
  assert.not.throws(() => historyOf(run, [state(2, RunState.PAUSING), step(3, 1), state(3, RunState.PAUSED)]));
  assert.throws(() => historyOf(run, [step(3, Number.NaN), warning(2, "NON_FINITE_ROLLED_BACK")]), /passed over/);
});

test("the first difference is to the bit: no number is itself, zero has a sign, a missing step differs", () => {
  const difference = (a: readonly number[], b: readonly number[]) =>
    firstDifference(2n, { losses: a, changes: [] }, { losses: b, changes: [] });
  assert.is(difference([1, Number.NaN], [1, Number.NaN]), undefined);
  assert.equal(difference([1, 0], [1, -0]), { step: 4, losses: [0, -0] });
  assert.equal(difference([1, 2 + 2 ** -51], [1, 2])?.step, 4);
  assert.equal(difference([1], [1, 2]), { step: 4, losses: [undefined, 2] });
});

test.run();
