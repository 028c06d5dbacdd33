// Whether a model can route as a run asks; what the options alone may say is in run_spec.ts.

import { ParameterKind, Stack } from "../../../proto/gen/thaw/v1/group_pb.ts";
import type { ModelDescription } from "../../../proto/gen/thaw/v1/model_pb.ts";
import { type RoutingOptions, RoutingPriority } from "../../../proto/gen/thaw/v1/routing_pb.ts";
import type { Problems } from "./problems.ts";

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
