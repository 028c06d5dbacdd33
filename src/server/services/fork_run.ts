// ForkRun: a run that goes on from another run's checkpoint with changed settings. A fork that keeps the optimizer state
// opens as the interrupted run itself would; one that resets it is a run with an initial checkpoint.

import { create, type MessageInitShape } from "@bufbuild/protobuf";
import {
  Priority,
  PrioritySchema,
  type Run,
  type RunSchema,
  type RunSpec,
  RunSpecSchema,
} from "../../../proto/gen/thaw/v1/run_pb.ts";
import {
  type ForkRunRequest,
  ForkRunRequestSchema,
  type ForkRunResponse,
  ForkRunResponseSchema,
} from "../../../proto/gen/thaw/v1/run_service_pb.ts";
import type { Core } from "../core.ts";
import { forCaller } from "../gpu/failures.ts";
import { checkpointIn } from "../ids.ts";
import { notFound } from "../runs/states.ts";
import { knownEnum } from "../validation/plan.ts";
import { checkDisplayName, checkLabels, checkNewId, checkRequestId, collectProblems } from "../validation/problems.ts";
import { checkRunSpec } from "../validation/run_spec.ts";
import { mergeSpec } from "../validation/spec_mask.ts";
import { checkpointPlan } from "../worker/checkpoint_state.ts";
import { planToProto } from "../worker/convert/plan.ts";
import { admit, completeSpec } from "./complete_spec.ts";

/** @throws RpcError INVALID_ARGUMENT with everything wrong with the request and with the spec that comes of it */
export async function forkRun(core: Core, request: ForkRunRequest, owner: string): Promise<ForkRunResponse> {
  const problems = collectProblems();
  const ids = checkpointIn(request.sourceCheckpoint);
  problems.require(ids !== undefined, "source_checkpoint", "is not `runs/{run}/checkpoints/{checkpoint}`");
  checkNewId(problems, request.runId, "run_id");
  checkRequestId(problems, request.requestId);
  checkDisplayName(problems, request.displayName, "display_name");
  checkLabels(problems, request.labels, "labels");
  knownEnum(problems, "priority", PrioritySchema, request.priority);
  if (!ids) problems.throwIfAny();

  const make = async (): Promise<MessageInitShape<typeof RunSchema>> => {
    const source = await core.registry.run(ids!.run);
    const found = source && (await core.registry.checkpoint(ids!.run, ids!.checkpoint));
    if (!found) throw notFound(request.sourceCheckpoint);
    const { step } = found.checkpoint;
    const told = source.run.spec!;
    const directory = core.checkpoints.directoryOf(ids!.run, found.directory);
    const trainable = planToProto(await forCaller(checkpointPlan(directory)));
    const { sourceCheckpoint, resetOptimizerState: reset } = request;
    const base = create(RunSpecSchema, { ...told, trainable, initialCheckpoint: reset ? sourceCheckpoint : "" });
    const paths = request.updateMask?.paths ?? [];
    const merged = mergeSpec(problems, base, request.spec ?? create(RunSpecSchema), paths);
    checkRunSpec(problems, merged, "spec");
    if (!reset) {
      const rule = (spec: RunSpec) => spec.optimizer?.algorithm.case ?? "adamw";
      const message = `the checkpoint has the state of ${rule(told)}; another rule needs reset_optimizer_state`;
      problems.require(rule(merged) === rule(told), "spec.optimizer", message);
      problems.require(merged.steps > step, "spec.steps", `is ${merged.steps}; the checkpoint is at step ${step}`);
    }
    problems.throwIfAny();
    const spec = await completeSpec(core, merged);
    const { displayName, labels, startPaused } = request;
    const begins = reset ? {} : { sourceCheckpoint, startStep: step, step };
    const priority = request.priority || Priority.NORMAL;
    const cost = await admit(core, spec);
    return { displayName, labels, priority, owner, startPaused, spec, trainable: spec.trainable, cost, ...begins };
  };
  const once = { schema: ForkRunRequestSchema, body: request };
  return core.answers.once(request.requestId, once, ForkRunResponseSchema, async (remember) => {
    const answer = remember && ((run: Run) => remember(create(ForkRunResponseSchema, { run })));
    const { run } = await core.runs.create(request.runId, await make(), answer);
    return create(ForkRunResponseSchema, { run });
  });
}
