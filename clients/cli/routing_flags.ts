// How a run routes, from flags. Rules with a number are written `rule:number`.

import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { type Command, InvalidArgumentError } from "commander";
import {
  CapacityRuleSchema,
  type GateNormalization,
  GateNormalizationSchema,
  type RoutingChoice,
  RoutingChoiceSchema,
  RoutingGroup,
  RoutingOptionsSchema,
  type RoutingPriority,
  RoutingPrioritySchema,
  type SecondExpertPolicy,
  SecondExpertPolicySchema,
  SelectionBiasSchema,
} from "../../proto/gen/thaw/v1/routing_pb.ts";
import type { RunSpec } from "../../proto/gen/thaw/v1/run_pb.ts";
import { assign, enumValue, integer, real, smallInteger } from "./parse.ts";

type Capacity = MessageInitShape<typeof CapacityRuleSchema>;

export interface RoutingFlags {
  readonly topK?: number;
  readonly gateNormalization?: GateNormalization;
  readonly secondExpertPolicy?: SecondExpertPolicy;
  readonly priority?: RoutingPriority;
  readonly encoderChoice?: RoutingChoice;
  readonly selectionBias?: number;
  readonly group?: { readonly group: RoutingGroup; readonly groupTokens: bigint };
  readonly trainCapacity?: Capacity;
  readonly evalCapacity?: Capacity;
}

/** Field of the spec that each flag sets; several where it sets several. */
export const ROUTING_PATHS: Readonly<Record<keyof RoutingFlags, readonly string[]>> = {
  topK: ["routing.top_k"],
  gateNormalization: ["routing.gate_normalization"],
  secondExpertPolicy: ["routing.second_expert_policy"],
  priority: ["routing.priority"],
  encoderChoice: ["routing.encoder_choice"],
  selectionBias: ["routing.selection_bias.update_rate"],
  group: ["routing.group", "routing.group_tokens"],
  trainCapacity: ["routing.train_capacity"],
  evalCapacity: ["routing.eval_capacity"],
};

const CAPACITIES = "dropless, factor:1.25, factor_k:1.25 or fixed:8";

export function routingFlags(command: Command): Command {
  return command
    .option("--top-k <n>", "experts per token; the model's when left out", smallInteger)
    .option("--gate-normalization <rule>", "none, top_k; the model's when left out", enumValue(GateNormalizationSchema))
    .option("--second-expert-policy <policy>", "always, random", enumValue(SecondExpertPolicySchema))
    .option(
      "--priority <rule>",
      "who takes a slot first: position, batch_prioritized",
      enumValue(RoutingPrioritySchema),
    )
    .option("--encoder-choice <who>", "who chooses in the encoder: tokens, experts", enumValue(RoutingChoiceSchema))
    .option("--selection-bias <rate>", "balances loads by biases that move by so much a step", real)
    .option("--group <group>", "tokens that compete for slots: batch, sequence, or so many, tokens:64", parseGroup)
    .option("--train-capacity <rule>", `slots in training: ${CAPACITIES}`, capacity)
    .option("--eval-capacity <rule>", `slots in evaluation and generation: ${CAPACITIES}`, capacity);
}

/** Puts into the spec what the flags say. */
export function assignRouting(spec: RunSpec, flags: RoutingFlags): void {
  const routing = spec.routing ?? create(RoutingOptionsSchema);
  const { topK, gateNormalization, secondExpertPolicy, priority, encoderChoice, group } = flags;
  const [trainCapacity, evalCapacity] = [flags.trainCapacity, flags.evalCapacity].map(
    (rule) => rule && create(CapacityRuleSchema, rule),
  );
  const { selectionBias: updateRate } = flags;
  const selectionBias = updateRate === undefined ? undefined : create(SelectionBiasSchema, { updateRate });
  const rules = { topK, gateNormalization, secondExpertPolicy, priority, encoderChoice, selectionBias };
  const said = { ...rules, trainCapacity, evalCapacity, ...group };
  if (assign(routing, said)) spec.routing = routing;
}

/** `batch`, `sequence` or `tokens:64`. */
export function parseGroup(text: string): RoutingFlags["group"] {
  const [word, size, ...more] = text.split(":");
  if (text === "batch") return { group: RoutingGroup.BATCH, groupTokens: 0n };
  if (text === "sequence") return { group: RoutingGroup.SEQUENCE, groupTokens: 0n };
  if (word !== "tokens" || size === undefined || more.length > 0)
    throw new InvalidArgumentError("It can be batch, sequence, or tokens:N.");
  return { group: RoutingGroup.TOKENS, groupTokens: integer(size) };
}

function capacity(text: string): Capacity {
  const [word, value, ...more] = text.split(":");
  const known = ["factor", "factor_k", "fixed"].includes(word) && value !== undefined && more.length === 0;
  if (text === "dropless") return { rule: { case: "dropless", value: {} } };
  if (!known) throw new InvalidArgumentError(`It can be ${CAPACITIES}.`);
  if (word === "fixed") return { rule: { case: "fixed", value: { slots: integer(value) } } };
  return { rule: { case: word === "factor" ? "factor" : "factorK", value: { factor: real(value) } } };
}
