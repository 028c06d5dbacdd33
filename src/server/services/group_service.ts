// GroupService: what there is to train, what training it costs, what trains.

import { create } from "@bufbuild/protobuf";
import {
  type Group,
  GroupSchema,
  type ParameterTensor,
  ParameterTensorSchema,
  type PlanCost,
  type TrainablePlan,
  type TrainableReport,
} from "../../../proto/gen/thaw/v1/group_pb.ts";
import {
  type GroupService,
  PlanTrainableResponseSchema,
  SetTrainableRequestSchema,
  SetTrainableResponseSchema,
} from "../../../proto/gen/thaw/v1/group_service_pb.ts";
import type { ModelDescription } from "../../../proto/gen/thaw/v1/model_pb.ts";
import { ModelTargetSchema, TargetSchema } from "../../../proto/gen/thaw/worker/v1/worker_pb.ts";
import type { Core } from "../core.ts";
import { forCaller } from "../gpu/failures.ts";
import { idIn } from "../ids.ts";
import type { Handlers } from "../rpc/serve.ts";
import { ALLOWED, notFound, requireState } from "../runs/states.ts";
import { modelDirectory } from "../storage/layout.ts";
import { checkMatches, checkPlan } from "../validation/plan.ts";
import {
  checkName,
  checkPage,
  checkRequestId,
  collectProblems,
  type Problems,
  pageOf,
} from "../validation/problems.ts";
import { checkShape } from "../validation/run_spec.ts";
import * as enums from "../worker/convert/enums.ts";
import { planFromProto, planToProto } from "../worker/convert/plan.ts";

/** A run or a model, by name. */
type Parent = { readonly run: string } | { readonly model: string } | undefined;

export function checkParent(problems: Problems, name: string, field: string): Parent {
  const run = idIn("runs", name);
  const model = idIn("models", name);
  if (run) return { run };
  if (model) return { model };
  problems.add(field, name === "" ? "required" : "is not `runs/{run}` or `models/{model}`");
  return undefined;
}

/** A plan with nothing left to a default, so that equal plans are equal messages. */
const normalized = (plan: TrainablePlan): TrainablePlan => planToProto(planFromProto(plan));

const flops = (cost: PlanCost | undefined): bigint => (cost ? cost.forwardFlops + cost.backwardFlops : 0n);

/** A run's or model's groups. @param trains tensors that train; undefined: all of them */
function groupsOf(
  parent: string,
  description: ModelDescription,
  trains: ReadonlyMap<string, ParameterTensor> | undefined,
): Group[] {
  return description.groups.map((group) => {
    const tensors = group.tensors.map((tensor) => {
      if (!trains) return create(ParameterTensorSchema, { ...tensor, trainable: true });
      const trained = trains.get(tensor.name);
      return create(ParameterTensorSchema, {
        ...tensor,
        trainable: trained !== undefined,
        experts: trained?.experts ?? [],
      });
    });
    const trainable = (tensor: ParameterTensor): bigint =>
      trains ? (trains.get(tensor.name)?.parameters ?? 0n) : tensor.parameters;
    return create(GroupSchema, {
      ...group,
      name: `${parent}/groups/${enums.parameterKind.fromProto(group.kind, "kind")}`,
      tensors,
      trainableParameters: tensors.reduce((sum, tensor) => sum + trainable(tensor), 0n),
    });
  });
}

/** A model's description with its groups named. */
export const named = (model: string, description: ModelDescription): ModelDescription => ({
  ...description,
  groups: groupsOf(model, description, undefined),
});

