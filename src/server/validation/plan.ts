// What a freeze plan may say, and whether its selectors match anything in a model. Matching is the trainer's, on the
// model's stored description: no GPU is asked, so a run can be refused while another one trains.

import type { DescEnum } from "@bufbuild/protobuf";
import {
  OptimizerStatePolicySchema,
  ParameterKind,
  ParameterKindSchema,
  type ParameterTensor,
  PresetSchema,
  RouterLossPolicySchema,
  type Selector,
  StackSchema,
  type TrainablePlan,
} from "../../../proto/gen/thaw/v1/group_pb.ts";
import type { ModelDescription } from "../../../proto/gen/thaw/v1/model_pb.ts";
import { resolveTrainable } from "../../trainer/groups.ts";
import type { ParameterSpec } from "../../trainer/model/parameters.ts";
import { InputError } from "../../trainer/types.ts";
import { invalidArgument } from "../rpc/errors.ts";
import * as enums from "../worker/convert/enums.ts";
import { planFromProto } from "../worker/convert/plan.ts";
import { checkRange, type Problems } from "./problems.ts";

const MAX_SELECTORS = 256;
const MAX_CONDITIONS = 4096;
const MAX_INDEX = 2 ** 20;

/** @param required whether a selection must be there: a run's first plan has a default, a command has none */
export function checkPlan(problems: Problems, plan: TrainablePlan | undefined, field: string, required = true): void {
  if (!plan?.selection && required) problems.add(plan ? `${field}.selection` : field, "required");
  if (!plan) return;
  knownEnum(problems, `${field}.optimizer_state`, OptimizerStatePolicySchema, plan.optimizerState);
  knownEnum(problems, `${field}.router_losses`, RouterLossPolicySchema, plan.routerLosses);
  const { selection } = plan;
  if (!selection) return;
  const path = `${field}.selection`;
  knownEnum(problems, `${path}.preset`, PresetSchema, selection.preset);
  for (const list of ["add", "remove"] as const) {
    const selectors = selection[list];
    problems.require(selectors.length <= MAX_SELECTORS, `${path}.${list}`, `more than ${MAX_SELECTORS} selectors`);
    selectors
      .slice(0, MAX_SELECTORS)
      .forEach((selector, index) => void checkSelector(problems, selector, `${path}.${list}[${index}]`));
  }
}

function checkSelector(problems: Problems, selector: Selector, field: string): void {
  const { kinds, stacks, layers, experts } = selector;
  const conditions = kinds.length + stacks.length + experts.length;
  if (conditions > MAX_CONDITIONS) {
    problems.add(field, `more than ${MAX_CONDITIONS} conditions`);
    return;
  }
  kinds.forEach((kind, i) => void knownEnum(problems, `${field}.kinds[${i}]`, ParameterKindSchema, kind, true));
  stacks.forEach((stack, i) => void knownEnum(problems, `${field}.stacks[${i}]`, StackSchema, stack, true));
  experts.forEach((expert, i) => void checkRange(problems, `${field}.experts[${i}]`, expert, 0, MAX_INDEX));
  if (!layers) return;
  checkRange(problems, `${field}.layers.first`, layers.first, 0, MAX_INDEX);
  problems.require(layers.last >= layers.first, `${field}.layers.last`, `is ${layers.last}; below first`);
}

/** A value of the enum; 0 (unspecified) only where that means the default. */
export function knownEnum(problems: Problems, field: string, schema: DescEnum, value: number, set = false): void {
  if (!schema.value[value] || (set && value === 0)) problems.add(field, `is ${value}; not a value it can have`);
}

const specOf = (tensor: ParameterTensor): ParameterSpec => ({
  name: tensor.name,
  kind: enums.parameterKind.fromProto(tensor.kind, "kind"),
  stack: tensor.stack ? enums.stack.fromProto(tensor.stack, "stack") : undefined,
  layer: tensor.layer,
  shape: tensor.shape.map(Number),
  experts: tensor.kind === ParameterKind.EXPERT ? Number(tensor.shape[0]) : undefined,
  keys: [tensor.name],
});

/** @throws RpcError INVALID_ARGUMENT naming every selector of the plan that matches nothing in the model */
export function checkMatches(plan: TrainablePlan, description: ModelDescription, field: string): void {
  const parameters = description.groups.flatMap((group) => group.tensors.map(specOf));
  try {
    resolveTrainable(parameters, planFromProto(plan, field).selection, `${field}.selection`);
  } catch (error) {
    throw error instanceof InputError ? invalidArgument(error.problems) : error;
  }
}
