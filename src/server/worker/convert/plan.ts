// Freeze plans, both ways: a plan comes in with a command, and goes out when a run opens under the plan of its checkpoint.

import { create, type MessageInitShape } from "@bufbuild/protobuf";
import * as proto from "../../../../proto/gen/thaw/v1/group_pb.ts";
import type { Selector, TrainablePlan, TrainableSelection } from "../../../trainer/types.ts";
import * as enums from "./enums.ts";

/**
 * A plan with the contract's defaults: what is unset keeps optimizer state and router losses, and selects nothing.
 * @param field path of the plan in the caller's terms, for errors
 * @throws InputError for an enum value this version does not know
 */
export function planFromProto(plan: proto.TrainablePlan | undefined, field = "plan"): TrainablePlan {
  return {
    selection: selectionFromProto(plan?.selection, `${field}.selection`),
    optimizerState: plan?.optimizerState
      ? enums.optimizerStatePolicy.fromProto(plan.optimizerState, `${field}.optimizer_state`)
      : "keep",
    routerLosses: plan?.routerLosses
      ? enums.routerLossPolicy.fromProto(plan.routerLosses, `${field}.router_losses`)
      : "keep",
  };
}

function selectionFromProto(s: proto.TrainableSelection | undefined, field: string): TrainableSelection {
  return {
    ...(s?.preset && { preset: enums.preset.fromProto(s.preset, `${field}.preset`) }),
    add: (s?.add ?? []).map((selector, i) => selectorFromProto(selector, `${field}.add[${i}]`)),
    remove: (s?.remove ?? []).map((selector, i) => selectorFromProto(selector, `${field}.remove[${i}]`)),
    ...(s?.router !== undefined && { router: s.router }),
  };
}

function selectorFromProto(s: proto.Selector, field: string): Selector {
  return {
    kinds: s.kinds.map((kind, i) => enums.parameterKind.fromProto(kind, `${field}.kinds[${i}]`)),
    stacks: s.stacks.map((stack, i) => enums.stack.fromProto(stack, `${field}.stacks[${i}]`)),
    ...(s.layers && { layers: { first: s.layers.first, last: s.layers.last } }),
    experts: [...s.experts],
  };
}

/** The plan with nothing left to a default. */
export function planToProto(plan: TrainablePlan): proto.TrainablePlan {
  const { preset, add, remove, router } = plan.selection;
  return create(proto.TrainablePlanSchema, {
    selection: {
      preset: preset && enums.preset.toProto(preset),
      add: add.map(selectorToProto),
      remove: remove.map(selectorToProto),
      router,
    },
    optimizerState: enums.optimizerStatePolicy.toProto(plan.optimizerState),
    routerLosses: enums.routerLossPolicy.toProto(plan.routerLosses),
  });
}

const selectorToProto = (s: Selector): MessageInitShape<typeof proto.SelectorSchema> => ({
  kinds: s.kinds.map(enums.parameterKind.toProto),
  stacks: s.stacks.map(enums.stack.toProto),
  layers: s.layers,
  experts: [...s.experts],
});
