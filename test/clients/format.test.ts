// Figures, tables, events and freeze plans as text.

import { create } from "@bufbuild/protobuf";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { test } from "uvu";
import * as assert from "uvu/assert";
import { parseCommand } from "../../clients/cli/commands/steer.ts";
import { advance, begin, eventLine, progressLine } from "../../clients/cli/events.ts";
import { bars, bytes, count, duration, figure, metric, resource, table } from "../../clients/cli/format.ts";
import { liveLine } from "../../clients/cli/live.ts";
import { parseSelector, planOf, planText } from "../../clients/cli/plan.ts";
import { type RunEvent, RunEventSchema } from "../../proto/gen/thaw/v1/event_pb.ts";
import { ParameterKind, Preset, Stack, TrainablePlanSchema } from "../../proto/gen/thaw/v1/group_pb.ts";
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";

test("figures as people read them", () => {
  const cases: [string, string][] = [
    [count(1234567n), "1,234,567"],
    [bytes(0), "0 B"],
    [bytes(1023n), "1023 B"],
    [bytes(1536), "1.5 KiB"],
    [bytes(-3 * 2 ** 20), "-3.0 MiB"],
    [bytes(5n * 2n ** 40n), "5.0 TiB"],
    [metric(999), "999"],
    [metric(999_700n), "1.00 M"],
    [metric(1_234_567n), "1.23 M"],
    [metric(-65_432), "-65.4 k"],
    [figure(0.000123456), "1.23e-4"],
    [figure(1.234567), "1.235"],
    [figure(0), "0"],
    [figure(Number.NaN), "NaN"],
    [duration(12.4), "12 ms"],
    [duration(999.6), "1.0 s"],
    [duration(59_960), "1 min 00 s"],
    [duration(185_000), "3 min 05 s"],
    [duration(7_620_000), "2 h 07 min"],
    [bars([0, 0.5, 1]), "▁▅█"],
    [resource("runs", "a"), "runs/a"],
    [resource("runs", "models/a"), "models/a"],
  ];
  for (const [actual, expected] of cases) assert.is(actual, expected);
});

test("tables align figures to the right and text to the left", () => {
  const columns = [{ title: "NAME" }, { title: "N", figures: true }, { title: "LAST" }];
  const rows = [
    ["a", "5", "x"],
    ["longer", "1,000", ""],
  ];
  assert.is(table(columns, rows, "none"), ["NAME        N  LAST", "a           5  x", "longer  1,000"].join("\n"));
  assert.is(table(columns, [], "none"), "none");
});

const event = (step: number, content: RunEvent["event"]): RunEvent =>
  create(RunEventSchema, { revision: 7n, step: BigInt(step), event: content as never });
const state = (to: RunState) => event(0, { case: "state", value: { to } as never });
const metrics = (step: number, ms: number) =>
  event(step, {
    case: "metrics",
    value: { loss: 0.5, tokensPerSecond: 1234.5, stepDuration: durationFromMs(ms) } as never,
  });

test("the progress line shows step, loss, speed and time left, and fits the terminal", () => {
  let progress = begin(100, RunState.QUEUED);
  for (const e of [state(RunState.RUNNING), metrics(24, 1000), metrics(25, 3000)]) progress = advance(progress, e);
  assert.is(progressLine(progress, 100), "█████░░░░░░░░░░░░░░░ 25/100  loss 0.5  1,235 tokens/s  ETA 2 min 30 s");
  assert.is([...progressLine(progress, 12)].length, 12);
  progress = advance(progress, event(25, { case: "state", value: { to: RunState.PAUSED } as never }));
  assert.match(progressLine(progress, 100), /tokens\/s {2}PAUSED$/);
});

