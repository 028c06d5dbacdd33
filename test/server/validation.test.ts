// What callers may say, field by field: everything wrong at once, each by its path, and the ends of every range.

import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { ParameterKind, Stack } from "../../proto/gen/thaw/v1/group_pb.ts";
import { ModelDescriptionSchema } from "../../proto/gen/thaw/v1/model_pb.ts";
import { GenerateRequestSchema } from "../../proto/gen/thaw/v1/model_service_pb.ts";
import { RoutingOptionsSchema, RoutingPriority } from "../../proto/gen/thaw/v1/routing_pb.ts";
import { RunSpecSchema } from "../../proto/gen/thaw/v1/run_pb.ts";
import { checkDecoding } from "../../src/server/validation/decoding.ts";
import type { Problems } from "../../src/server/validation/problems.ts";
import { checkRoutes } from "../../src/server/validation/routing.ts";
import { checkRunSpec } from "../../src/server/validation/run_spec.ts";

const test = suite("validation");

/** Paths of the problems found. */
function fieldsOf(find: (problems: Problems) => void): string[] {
  const fields: string[] = [];
  const add = (field: string): void => void fields.push(field);
  find({ add, require: (valid, field) => void (valid || add(field)), throwIfAny: () => assert.unreachable() });
  return fields.sort();
}

type Spec = MessageInitShape<typeof RunSpecSchema>;
const required = { model: "models/m", dataset: "datasets/d", steps: 1n };
const inSpec = (spec: Spec) =>
  fieldsOf((problems) => checkRunSpec(problems, create(RunSpecSchema, { ...required, ...spec }), "spec"));

const specs: { what: string; spec: Spec; wrong: string[] }[] = [
  {
    what: "every end of every range",
    spec: {
      expertDropout: 0,
      optimizer: {
        algorithm: {
          case: "adafactor",
          value: { decayRate: 1e-3, epsilon: 1e-38, minParameterScale: 0, minDimensionToFactor: 1n, weightDecay: 0 },
        },
      },
      routing: { topK: 16, gateNormalization: 2, secondExpertPolicy: 2, priority: 2, group: 3, groupTokens: 1n },
      losses: { fCounts: 2, layerReduction: 3, vocabularyZCoefficient: 0, labelSmoothing: 0 },
    },
    wrong: [],
  },
  {
    what: "an Adafactor with nothing right",
    spec: {
      optimizer: {
        algorithm: {
          case: "adafactor",
          value: {
            decayRate: 0,
            clipThreshold: 0,
            epsilon: 0,
            minParameterScale: -1,
            minDimensionToFactor: 0n,
            weightDecay: Number.NaN,
          },
        },
      },
    },
    wrong: [
      "spec.optimizer.adafactor.clip_threshold",
      "spec.optimizer.adafactor.decay_rate",
      "spec.optimizer.adafactor.epsilon",
      "spec.optimizer.adafactor.min_dimension_to_factor",
      "spec.optimizer.adafactor.min_parameter_scale",
      "spec.optimizer.adafactor.weight_decay",
    ],
  },
  {
    what: "an SGD that never forgets",
    spec: { optimizer: { algorithm: { case: "sgd", value: { momentum: 1, weightDecay: -1 } } } },
    wrong: ["spec.optimizer.sgd.momentum", "spec.optimizer.sgd.weight_decay"],
  },
  {
    what: "a group of tokens without their number",
    spec: { routing: { group: 3 } },
    wrong: ["spec.routing.group_tokens"],
  },
  {
    what: "a number of tokens for another group",
    spec: { routing: { group: 2, groupTokens: 8n } },
    wrong: ["spec.routing.group_tokens"],
  },
  {
    what: "routing, losses and dropout out of range, together",
    spec: {
      expertDropout: 1,
      routing: { topK: 17, gateNormalization: 3 as 1, secondExpertPolicy: 3 as 1, priority: -1 as 1 },
      losses: {
        balanceCoefficient: -1,
        fCounts: 3 as 1,
        layerReduction: 4 as 1,
        vocabularyZCoefficient: Number.POSITIVE_INFINITY,
        labelSmoothing: 1,
      },
    },
    wrong: [
      "spec.expert_dropout",
      "spec.losses.balance_coefficient",
      "spec.losses.f_counts",
      "spec.losses.label_smoothing",
      "spec.losses.layer_reduction",
      "spec.losses.vocabulary_z_coefficient",
      "spec.routing.gate_normalization",
      "spec.routing.priority",
      "spec.routing.second_expert_policy",
      "spec.routing.top_k",
    ],
  },
];
for (const { what, spec, wrong } of specs) {
  test(what, () => assert.equal(inSpec(spec), wrong));
}

test("a decoding is checked by its own fields", () => {
  const cases: [MessageInitShape<typeof GenerateRequestSchema>["decoding"], string[]][] = [
    [undefined, []],
    [{ case: "sample", value: { temperature: 1e-3, topP: 1, seed: 4294967295n } }, []],
    [
      { case: "sample", value: { temperature: 0, topP: 0, seed: 4294967296n } },
      ["sample.seed", "sample.temperature", "sample.top_p"],
    ],
    [{ case: "sample", value: { topP: 1.5 } }, ["sample.top_p"]],
    [{ case: "sample", value: { topP: Number.NaN, seed: -1n } }, ["sample.seed", "sample.top_p"]],
    [{ case: "beam", value: { beams: 16, lengthPenalty: 0 } }, []],
    [{ case: "beam", value: { beams: 17, lengthPenalty: -1 } }, ["beam.beams", "beam.length_penalty"]],
    [{ case: "beam", value: { beams: -1 } }, ["beam.beams"]],
  ];
  for (const [decoding, wrong] of cases) {
    const request = create(GenerateRequestSchema, { decoding });
    assert.equal(
      fieldsOf((problems) => checkDecoding(problems, request.decoding)),
      wrong,
    );
  }
});

test("a model cannot route to experts, or by a priority, that its layers do not have", () => {
  const modelWith = (...stacks: Stack[]) =>
    create(ModelDescriptionSchema, {
      groups: [
        { tensors: stacks.map((stack) => ({ kind: ParameterKind.EXPERT, stack, shape: [4n, 8n, 8n] })) },
        { tensors: stacks.map((stack) => ({ kind: ParameterKind.ROUTER, stack, shape: [4n, 8n] })) },
      ],
    });
  const both = modelWith(Stack.ENCODER, Stack.DECODER);
  const decoder = modelWith(Stack.DECODER);
  const { BATCH_PRIORITIZED, POSITION } = RoutingPriority;
  const cases = [
    { model: both, routing: { topK: 4, priority: BATCH_PRIORITIZED }, wrong: [] },
    { model: both, routing: { topK: 5 }, wrong: ["spec.routing.top_k"] },
    {
      model: decoder,
      routing: { topK: 5, priority: BATCH_PRIORITIZED },
      wrong: ["spec.routing.priority", "spec.routing.top_k"],
    },
    { model: decoder, routing: { priority: POSITION }, wrong: [] },
    { model: modelWith(), routing: { topK: 2 }, wrong: [] },
  ];
  for (const { model, routing, wrong } of cases) {
    const options = create(RoutingOptionsSchema, routing);
    assert.equal(
      fieldsOf((problems) => checkRoutes(problems, options, model, "spec.routing")),
      wrong,
    );
  }
});

test.run();
