// What callers may say, field by field: everything wrong at once, each by its path, and the ends of every range.

import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { type ModelDescription, ModelDescriptionSchema } from "../../proto/gen/thaw/v1/model_pb.ts";
import { GenerateRequestSchema } from "../../proto/gen/thaw/v1/model_service_pb.ts";
import {
  GateNormalization,
  RoutingChoice,
  RoutingGroup,
  RoutingPriority,
  SecondExpertPolicy,
} from "../../proto/gen/thaw/v1/routing_pb.ts";
import { Batching, LayerReduction, RunSpecSchema } from "../../proto/gen/thaw/v1/run_pb.ts";
import { checkDecoding } from "../../src/server/validation/decoding.ts";
import type { Problems } from "../../src/server/validation/problems.ts";
import { checkRoutes } from "../../src/server/validation/routing.ts";
import { checkRunSpec } from "../../src/server/validation/run_spec.ts";
import { trainingOptions } from "../../src/server/worker/convert/run_config.ts";
import { fillRunSpec } from "../../src/server/worker/convert/run_spec.ts";

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
      routing: {
        topK: 16,
        gateNormalization: 2,
        secondExpertPolicy: 2,
        priority: 2,
        encoderChoice: 2,
        selectionBias: {},
        group: 3,
        groupTokens: 1n,
      },
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
    what: "a selection bias that never moves",
    spec: { routing: { selectionBias: { updateRate: 0 } } },
    wrong: ["spec.routing.selection_bias.update_rate"],
  },
  {
    what: "a number of tokens for another group",
    spec: { routing: { group: 2, groupTokens: 8n } },
    wrong: ["spec.routing.group_tokens"],
  },
  {
    what: "a mixture of two more, capped",
    spec: { mixture: { datasets: ["datasets/a", "datasets/b"], cap: 1n } },
    wrong: [],
  },
  {
    what: "a mixture of itself, of the same twice, of no dataset, with a negative cap",
    spec: { mixture: { datasets: ["datasets/d", "datasets/a", "datasets/a", "models/m"], cap: -1n } },
    wrong: ["spec.mixture.cap", "spec.mixture.datasets[0]", "spec.mixture.datasets[2]", "spec.mixture.datasets[3]"],
  },
  { what: "a mixture of nothing", spec: { mixture: {} }, wrong: ["spec.mixture.datasets"] },
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

test("what a model's layers cannot do, and what does not go together, is refused with its field", () => {
  /** Every fourth layer is sparse. */
  const modelWith = (num_layers: number, num_decoder_layers: number) =>
    create(ModelDescriptionSchema, {
      config: {
        model_type: "st_moe",
        num_layers,
        num_decoder_layers,
        num_experts: 4,
        num_selected_experts: 1,
        gate_normalization: "none",
      },
    });
  const both = modelWith(4, 4);
  const encoder = modelWith(4, 1);
  const decoder = modelWith(1, 4);
  const { BATCH_PRIORITIZED, POSITION } = RoutingPriority;
  const { EXPERTS } = RoutingChoice;
  const slots = { rule: { case: "fixed" as const, value: { slots: 8n } } };
  const bounded = { trainCapacity: slots, evalCapacity: slots };
  const pooled = { layerReduction: LayerReduction.POOLED };
  const { PACKED, BUCKETED } = Batching;
  const cases: {
    model?: ModelDescription;
    routing: Spec["routing"];
    losses?: Spec["losses"];
    batching?: Batching;
    wrong: string[];
  }[] = [
    { routing: { topK: 4, priority: BATCH_PRIORITIZED }, wrong: [] },
    { routing: { topK: 5 }, wrong: ["routing.top_k"] },
    { model: decoder, routing: { priority: POSITION }, wrong: [] },
    {
      model: decoder,
      routing: { topK: 5, priority: BATCH_PRIORITIZED, encoderChoice: EXPERTS, ...bounded },
      wrong: ["routing.encoder_choice", "routing.priority", "routing.top_k"],
    },
    { model: modelWith(1, 1), routing: { topK: 5 }, wrong: [] }, // no sparse layer, nothing to route
    { model: encoder, routing: { priority: BATCH_PRIORITIZED }, wrong: [] },
    { routing: { secondExpertPolicy: SecondExpertPolicy.RANDOM }, wrong: [] }, // one choice: there is no second
    { routing: { topK: 2, secondExpertPolicy: SecondExpertPolicy.RANDOM }, wrong: ["routing.second_expert_policy"] },
    {
      routing: {
        topK: 2,
        secondExpertPolicy: SecondExpertPolicy.RANDOM,
        gateNormalization: GateNormalization.TOP_K,
      },
      wrong: [],
    },
    { routing: { encoderChoice: EXPERTS, ...bounded }, wrong: [] },
    { routing: { encoderChoice: EXPERTS }, wrong: ["routing.eval_capacity", "routing.train_capacity"] },
    {
      routing: { encoderChoice: EXPERTS, ...bounded, priority: BATCH_PRIORITIZED },
      losses: pooled,
      wrong: ["losses.layer_reduction", "routing.priority"],
    },
    { routing: { encoderChoice: EXPERTS, ...bounded, selectionBias: {} }, wrong: [] }, // the decoder's tokens choose
    {
      model: encoder,
      routing: { encoderChoice: EXPERTS, ...bounded, selectionBias: {} },
      wrong: ["routing.selection_bias"],
    },
    { routing: {}, losses: pooled, wrong: [] },
    {
      routing: { group: RoutingGroup.SEQUENCE, routePadding: true },
      batching: PACKED,
      wrong: ["routing.group", "routing.route_padding"],
    },
    { routing: { group: RoutingGroup.TOKENS, groupTokens: 64n }, batching: PACKED, wrong: [] },
    { routing: { group: RoutingGroup.SEQUENCE, routePadding: true }, batching: BUCKETED, wrong: [] },
  ];
  for (const { model = both, routing, losses, batching, wrong } of cases) {
    const options = trainingOptions(fillRunSpec(create(RunSpecSchema, { routing, losses, batching }), []));
    assert.equal(
      fieldsOf((problems) => checkRoutes(problems, options, model, "spec")),
      wrong.map((field) => `spec.${field}`),
    );
  }
});

test.run();
