// What a new run is told, completed and checked against what it refers to, and priced.

import { create } from "@bufbuild/protobuf";
import { status } from "@grpc/grpc-js";
import type { PlanCost, TrainableReport } from "../../../proto/gen/thaw/v1/group_pb.ts";
import { EvaluationMetric, type RunSpec } from "../../../proto/gen/thaw/v1/run_pb.ts";
import { ModelTargetSchema, TargetSchema } from "../../../proto/gen/thaw/worker/v1/worker_pb.ts";
import { RpcError } from "../../../proto/rpc/status.ts";
import type { Core } from "../core.ts";
import { forCaller, outOfMemory } from "../gpu/failures.ts";
import { checkpointIn, idIn } from "../ids.ts";
import { datasetsOf } from "../runs/datasets.ts";
import { notFound } from "../runs/states.ts";
import { modelDirectory } from "../storage/layout.ts";
import { checkMatches } from "../validation/plan.ts";
import { check } from "../validation/problems.ts";
import { checkRoutes } from "../validation/routing.ts";
import { trainingOptions } from "../worker/convert/run_config.ts";
import { fillRunSpec } from "../worker/convert/run_spec.ts";

/** The spec with every default, after looking up what it refers to. @throws RpcError with everything that is missing */
export async function completeSpec(core: Core, spec: RunSpec): Promise<RunSpec & Required<Pick<RunSpec, "trainable">>> {
  const { registry } = core;
  const model = await registry.model(idIn("models", spec.model)!);
  if (!model) throw notFound(spec.model);
  const [dataset, ...mixed] = await Promise.all(
    datasetsOf(spec).map(async (name) => {
      const found = await registry.dataset(idIn("datasets", name)!);
      if (!found) throw notFound(name);
      return found;
    }),
  );
  const splits = dataset.dataset.splits.map(({ name }) => name);
  const filled = fillRunSpec(spec, splits);
  check((problems) => {
    problems.require(splits.includes("train"), "spec.dataset", "has no split `train`");
    mixed.forEach((other, index) => {
      const trains = other.dataset.splits.some(({ name }) => name === "train");
      problems.require(trains, `spec.mixture.datasets[${index}]`, "has no split `train`");
    });
    filled.evaluation.splits.forEach((split, index) => {
      problems.require(splits.includes(split), `spec.evaluation.splits[${index}]`, `${spec.dataset} has no such split`);
    });
    const watchesTask = filled.evaluation.overfitting?.metric === EvaluationMetric.PRIMARY;
    const scored = !watchesTask || dataset.dataset.task !== undefined;
    problems.require(scored, "spec.evaluation.overfitting.metric", `${spec.dataset} has no task, so no primary metric`);
    checkRoutes(problems, trainingOptions(filled), model.description, "spec");
  });
  checkMatches(filled.trainable, model.description, "spec.trainable");
  if (spec.initialCheckpoint) await checkInitialCheckpoint(core, spec);
  return filled;
}

async function checkInitialCheckpoint({ registry }: Core, spec: RunSpec): Promise<void> {
  const ids = checkpointIn(spec.initialCheckpoint)!;
  const source = await registry.run(ids.run);
  if (!source || !(await registry.checkpoint(ids.run, ids.checkpoint))) throw notFound(spec.initialCheckpoint);
  check((problems) => {
    const from = source.run.spec?.model;
    problems.require(from === spec.model, "spec.initial_checkpoint", `its run started from ${from}`);
  });
}

/** What the first step would train and cost. */
export async function price({ registry, layout, gpu }: Core, spec: RunSpec): Promise<TrainableReport> {
  const model = await registry.model(idIn("models", spec.model)!);
  const value = create(ModelTargetSchema, {
    directory: modelDirectory(layout, model!.directory),
    batchSize: spec.batchSize,
    maxInputTokens: spec.maxInputTokens,
    maxTargetTokens: spec.maxTargetTokens,
  });
  const target = create(TargetSchema, { target: { case: "model", value } });
  const reply = await forCaller(gpu.request({ case: "planTrainable", value: { target, plan: spec.trainable, spec } }));
  if (reply.result.case !== "trainable") throw new Error(`PlanTrainable answered with ${reply.result.case}`);
  return reply.result.value;
}

/**
 * What a step of a new run costs, sequences counted as being as long as they may be, once it is known to fit; undefined when
 * no GPU process is up to say.
 * @throws RpcError RESOURCE_EXHAUSTED, with the figures, when it needs more memory than there is
 */
export async function admit(core: Core, spec: RunSpec): Promise<PlanCost | undefined> {
  const { hello } = core.gpu;
  if (!hello) return undefined;
  const costOf = async (batchSize: bigint) => (await price(core, { ...spec, batchSize })).after;
  try {
    const cost = await costOf(spec.batchSize);
    const availableBytes = hello.memoryBytes;
    const fits = (one: PlanCost | undefined): boolean =>
      availableBytes === 0n || (one?.peakBytes ?? 0n) <= availableBytes;
    if (!cost || fits(cost)) return cost;
    let fittingBatchSize = spec.batchSize / 2n;
    while (fittingBatchSize > 0n && !fits(await costOf(fittingBatchSize))) fittingBatchSize /= 2n;
    throw outOfMemory({ neededBytes: cost.peakBytes, availableBytes, fittingBatchSize });
  } catch (error) {
    if (error instanceof RpcError && error.code === status.UNAVAILABLE) return undefined;
    throw error;
  }
}
