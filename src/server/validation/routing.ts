// How a run may be told to route: what the options alone may say, and whether a model can route so.

import type { ModelDescription } from "../../../proto/gen/thaw/v1/model_pb.ts";
import {
  type CapacityRule,
  GateNormalizationSchema,
  RoutingChoiceSchema,
  RoutingGroup,
  RoutingGroupSchema,
  type RoutingOptions,
  RoutingPrioritySchema,
  SecondExpertPolicySchema,
} from "../../../proto/gen/thaw/v1/routing_pb.ts";
import { packingProblems } from "../../trainer/data/batching.ts";
import { modelOf } from "../../trainer/model/open.ts";
import type { RunConfig } from "../../trainer/types.ts";
import { fraction, positive } from "./numbers.ts";
import { knownEnum } from "./plan.ts";
import { checkRange, type Problems } from "./problems.ts";

const MAX_TOP_K = 16;
const MAX_COUNT = 2 ** 31 - 1;

/** What the options say by themselves. */
export function checkRouting(problems: Problems, routing: RoutingOptions, field: string): void {
  checkCapacity(problems, routing.trainCapacity, `${field}.train_capacity`);
  checkCapacity(problems, routing.evalCapacity, `${field}.eval_capacity`);
  knownEnum(problems, `${field}.group`, RoutingGroupSchema, routing.group);
  if (routing.group === RoutingGroup.TOKENS)
    checkRange(problems, `${field}.group_tokens`, routing.groupTokens, 1, MAX_COUNT);
  else problems.require(routing.groupTokens === 0n, `${field}.group_tokens`, "is only for the group TOKENS");
  fraction(problems, `${field}.jitter`, routing.jitter);
  checkRange(problems, `${field}.top_k`, routing.topK, 0, MAX_TOP_K);
  knownEnum(problems, `${field}.gate_normalization`, GateNormalizationSchema, routing.gateNormalization);
  knownEnum(problems, `${field}.second_expert_policy`, SecondExpertPolicySchema, routing.secondExpertPolicy);
  knownEnum(problems, `${field}.priority`, RoutingPrioritySchema, routing.priority);
  positive(problems, `${field}.selection_bias.update_rate`, routing.selectionBias?.updateRate);
  knownEnum(problems, `${field}.encoder_choice`, RoutingChoiceSchema, routing.encoderChoice);
}

function checkCapacity(problems: Problems, capacity: CapacityRule | undefined, field: string): void {
  const rule = capacity?.rule;
  if (rule?.case === "factor") positive(problems, `${field}.factor.factor`, rule.value.factor);
  if (rule?.case === "factorK") positive(problems, `${field}.factor_k.factor`, rule.value.factor);
  if (rule?.case === "fixed") checkRange(problems, `${field}.fixed.slots`, rule.value.slots, 1, MAX_COUNT);
}

/** Whether the model of this description can route and lose as a run asks, with batches made as it asks. */
export function checkRoutes(
  problems: Problems,
  { routing, losses, batching }: Pick<RunConfig, "routing" | "losses" | "batching">,
  { config }: ModelDescription,
  field: string,
): void {
  const found = [...modelOf(config ?? {}).routingProblems(routing, losses), ...packingProblems({ routing, batching })];
  for (const wrong of found) problems.add(`${field}.${wrong.field}`, wrong.message);
}
