// A run that is steered while it goes on: experts and routers are frozen after a few steps and thawed again after a few
// more, over one bidirectional stream that also brings the metrics.

import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { problemsOfStatus, type Thaw } from "../../clients/typescript/index.ts";
import { ParameterKind, Preset, TrainablePlanSchema } from "../../proto/gen/thaw/v1/group_pb.ts";
import type { SteerRunRequestSchema } from "../../proto/gen/thaw/v1/run_service_pb.ts";
import type { Board } from "./board.ts";
import { freezeChange, stepRecord } from "./convert.ts";
import type { FreezeChange, FreezeResult, StepRecord } from "./results.ts";
import type { RunSpecInit } from "./strategies.ts";

type Command = MessageInitShape<typeof SteerRunRequestSchema>;

const KINDS = [ParameterKind.EXPERT, ParameterKind.ROUTER];

const PLANS = {
  freeze: create(TrainablePlanSchema, { selection: { preset: Preset.ALL, remove: [{ kinds: KINDS }] } }),
  thaw: create(TrainablePlanSchema, { selection: { preset: Preset.ALL } }),
};

/** Trains `phase` steps with everything, then `phase` or a few more under each change. */
export async function runFreeze(thaw: Thaw, board: Board, spec: RunSpecInit, phase: number): Promise<FreezeResult> {
  const { run } = await thaw.runs.createRun({
    runId: "steered",
    displayName: "frozen and thawed while it trains",
    spec: { ...spec, steps: BigInt(3 * phase), trainable: PLANS.thaw },
  });
  const commands = openQueue<Command>();
  commands.add({ command: { case: "watch", value: { name: run!.name } } });
  const asked: ("freeze" | "thaw")[] = [];
  const ask = (action: "freeze" | "thaw"): void => {
    asked.push(action);
    commands.add({ command: { case: "setTrainable", value: { plan: PLANS[action] } } });
  };
  const steps: StepRecord[] = [];
  const changes: FreezeChange[] = [];
  for await (const { reply } of thaw.runs.steerRun(commands.items)) {
    if (reply.case === "acknowledgement") {
      const { result, commandNumber } = reply.value;
      if (result.case === "error") throw new Error(`SetTrainable: ${problemsOfStatus(result.value).message}`);
      if (result.case !== "setTrainable") continue;
      changes.push(freezeChange(asked[Number(commandNumber) - 1], KINDS, result.value.report!));
      board.say(changeLine(changes[changes.length - 1]));
    } else if (reply.case === "events") {
      for (const { event } of reply.value.events) {
        if (event.case !== "metrics") continue;
        const record = stepRecord(event.value);
        steps.push(record);
        board.show("steered", "training", `step ${record.step}/${3 * phase}  loss ${record.loss.toFixed(3)}`);
        if (record.step >= phase && asked.length === 0) ask("freeze");
        const frozenAt = changes.find((c) => c.action === "freeze")?.effectiveStep;
        if (frozenAt !== undefined && record.step >= frozenAt + phase && asked.length === 1) ask("thaw");
      }
    }
  }
  commands.end();
  board.show("steered", "succeeded", `step ${steps.at(-1)?.step}/${3 * phase}`);
  return { steps, changes };
}

function changeLine({ action, effectiveStep, before, after }: FreezeChange): string {
  const from = before.trainableParameters.toLocaleString("en-US");
  const to = after.trainableParameters.toLocaleString("en-US");
  const bytes = (cost: typeof before) => `${(cost.peakBytes / 1e6).toFixed(1)} MB`;
  return (
    `  → ${action} expert, router: takes effect after step ${effectiveStep}; ${from} → ${to} parameters train, ` +
    `planned peak ${bytes(before)} → ${bytes(after)}`
  );
}

/** An async iterable that is filled while it is read. */
function openQueue<T>(): { readonly items: AsyncIterable<T>; add(item: T): void; end(): void } {
  const waiting: T[] = [];
  let ended = false;
  let wake = (): void => {};
  async function* items(): AsyncGenerator<T> {
    while (true) {
      while (waiting.length > 0) yield waiting.shift()!;
      if (ended) return;
      await new Promise<void>((resolve) => {
        wake = resolve;
      });
    }
  }
  return {
    items: items(),
    add(item) {
      waiting.push(item);
      wake();
    },
    end() {
      ended = true;
      wake();
    },
  };
}
