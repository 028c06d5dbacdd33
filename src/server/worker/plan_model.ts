// Prices a freeze plan for a model that no run has opened: on the host alone, with the settings of a run that is to be
// opened, or of one of which nothing but the shapes is said.

import { create } from "@bufbuild/protobuf";
import { type RunSpec, RunSpecSchema } from "../../../proto/gen/thaw/v1/run_pb.ts";
import type { ModelTarget } from "../../../proto/gen/thaw/worker/v1/worker_pb.ts";
import type { Capabilities } from "../../kernels/capabilities.ts";
import { matchedTensors, resolveTrainable } from "../../trainer/groups.ts";
import { openModelDirectory } from "../../trainer/model/open.ts";
import { planPrograms } from "../../trainer/run/plan.ts";
import type { TrainablePlan, TrainableReport } from "../../trainer/types.ts";
import { trainingOptions } from "./convert/run_config.ts";
import { fillRunSpec } from "./convert/run_spec.ts";

const EVERYTHING: TrainablePlan = {
  selection: { preset: "all", add: [], remove: [] },
  optimizerState: "keep",
  routerLosses: "keep",
};

/**
 * What `plan` would train, and its cost compared with training everything. Sequences count as being as long as they may
 * be; nothing is allocated, and a plan that does not fit is priced all the same.
 * @throws InputError for a directory that holds no model, and for a selector that matches nothing
 */
export async function planModel(
  capabilities: Capabilities,
  target: ModelTarget,
  plan: TrainablePlan,
  spec: RunSpec = create(RunSpecSchema),
): Promise<TrainableReport> {
  const { model, checkpoint } = await openModelDirectory(target.checkpointDirectory || target.directory);
  await checkpoint.close();
  const options = trainingOptions(fillRunSpec(spec, []));
  const lengths = { input: Number(target.maxInputTokens), target: Number(target.maxTargetTokens) };
  const price = (priced: TrainablePlan) => {
    const trainable = resolveTrainable(model.parameters, priced.selection, "plan.selection");
    const training = { plan: priced, trainable, shapes: [{ ...lengths, share: 1 }] };
    const config = { ...options, batchSize: Number(target.batchSize) };
    return { trainable, cost: planPrograms({ model, capabilities, config, training, inference: lengths }).cost };
  };
  const after = price(plan);
  return {
    matched: matchedTensors(model.parameters, after.trainable),
    before: price(EVERYTHING).cost,
    after: after.cost,
    state: { restored: [], fresh: [], kept: [], dropped: [] },
    effectiveStep: 0,
  };
}
