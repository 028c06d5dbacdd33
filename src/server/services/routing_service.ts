// RoutingService: token-level assignments as they happen, and summaries from the log.

import { status } from "@grpc/grpc-js";
import { StackSchema } from "../../../proto/gen/thaw/v1/group_pb.ts";
import { type RouteFilter, RouteSource, RouteSourceSchema } from "../../../proto/gen/thaw/v1/routing_pb.ts";
import type { RoutingService } from "../../../proto/gen/thaw/v1/routing_service_pb.ts";
import type { Core } from "../core.ts";
import { routingRecords, summarizeRouting } from "../routing/summary.ts";
import { refusal } from "../rpc/errors.ts";
import type { Handlers } from "../rpc/serve.ts";
import { hasEnded } from "../runs/states.ts";
import { knownEnum } from "../validation/plan.ts";
import { checkName, checkRange, collectProblems, type Problems } from "../validation/problems.ts";

const MAX_CONDITIONS = 4096;
const MAX_INDEX = 2 ** 20;

function checkFilter(problems: Problems, filter: RouteFilter): void {
  const { stacks, layers, experts, exampleIds, sources, samplingRate } = filter;
  const conditions = stacks.length + layers.length + experts.length + exampleIds.length + sources.length;
  if (conditions > MAX_CONDITIONS) {
    problems.add("filter", `more than ${MAX_CONDITIONS} conditions`);
    return;
  }
  stacks.forEach((stack, i) => void knownEnum(problems, `filter.stacks[${i}]`, StackSchema, stack, true));
  sources.forEach((source, i) => void knownEnum(problems, `filter.sources[${i}]`, RouteSourceSchema, source, true));
  layers.forEach((layer, i) => void checkRange(problems, `filter.layers[${i}]`, layer, 0, MAX_INDEX));
  experts.forEach((expert, i) => void checkRange(problems, `filter.experts[${i}]`, expert, 0, MAX_INDEX));
  exampleIds.forEach((id, i) => void checkRange(problems, `filter.example_ids[${i}]`, id, 0, 2 ** 32 - 2));
  const inRange = samplingRate === undefined || (samplingRate > 0 && samplingRate <= 1);
  problems.require(inRange, "filter.sampling_rate", `is ${samplingRate}; must be in (0, 1]`);
}

export function routingService(core: Core): Handlers<typeof RoutingService> {
  const { registry, runs, routes } = core;
  return {
    async *streamAssignments(request, { signal }) {
      const problems = collectProblems();
      const id = checkName(problems, "runs", request.run, "run");
      if (request.filter) checkFilter(problems, request.filter);
      problems.throwIfAny();
      const { run } = await runs.get(id);
      if (hasEnded(run.state)) return yield {};
      const subscription = await routes.subscribe(run.name, request);
      try {
        yield {};
        // It may have ended before the subscription was in place.
        if (hasEnded((await runs.get(id)).run.state)) return;
        for (let next = await subscription.next(signal); next; next = await subscription.next(signal)) yield next;
      } finally {
        subscription.close();
      }
    },

    async summarizeRouting(request) {
      const problems = collectProblems();
      const id = checkName(problems, "runs", request.run, "run");
      const source = request.source || RouteSource.TRAINING;
      const summarized = source === RouteSource.TRAINING || source === RouteSource.EVALUATION;
      problems.require(summarized, "source", "must be training or evaluation");
      const first = request.firstStep ?? 0n;
      const last = request.lastStep ?? BigInt(Number.MAX_SAFE_INTEGER);
      checkRange(problems, "first_step", first, 0, Number.MAX_SAFE_INTEGER);
      checkRange(problems, "last_step", last, 0, Number.MAX_SAFE_INTEGER);
      problems.require(first <= last, "last_step", "is below first_step");
      problems.throwIfAny();
      await runs.get(id);
      const kind = source === RouteSource.TRAINING ? "metrics" : "evaluation";
      const all = routingRecords(await registry.eventsOfKind(id, kind, 0, Number(last)));
      const window = all.filter((record) => record.step >= first && record.step <= last);
      if (window.length === 0) {
        const message = `${request.run} has no record of ${kind} in that window`;
        throw refusal(status.NOT_FOUND, "NO_RECORDS", message);
      }
      return {
        layers: summarizeRouting(window, all[0]),
        firstStep: window[0].step,
        lastStep: window[window.length - 1].step,
        records: BigInt(window.length),
        referenceStep: all[0].step,
      };
    },
  };
}