export function groupService(core: Core): Handlers<typeof GroupService> {
  const { registry, runs, gpu, answers, layout } = core;

  async function describe(id: string): Promise<ModelDescription> {
    const model = await registry.model(id);
    if (!model) throw notFound(`models/${id}`);
    return model.description;
  }

  /** What trains in a run now, or would in its first step. */
  async function inForce(id: string): Promise<{ plan: TrainablePlan; report: TrainableReport }> {
    const { run, report } = await runs.get(id);
    const plan = run.trainable!;
    return { plan, report: report ?? (await runs.plan(id, plan)) };
  }

  /** The plan of a request for a run, after checking that it means something there. */
  async function planFor(id: string, plan: TrainablePlan, field: string): Promise<TrainablePlan> {
    const { run } = await runs.get(id);
    const model = await registry.model(idIn("models", run.spec!.model)!);
    if (model) checkMatches(plan, model.description, field);
    return normalized(plan);
  }

  return {
    async listGroups(request) {
      const problems = collectProblems();
      const parent = checkParent(problems, request.parent, "parent");
      const page = checkPage(problems, request);
      problems.throwIfAny();
      let groups: Group[];
      if (parent && "run" in parent) {
        const { run } = await runs.get(parent.run);
        const { report } = await inForce(parent.run);
        const trains = new Map(report.matched.map((tensor) => [tensor.name, tensor]));
        groups = groupsOf(request.parent, await describe(idIn("models", run.spec!.model)!), trains);
      } else {
        groups = groupsOf(request.parent, await describe(parent!.model), undefined);
      }
      // There are eight kinds: positions count down from the first, as pages of newer things do.
      const positioned = groups.map((item, index) => ({ position: groups.length - index, item }));
      const rest = positioned.filter(({ position }) => page.before === undefined || position < page.before);
      const { items, next } = pageOf(rest.slice(0, page.size + 1), page);
      return { groups: items, nextPageToken: next };
    },

    async planTrainable(request) {
      const problems = collectProblems();
      const parent = checkParent(problems, request.parent, "parent");
      checkPlan(problems, request.plan, "plan");
      checkShape(problems, request);
      const shape = request.batchSize + request.maxInputTokens + request.maxTargetTokens;
      if (parent && "run" in parent && shape !== 0n) {
        problems.add("batch_size", "this and max_*_tokens must be unset for a run: its own hold");
      }
      problems.throwIfAny();
      let report: TrainableReport;
      if (parent && "run" in parent) {
        report = await runs.plan(parent.run, await planFor(parent.run, request.plan!, "plan"));
      } else {
        const model = await registry.model(parent!.model);
        if (!model) throw notFound(request.parent);
        checkMatches(request.plan!, model.description, "plan");
        const value = create(ModelTargetSchema, {
          directory: modelDirectory(layout, model.directory),
          batchSize: request.batchSize || 16n,
          maxInputTokens: request.maxInputTokens || 128n,
          maxTargetTokens: request.maxTargetTokens || 32n,
        });
        const target = create(TargetSchema, { target: { case: "model", value } });
        const plan = normalized(request.plan!);
        const reply = await forCaller(gpu.request({ case: "planTrainable", value: { target, plan } }));
        if (reply.result.case !== "trainable") throw new Error(`PlanTrainable answered with ${reply.result.case}`);
        report = reply.result.value;
      }
      const { before, after } = report;
      return create(PlanTrainableResponseSchema, {
        report,
        savedBytes: (before?.peakBytes ?? 0n) - (after?.peakBytes ?? 0n),
        savedFlops: flops(before) - flops(after),
      });
    },

    async setTrainable(request) {
      const problems = collectProblems();
      const id = checkName(problems, "runs", request.name, "name");
      checkRequestId(problems, request.requestId);
      checkPlan(problems, request.plan, "plan");
      problems.throwIfAny();
      if (request.validateOnly) {
        requireState((await runs.get(id)).run, ALLOWED.setTrainable);
        const report = await runs.plan(id, await planFor(id, request.plan!, "plan"));
        return create(SetTrainableResponseSchema, { report });
      }
      const once = { schema: SetTrainableRequestSchema, body: request };
      return answers.once(request.requestId, once, SetTrainableResponseSchema, async () => {
        const plan = await planFor(id, request.plan!, "plan");
        return create(SetTrainableResponseSchema, { report: await runs.setTrainable(id, plan) });
      });
    },

    async getTrainable({ name }) {
      const problems = collectProblems();
      const id = checkName(problems, "runs", name, "name");
      problems.throwIfAny();
      const { plan, report } = await inForce(id);
      return { plan, matched: report.matched, cost: report.after, effectiveStep: report.effectiveStep };
    },
  };
}
