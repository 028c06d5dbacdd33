// How a run may be told to route: what the options alone may say, and whether a model can route so.

import { ParameterKind, Stack } from "../../../proto/gen/thaw/v1/group_pb.ts";
import type { ModelDescription } from "../../../proto/gen/thaw/v1/model_pb.ts";
import {
  type CapacityRule,
  GateNormalizationSchema,
  RoutingGroup,
  RoutingGroupSchema,
  type RoutingOptions,
  RoutingPriority,
  RoutingPrioritySchema,
  SecondExpertPolicySchema,
} from "../../../proto/gen/thaw/v1/routing_pb.ts";
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
}

function checkCapacity(problems: Problems, capacity: CapacityRule | undefined, field: string): void {
  const rule = capacity?.rule;
  if (rule?.case === "factor") positive(problems, `${field}.factor.factor`, rule.value.factor);
  if (rule?.case === "factorK") positive(problems, `${field}.factor_k.factor`, rule.value.factor);
  if (rule?.case === "fixed") checkRange(problems, `${field}.fixed.slots`, rule.value.slots, 1, MAX_COUNT);
}

/** Whether the model can route so; `options` with every default filled in. */
export function checkRoutes(
  problems: Problems,
  { topK, priority }: RoutingOptions,
  { groups }: ModelDescription,
  field: string,
): void {
  const tensors = groups.flatMap((group) => group.tensors);
  // [experts, …]
  const experts = tensors.filter(({ kind }) => kind === ParameterKind.EXPERT).map(({ shape }) => Number(shape[0]));
  const fewest = Math.min(...experts);
  problems.require(topK <= fewest, `${field}.top_k`, `is ${topK}; the model has ${fewest} experts`);
  const encoderRoutes = tensors.some(({ kind, stack }) => kind === ParameterKind.ROUTER && stack === Stack.ENCODER);
  const possible = priority !== RoutingPriority.BATCH_PRIORITIZED || encoderRoutes;
  const reason =
    "batch_prioritized needs a sparse encoder layer, and the model has none; a decoder would see its future";
  problems.require(possible, `${field}.priority`, reason);
}
