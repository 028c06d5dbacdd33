// A freeze plan as flags, and as text. `--train` starts from a preset, `--add` and `--remove` change it by selector,
// `--router` switches the routers; all may be left out except that a plan must say something.
//
//   --train ffn --add expert:experts=0,1:layers=0-3 --remove attention.self:stacks=encoder
//
// A selector is kinds, then conditions, separated by colons: `kind,kind:stacks=…:layers=…:experts=…`. Without kinds it
// matches every kind: `layers=0-1`.

import type { MessageInitShape } from "@bufbuild/protobuf";
import { type Command, InvalidArgumentError } from "commander";
import {
  OptimizerStatePolicy,
  ParameterKindSchema,
  type PlanCost,
  type Preset,
  PresetSchema,
  RouterLossPolicy,
  type SelectorSchema,
  StackSchema,
  type TrainablePlan,
  type TrainablePlanSchema,
  type TrainableReport,
} from "../../proto/gen/thaw/v1/group_pb.ts";
import { bytes, count, enumName, metric, percent, table, wireDuration } from "./format.ts";
import { enumList, enumValue, integerList, onOff } from "./parse.ts";

type SelectorInit = MessageInitShape<typeof SelectorSchema>;

export interface PlanFlags {
  readonly train?: Preset;
  readonly add?: readonly SelectorInit[];
  readonly remove?: readonly SelectorInit[];
  readonly router?: boolean;
  readonly dropOptimizerState?: boolean;
  readonly routerLossesOff?: boolean;
}

/** Adds the flags of a freeze plan to a command. */
export function planFlags(command: Command): Command {
  const selector = "kinds and conditions, for instance expert:experts=0,1:layers=0-3; may be repeated";
  return command
    .option("--train <preset>", "what trains: all, non_moe, moe, attention, ffn", enumValue(PresetSchema))
    .option("--add <selector>", `train also: ${selector}`, collectSelectors)
    .option("--remove <selector>", "freeze: a selector as for --add; may be repeated", collectSelectors)
    .option("--router <on|off>", "train or freeze every router", onOff)
    .option("--drop-optimizer-state", "drop the optimizer state of what is frozen instead of keeping it")
    .option("--router-losses-off", "no router losses while every router is frozen");
}

/** The plan that the flags say, or undefined when there are none. */
export function planOf(flags: PlanFlags): MessageInitShape<typeof TrainablePlanSchema> | undefined {
  const { train, add = [], remove = [], router, dropOptimizerState, routerLossesOff } = flags;
  if (train === undefined && add.length + remove.length === 0 && router === undefined) return undefined;
  return {
    selection: { preset: train, add: [...add], remove: [...remove], router },
    optimizerState: dropOptimizerState ? OptimizerStatePolicy.DROP : OptimizerStatePolicy.UNSPECIFIED,
    routerLosses: routerLossesOff ? RouterLossPolicy.OFF : RouterLossPolicy.UNSPECIFIED,
  };
}

const collectSelectors = (text: string, before: readonly SelectorInit[] = []): SelectorInit[] => [
  ...before,
  parseSelector(text),
];

/** Reads one selector; see above. */
export function parseSelector(text: string): SelectorInit {
  const selector: SelectorInit = {};
  text.split(":").forEach((part, position) => {
    const [name, value] = part.split("=", 2).map((word) => word.trim());
    if (value === undefined && position === 0) selector.kinds = enumList(ParameterKindSchema)(name);
    else if (name === "kinds" && value) selector.kinds = enumList(ParameterKindSchema)(value);
    else if (name === "stacks" && value) selector.stacks = enumList(StackSchema)(value);
    else if (name === "experts" && value) selector.experts = integerList(value);
    else if (name === "layers" && value) selector.layers = layerRange(value);
    else throw new InvalidArgumentError(`"${part}" is not kinds=…, stacks=…, layers=… or experts=….`);
  });
  return selector;
}

function layerRange(text: string): { first: number; last: number } {
  const range = /^(\d+)(?:-(\d+))?$/.exec(text);
  if (!range) throw new InvalidArgumentError("layers must be one layer or a range, for instance 0-3.");
  return { first: Number(range[1]), last: Number(range[2] ?? range[1]) };
}

/** A plan as its flags, without their dashes: `ffn add expert:experts=0,1 router on`. */
export function planText(plan: TrainablePlan | undefined): string {
  const selection = plan?.selection;
  if (!plan || !selection) return "everything";
  const selector = ({ kinds, stacks, layers, experts }: (typeof selection.add)[number]) =>
    [
      kinds.map((kind) => kindText(kind)).join(","),
      stacks.length ? `stacks=${stacks.map((s) => enumName(StackSchema, s).toLowerCase()).join(",")}` : "",
      layers ? `layers=${layers.first}-${layers.last}` : "",
      experts.length ? `experts=${experts.join(",")}` : "",
    ]
      .filter((part) => part !== "")
      .join(":");
  return [
    enumName(PresetSchema, selection.preset).toLowerCase() || "nothing",
    ...selection.add.map((s) => `add ${selector(s)}`),
    ...selection.remove.map((s) => `remove ${selector(s)}`),
    ...(selection.router === undefined ? [] : [`router ${selection.router ? "on" : "off"}`]),
    ...(plan.optimizerState === OptimizerStatePolicy.DROP ? ["drop optimizer state"] : []),
    ...(plan.routerLosses === RouterLossPolicy.OFF ? ["router losses off"] : []),
  ].join(" ");
}

/** A kind as the documentation writes it: `attention.self`. */
export const kindText = (kind: number): string =>
  enumName(ParameterKindSchema, kind).toLowerCase().replace("attention_", "attention.");

/** `12.3 k of 456 k parameters (2.7 %)`. */
export function trainableText(cost: PlanCost): string {
  const share = Number(cost.trainableParameters) / Math.max(1, Number(cost.totalParameters));
  return `${metric(cost.trainableParameters)} of ${metric(cost.totalParameters)} parameters (${percent(share)})`;
}

/** The costs before and after, one row per figure. */
export function reportText(report: TrainableReport): string {
  const { before, after, state, matched } = report;
  const row = (title: string, figure: (cost: PlanCost) => string) => [
    title,
    before ? figure(before) : "",
    after ? figure(after) : "",
  ];
  const costs = table(
    [{ title: "" }, { title: "BEFORE", figures: true }, { title: "AFTER", figures: true }],
    [
      row("trainable parameters", (c) => count(c.trainableParameters)),
      row("parameters", (c) => bytes(c.parameterBytes)),
      row("gradients", (c) => bytes(c.gradientBytes)),
      row("optimizer state", (c) => bytes(c.optimizerBytes)),
      row("activations", (c) => bytes(c.activationBytes)),
      row("peak", (c) => bytes(c.peakBytes)),
      row("forward FLOPs", (c) => metric(c.forwardFlops)),
      row("backward FLOPs", (c) => metric(c.backwardFlops)),
      row("dispatches", (c) => count(c.dispatches)),
      row("predicted step", (c) => wireDuration(c.predictedStepDuration)),
    ].filter(([, old, now]) => old !== "" || now !== ""),
    "",
  );
  const states = Object.entries({
    restored: state?.restored ?? [],
    fresh: state?.fresh ?? [],
    kept: state?.kept ?? [],
    dropped: state?.dropped ?? [],
  }).flatMap(([what, tensors]) => (tensors.length ? [`${count(tensors.length)} ${what}`] : []));
  return [
    costs,
    `${count(matched.length)} tensors train from step ${report.effectiveStep}`,
    ...(states.length ? [`optimizer state: ${states.join(", ")}`] : []),
  ].join("\n");
}
