// The five strategies as five runs of the same model, data, seed and order. All are created at once; the server queues
// them and trains one after another while this client follows every log and every routing stream.

import { create, type MessageInitShape } from "@bufbuild/protobuf";
import {
  type Assignments,
  decodeAssignments,
  problemsOfStatus,
  startRun,
  type Thaw,
} from "../../clients/typescript/index.ts";
import type { RunEvent } from "../../proto/gen/thaw/v1/event_pb.ts";
import { Preset, TrainablePlanSchema } from "../../proto/gen/thaw/v1/group_pb.ts";
import type { RunSpecSchema } from "../../proto/gen/thaw/v1/run_pb.ts";
import { RunState, RunStateSchema } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import type { Board } from "./board.ts";
import { costRecord, enumName, splitScores, stepRecord } from "./convert.ts";
import type { Cost, SplitScores, StepRecord, StrategyResult } from "./results.ts";

export const STRATEGIES = ["all", "non_moe", "moe", "attention", "ffn"] as const;
type Strategy = (typeof STRATEGIES)[number];

const PRESETS: Readonly<Record<Strategy, Preset>> = {
  all: Preset.ALL,
  non_moe: Preset.NON_MOE,
  moe: Preset.MOE,
  attention: Preset.ATTENTION,
  ffn: Preset.FFN,
};

export type RunSpecInit = MessageInitShape<typeof RunSpecSchema>;

/** Trains and scores all strategies. `runs/{strategy}` are their names on the server. */
export const runStrategies = (thaw: Thaw, board: Board, spec: RunSpecInit): Promise<StrategyResult[]> =>
  Promise.all(STRATEGIES.map((strategy) => runStrategy(thaw, board, strategy, spec)));

interface Progress {
  state: RunState;
  error?: string;
  cost?: Cost;
  readonly steps: StepRecord[];
  readonly scores: Record<string, SplitScores>;
}

async function runStrategy(thaw: Thaw, board: Board, strategy: Strategy, spec: RunSpecInit): Promise<StrategyResult> {
  const { created, events } = await startRun(thaw, {
    runId: strategy.replace("_", "-"),
    displayName: strategy,
    spec: { ...spec, trainable: create(TrainablePlanSchema, { selection: { preset: PRESETS[strategy] } }) },
  });
  const name = created.run!.name;
  const [progress, assignments] = await Promise.all([
    follow(board, strategy, Number(spec.steps), events),
    countAssignments(thaw, name),
  ]);
  const { run } = await thaw.runs.getRun({ name });
  return {
    strategy,
    state: enumName(RunStateSchema, progress.state),
    steps: progress.steps,
    cost: run?.cost && costRecord(run.cost),
    scores: progress.scores,
    assignments,
  };
}

async function follow(
  board: Board,
  strategy: Strategy,
  total: number,
  events: AsyncIterable<RunEvent>,
): Promise<Progress> {
  const progress: Progress = { state: RunState.QUEUED, steps: [], scores: {} };
  board.show(strategy, "queued", "");
  for await (const event of events) {
    note(progress, event);
    board.show(strategy, stageOf(progress, total), detailOf(progress, total));
  }
  return progress;
}

function note(progress: Progress, { event }: RunEvent): void {
  if (event.case === "state") {
    progress.state = event.value.to;
    if (event.value.error) progress.error = problemsOfStatus(event.value.error).message;
  } else if (event.case === "metrics") progress.steps.push(stepRecord(event.value));
  else if (event.case === "evaluation") progress.scores[event.value.split] = splitScores(event.value);
}

function stageOf({ state, steps }: Progress, total: number): string {
  if (state !== RunState.RUNNING) return enumName(RunStateSchema, state).toLowerCase();
  return steps.length < total ? "training" : "scoring";
}

function detailOf({ steps, scores, error }: Progress, total: number): string {
  if (error) return error;
  const last = steps.at(-1);
  if (!last) return "";
  const scored = Object.entries(scores).map(([split, s]) => `${split} ${(s.accuracy * 100).toFixed(1)}%`);
  const speed = last.seconds > 0 ? `${Math.round(last.tokens / last.seconds)} tokens/s` : "";
  return [`step ${last.step}/${total}`, `loss ${last.loss.toFixed(3)}`, ...(scored.length > 0 ? scored : [speed])].join(
    "  ",
  );
}

/** Reads every assignment of a run until it has ended; what each token's router decided, as it happens. */
async function countAssignments(thaw: Thaw, run: string): Promise<StrategyResult["assignments"]> {
  const count = { tokens: 0, slices: 0, droppedSlices: 0 };
  for await (const { assignments, dropped } of thaw.routing.streamAssignments({ run })) {
    count.droppedSlices = Number(dropped);
    if (!assignments) continue;
    const decoded: Assignments = decodeAssignments(assignments);
    count.slices++;
    count.tokens += decoded.tokenCount;
  }
  return count;
}
