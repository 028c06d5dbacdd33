// The routing rules of a run in the trainer's terms.

import * as proto from "../../../../proto/gen/thaw/v1/routing_pb.ts";
import { type CapacityRule, InputError, type RoutingOptions } from "../../../trainer/types.ts";
import * as enums from "./enums.ts";

/** @param routing with every default filled in */
export const routingOptions = (routing: proto.RoutingOptions): RoutingOptions => ({
  trainCapacity: capacityRule(routing.trainCapacity),
  evalCapacity: capacityRule(routing.evalCapacity),
  group: routingGroup(routing),
  routePadding: routing.routePadding,
  jitter: routing.jitter,
  topK: routing.topK || undefined,
  gateNormalization: routing.gateNormalization
    ? enums.gateNormalization.fromProto(routing.gateNormalization, "spec.routing.gate_normalization")
    : undefined,
  secondExpertPolicy: enums.secondExpertPolicy.fromProto(
    routing.secondExpertPolicy,
    "spec.routing.second_expert_policy",
  ),
  priority: enums.routingPriority.fromProto(routing.priority, "spec.routing.priority"),
  ...(routing.selectionBias && { selectionBias: { updateRate: routing.selectionBias.updateRate! } }),
  encoderChoice: enums.routingChoice.fromProto(routing.encoderChoice, "spec.routing.encoder_choice"),
});

function routingGroup({ group, groupTokens }: proto.RoutingOptions): RoutingOptions["group"] {
  switch (group) {
    case proto.RoutingGroup.BATCH:
      return "batch";
    case proto.RoutingGroup.SEQUENCE:
      return "sequence";
    case proto.RoutingGroup.TOKENS:
      return { tokens: Number(groupTokens) };
    default:
      throw new InputError([{ field: "spec.routing.group", message: `has the unknown value ${group}` }]);
  }
}

function capacityRule(rule: proto.CapacityRule | undefined): CapacityRule {
  const chosen = rule?.rule;
  switch (chosen?.case) {
    case "factor":
      return { rule: "factor", factor: chosen.value.factor };
    case "factorK":
      return { rule: "factor_k", factor: chosen.value.factor };
    case "fixed":
      return { rule: "fixed", slots: Number(chosen.value.slots) };
    case "dropless":
    case undefined:
      return { rule: "dropless" };
  }
}
