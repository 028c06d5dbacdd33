// StepService: a run on the GPU that does not step by itself, driven batch by batch. What a batch may hold is checked here
// as far as it takes no tokenizer.

import { create } from "@bufbuild/protobuf";
import type { RouteReference } from "../../../proto/gen/thaw/v1/routing_pb.ts";
import {
  ForwardBackwardRequestSchema,
  ForwardBackwardResponseSchema,
  OptimStepRequestSchema,
  OptimStepResponseSchema,
  type StepService,
  type TrainingExample,
} from "../../../proto/gen/thaw/v1/step_service_pb.ts";
import type { Core } from "../core.ts";
import { isId } from "../ids.ts";
import type { Handlers } from "../rpc/serve.ts";
import { checkName, checkRange, checkRequestId, collectProblems, type Problems } from "../validation/problems.ts";

/** As `batch_size` of a run may be. */
const MAX_EXAMPLES = 65_536;

export function stepService({ runs, answers }: Core): Handlers<typeof StepService> {
  return {
    async forwardBackward(request) {
      const problems = collectProblems();
      const id = checkCommon(problems, request);
      const { examples } = request;
      const fits = examples.length > 0 && examples.length <= MAX_EXAMPLES;
      problems.require(fits, "examples", `has ${examples.length}; a batch has 1 to ${MAX_EXAMPLES}`);
      examples.slice(0, MAX_EXAMPLES).forEach((example, i) => {
        const wrong = exampleProblem(example);
        if (wrong) problems.add(`examples[${i}]`, wrong);
        if (example.replay) checkReference(problems, example.replay, `examples[${i}].replay`);
      });
      checkRange(problems, "target_tokens", request.targetTokens, 0, 2 ** 31 - 1);
      problems.throwIfAny();
      const once = { schema: ForwardBackwardRequestSchema, body: request };
      return answers.once(request.requestId, once, ForwardBackwardResponseSchema, () =>
        runs.forwardBackward(id, request),
      );
    },

    async optimStep(request) {
      const problems = collectProblems();
      const id = checkCommon(problems, request);
      const { learningRate } = request;
      const valid = learningRate === undefined || (Number.isFinite(learningRate) && learningRate >= 0);
      problems.require(valid, "learning_rate", `is ${learningRate}; it must be a number from 0`);
      checkRange(problems, "batches", request.batches, 0, Number.MAX_SAFE_INTEGER);
      problems.throwIfAny();
      const once = { schema: OptimStepRequestSchema, body: request };
      return answers.once(request.requestId, once, OptimStepResponseSchema, async () =>
        create(OptimStepResponseSchema, { metrics: await runs.optimStep(id, request) }),
      );
    },
  };
}

/** The run's id. */
function checkCommon(
  problems: Problems,
  { run, step, requestId }: { readonly run: string; readonly step?: bigint; readonly requestId: string },
): string {
  const id = checkName(problems, "runs", run, "run");
  checkRequestId(problems, requestId);
  if (step !== undefined) checkRange(problems, "step", step, 0, Number.MAX_SAFE_INTEGER);
  return id;
}

function checkReference(problems: Problems, { recording, example }: RouteReference, field: string): void {
  problems.require(isId(recording), `${field}.recording`, "is none that ForwardBackward or Generate returned");
  checkRange(problems, `${field}.example`, example, 0, MAX_EXAMPLES);
}

function exampleProblem({ input, target, inputIds, targetIds }: TrainingExample): string | undefined {
  const text = [input, target].filter((part) => part !== "").length;
  const ids = [inputIds, targetIds].filter((part) => part.length > 0).length;
  if (text > 0 && ids > 0) return "has text and token ids; give one of them";
  if (text + ids === 2) return undefined;
  return ids > 0 ? "needs both input_ids and target_ids" : "needs both input and target, or input_ids and target_ids";
}