test("every kind of event is one line", () => {
  const cases: [RunEvent["event"], RegExp][] = [
    [{ case: "state", value: { from: RunState.QUEUED, to: RunState.STARTING } as never }, /QUEUED → STARTING$/],
    [
      { case: "state", value: { from: 3, to: RunState.FAILED, error: { code: 8, message: "full" } } as never },
      /RUNNING → FAILED: RESOURCE_EXHAUSTED: full$/,
    ],
    [
      { case: "evaluation", value: { split: "test", accuracy: 0.5, exactMatch: 0.25 } as never },
      /test: .*50\.0 %.*25\.0 %/,
    ],
    [
      {
        case: "evaluation",
        value: {
          split: "test",
          dataset: "datasets/cb",
          primaryMetric: "matthews",
          metrics: { accuracy: 0.75, matthews: -0.5 },
        } as never,
      },
      /evaluation test of cb: loss .* {2}matthews -0\.5 {2}accuracy 0\.75 {2}\(/,
    ],
    [
      {
        case: "preparation",
        value: { dataset: "datasets/d", split: "train", done: 10n, total: 2490n, truncatedInputs: 1n } as never,
      },
      /tokenised 10 of 2,490 examples of datasets\/d train, 1 inputs and 0 targets cut$/,
    ],
    [{ case: "checkpoint", value: { name: "runs/a/checkpoints/b", sizeBytes: 1024n } as never }, /b \(1\.0 KiB\)$/],
    [{ case: "warning", value: { reason: "SLOW", message: "very" } as never }, /warning SLOW: very$/],
    [
      { case: "data", value: { examples: 2490n, truncatedInputs: 3n, batchShapes: [] } as never },
      /2,490 examples, 3 inputs and 0 targets cut$/,
    ],
    [
      {
        case: "data",
        value: {
          paddingShare: 0.125,
          batchShapes: [
            { inputTokens: 24n, targetTokens: 8n, share: 0.75 },
            { inputTokens: 96n, targetTokens: 32n, share: 0.25 },
          ],
        } as never,
      },
      /; rows of 24\+8, 96\+32 tokens, 12\.5 % of them padding$/,
    ],
    [
      {
        case: "overfitting",
        value: { split: "test", trainLoss: 0.25, validationLoss: 0.5, bestValue: 0.5, stops: true } as never,
      },
      /train loss 0.25, test 0.5; best 0.5 at step .*; the run ends$/,
    ],
    [{ case: "trainable", value: { report: { effectiveStep: 50n } } as never }, /trains everything from step 50$/],
  ];
  for (const [content, expected] of cases) {
    const line = eventLine(event(3, content));
    assert.match(line, expected);
    assert.match(line, /r7 {2}step 3/);
    assert.not.match(line, /\n/);
  }
});

test("a live line is erased before anything is printed over it, and stays at the end", () => {
  const written: string[] = [];
  const live = liveLine({ write: (text) => written.push(String(text)) > 0 });
  live.paint("50 %");
  live.print("event");
  live.end();
  assert.equal(written, ["\r\x1b[2Kevent\n50 %", "\r\x1b[2K50 %\n"]);
});

test("selectors: kinds, stacks, layers, experts", () => {
  const cases: [string, unknown][] = [
    ["ffn", { kinds: [ParameterKind.FFN] }],
    [
      "expert:experts=0,4-6:layers=1-3",
      { kinds: [ParameterKind.EXPERT], experts: [0, 4, 5, 6], layers: { first: 1, last: 3 } },
    ],
    [
      "attention.self,attention.cross:stacks=decoder",
      { kinds: [ParameterKind.ATTENTION_SELF, ParameterKind.ATTENTION_CROSS], stacks: [Stack.DECODER] },
    ],
    ["layers=2", { layers: { first: 2, last: 2 } }],
  ];
  for (const [text, expected] of cases) assert.equal(parseSelector(text), expected, text);
  for (const text of ["", "ffm", "expert:experts=", "expert:experts=3-1", "ffn:depth=3", "ffn:layers=a", "ffn:"]) {
    assert.throws(() => parseSelector(text), undefined, `"${text}" is refused`);
  }
});

test("a plan reads back as it was given", () => {
  const plan = planOf({
    train: Preset.FFN,
    add: [parseSelector("expert:experts=0,1")],
    remove: [parseSelector("ffn:stacks=encoder:layers=0-1")],
    router: true,
    dropOptimizerState: true,
  });
  const text = "ffn add expert:experts=0,1 remove ffn:stacks=encoder:layers=0-1 router on drop optimizer state";
  assert.is(planText(create(TrainablePlanSchema, plan!)), text);
  assert.is(planOf({ dropOptimizerState: true }), undefined, "a policy alone is no plan");
});

test("steering commands by line", () => {
  assert.is(parseCommand("pause")?.command?.case, "pause");
  assert.is(parseCommand("save")?.command?.case, "saveCheckpoint");
  const train = parseCommand("train moe --router off");
  assert.equal(train, {
    command: {
      case: "setTrainable",
      value: { plan: planOf({ train: Preset.MOE, router: false }) },
    },
  });
});

test.run();
