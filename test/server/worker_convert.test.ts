// The contract's messages and the trainer's data say the same.

import { create, equals, fromBinary, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import * as fc from "fast-check";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { TrainablePlanSchema } from "../../proto/gen/thaw/v1/group_pb.ts";
import {
  AssignmentSliceSchema,
  GateNormalization,
  RoutingChoice,
  RoutingPriority,
  SecondExpertPolicy,
} from "../../proto/gen/thaw/v1/routing_pb.ts";
import {
  Batching,
  EvaluationPolicySchema,
  FCounts,
  LayerReduction,
  RunSpecSchema,
} from "../../proto/gen/thaw/v1/run_pb.ts";
import { GenerateSchema, OpenRunSchema, RunDatasetSchema } from "../../proto/gen/thaw/worker/v1/worker_pb.ts";
import { DeviceLostError, OutOfMemoryError } from "../../src/kernels/device/errors.ts";
import { decodingFromProto } from "../../src/server/worker/convert/decoding.ts";
import { float16Bits } from "../../src/server/worker/convert/float16.ts";
import { evaluationToProto, metricsToProto } from "../../src/server/worker/convert/metrics.ts";
import { descriptionToProto, generationToProto } from "../../src/server/worker/convert/model.ts";
import { planFromProto, planToProto } from "../../src/server/worker/convert/plan.ts";
import { reportToProto } from "../../src/server/worker/convert/report.ts";
import { routesToProto } from "../../src/server/worker/convert/routes.ts";
import { openRunToConfig } from "../../src/server/worker/convert/run_config.ts";
import { fillRunSpec } from "../../src/server/worker/convert/run_spec.ts";
import { durationOf } from "../../src/server/worker/convert/scalars.ts";
import { taskToProto } from "../../src/server/worker/convert/task.ts";
import { CancelledError, errorToProto, WrongStateError } from "../../src/server/worker/errors.ts";
import { float16ToFloat32 } from "../../src/trainer/formats/float_conversion.ts";
import {
  type Decoding,
  InputError,
  MemoryError,
  PARAMETER_KINDS,
  PRESETS,
  type RouteBatch,
  type Selector,
  STACKS,
  type TrainablePlan,
} from "../../src/trainer/types.ts";
import { FAKE_COST, FAKE_TENSOR } from "../support/fake_engine.ts";

const test = suite("worker conversions");

const index = fc.nat(300);
const selector: fc.Arbitrary<Selector> = fc.record(
  {
    kinds: fc.subarray([...PARAMETER_KINDS]),
    stacks: fc.subarray([...STACKS]),
    layers: fc.tuple(index, index).map(([first, more]) => ({ first, last: first + more })),
    experts: fc.array(index, { maxLength: 4 }),
  },
  { requiredKeys: ["kinds", "stacks", "experts"] },
);
const plan: fc.Arbitrary<TrainablePlan> = fc.record({
  selection: fc.record(
    {
      preset: fc.constantFrom(...PRESETS),
      add: fc.array(selector, { maxLength: 3 }),
      remove: fc.array(selector, { maxLength: 3 }),
      router: fc.boolean(),
    },
    { requiredKeys: ["add", "remove"] },
  ),
  optimizerState: fc.constantFrom("keep", "drop"),
  routerLosses: fc.constantFrom("keep", "off"),
});

test("a freeze plan comes back from the wire as it was", () => {
  fc.assert(
    fc.property(plan, (wanted) => {
      const bytes = toBinary(TrainablePlanSchema, planToProto(wanted));
      // Through JSON, because fast-check's records have no prototype and uvu compares it.
      const plain = (value: unknown) => JSON.parse(JSON.stringify(value));
      assert.equal(plain(planFromProto(fromBinary(TrainablePlanSchema, bytes))), plain(wanted));
    }),
  );
});

test("an enum value of a newer server is refused by its field", () => {
  const message = create(TrainablePlanSchema, { selection: { add: [{}, { stacks: [1, 99 as 1] }] } });
  try {
    planFromProto(message, "spec.trainable");
    assert.unreachable();
  } catch (error) {
    assert.instance(error, InputError);
    assert.is((error as InputError).problems[0].field, "spec.trainable.selection.add[1].stacks[1]");
  }
});

test("every f16 is the f16 nearest to itself, and halves round to even", () => {
  const all = new Uint8Array(Uint16Array.from({ length: 1 << 16 }, (_, bits) => bits).buffer);
  const values = new Float32Array(1 << 16);
  float16ToFloat32(all, values);
  for (let bits = 0; bits < values.length; bits++) {
    if (Number.isNaN(values[bits])) assert.is(float16Bits(values[bits]) & 0x7fff, 0x7e00);
    else if (float16Bits(values[bits]) !== bits) assert.unreachable(`${bits} became ${float16Bits(values[bits])}`);
    if (bits >= 0x7bff) continue; // no finite value above in this sign
    const middle = (values[bits] + values[bits + 1]) / 2; // exact in f32
    const even = bits % 2 === 0 ? bits : bits + 1;
    if (float16Bits(middle) !== even) assert.unreachable(`between ${bits} and ${bits + 1}`);
    const ulp = (values[bits + 1] - values[bits]) / 1024;
    if (float16Bits(middle - ulp) !== bits) assert.unreachable(`below the middle above ${bits}`);
    if (float16Bits(middle + ulp) !== bits + 1) assert.unreachable(`above the middle above ${bits}`);
  }
  assert.equal([65519, 65520, -1e9, 2 ** -26].map(float16Bits), [0x7bff, 0x7c00, 0xfc00, 0]);
});

const batch = (experts: number): RouteBatch => ({
  source: "evaluation",
  step: 3,
  stack: "decoder",
  layer: 5,
  experts,
  topK: 2,
  exampleIds: Uint32Array.of(70_000, 1, 2),
  positions: Uint32Array.of(0, 1, 2),
  tokenIds: Uint32Array.of(32_127, 5, 6),
  expertIds: Uint16Array.of(0, experts, 1, 2, 3, 4), // the second is none
  gates: Float32Array.of(1, 0.5, 0.25, 0, 0.125, 2),
  kept: Uint8Array.of(1, 0, 1, 1, 0, 1),
});

const packed = [
  { what: "255 experts, and none, in bytes", experts: 255, idBytes: 1, ids: [0, 255, 1, 2, 3, 4] },
  { what: "256 experts, and none, in two bytes", experts: 256, idBytes: 2, ids: [0, 0, 0, 1, 1, 0, 2, 0, 3, 0, 4, 0] },
];
for (const { what, experts, idBytes, ids } of packed) {
  test(`routes are packed little-endian, ${what}`, () => {
    const slice = routesToProto(batch(experts), { tokenIds: true, gates: true });
    const sent = fromBinary(AssignmentSliceSchema, toBinary(AssignmentSliceSchema, slice));
    assert.equal(
      [sent.source, sent.step, sent.stack, sent.layer, sent.expertCount, sent.topK, sent.tokenCount],
      [2, 3n, 2, 5, experts, 2, 3n],
    );
    assert.equal([...sent.exampleIds], [0x70, 0x11, 1, 0, 1, 0, 0, 0, 2, 0, 0, 0]);
    assert.equal([...sent.positions.subarray(4, 8)], [1, 0, 0, 0]);
    assert.equal([...sent.tokenIds.subarray(0, 4)], [0x7f, 0x7d, 0, 0]);
    assert.is(sent.expertIdBytes, idBytes);
    assert.equal([...sent.expertIds], ids);
    assert.equal([...sent.gates], [0, 0x3c, 0, 0x38, 0, 0x34, 0, 0, 0, 0x30, 0, 0x40]);
    assert.equal([...sent.keptBits], [0b101101]);
  });
}

test("a choice of tokens packs their rows only, without what was not asked for", () => {
  const slice = routesToProto(batch(4), { tokenIds: false, gates: false }, Uint32Array.of(0, 2));
  assert.is(slice.tokenCount, 2n);
  assert.equal([...slice.exampleIds], [0x70, 0x11, 1, 0, 2, 0, 0, 0]);
  assert.equal([...slice.expertIds], [0, 4, 3, 4]);
  assert.equal([...slice.keptBits], [0b1001]);
  assert.is(slice.tokenIds.length + slice.gates.length, 0);
});

const required = { model: "models/m", dataset: "datasets/d", steps: 10n };
const openRun = (spec: Parameters<typeof create<typeof RunSpecSchema>>[1], splits = ["train", "validation"]) =>
  create(OpenRunSchema, {
    run: "runs/r",
    spec,
    modelDirectory: "/m",
    datasets: [{ name: "datasets/d", splitFiles: Object.fromEntries(splits.map((s) => [s, `/d/${s}.jsonl`])) }],
  });

test("a bare specification becomes the documented defaults", () => {
  const { config, policy } = openRunToConfig(openRun(create(RunSpecSchema, required)));
  assert.equal(config, {
    modelDirectory: "/m",
    trainFiles: ["/d/train.jsonl"],
    mixingCap: undefined,
    evaluationFiles: ["/d/validation.jsonl"],
    steps: 10,
    batchSize: 16,
    maxInputTokens: 128,
    maxTargetTokens: 32,
    seed: 0,
    trainable: {
      selection: { preset: "all", add: [], remove: [] },
      optimizerState: "keep",
      routerLosses: "keep",
    },
    optimizer: {
      algorithm: { kind: "adamw", beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0 },
      learningRate: 1e-3,
      maxGradientNorm: 1,
      schedule: "constant",
      warmupSteps: 0,
    },
    routing: {
      trainCapacity: { rule: "dropless" },
      evalCapacity: { rule: "dropless" },
      group: "batch",
      routePadding: false,
      jitter: 0,
      topK: undefined,
      gateNormalization: undefined,
      secondExpertPolicy: "always",
      priority: "position",
      encoderChoice: "tokens",
    },
    losses: {
      balanceCoefficient: 1e-2,
      zCoefficient: 1e-3,
      fCounts: "top1",
      layerReduction: "sum",
      vocabularyZCoefficient: 0,
      labelSmoothing: 0,
    },
    dropout: 0.1,
    expertDropout: 0.1,
    accumulationSteps: 1,
    passedOverSteps: 0,
    batching: "padded",
    precision: "f32",
  });
  assert.equal(policy, {
    steps: 10,
    evaluateEverySteps: 0,
    evaluateAtStart: false,
    evaluateExamples: 256,
    overfitting: undefined,
    nonFinite: "stop",
    evaluateSplits: [{ dataset: "datasets/d", split: "validation", scoring: undefined, file: "/d/validation.jsonl" }],
    checkpointEverySteps: 100,
  });
});

test("a mixture trains on every dataset and scores what splits each has", () => {
  const open = openRun(create(RunSpecSchema, { ...required, mixture: { datasets: ["datasets/e"], cap: 9n } }));
  const scoring = { metrics: ["accuracy" as const], labels: { 0: "no", 1: "yes" } };
  const other = { name: "datasets/e", splitFiles: { train: "/e/train.jsonl", test: "/e/test.jsonl" } };
  open.datasets.push(create(RunDatasetSchema, { ...other, task: taskToProto("t", scoring) }));
  open.spec!.evaluation = create(EvaluationPolicySchema, { splits: ["validation", "test"] });
  assert.throws(() => openRunToConfig(open), /spec\.evaluation\.splits\[1\]: the dataset has no split "test"/);
  open.datasets[0].splitFiles.test = "/d/test.jsonl";
  const { config, policy } = openRunToConfig(open);
  assert.equal([config.trainFiles, config.mixingCap], [["/d/train.jsonl", "/e/train.jsonl"], 9]);
  assert.equal(config.evaluationFiles, ["/d/validation.jsonl", "/d/test.jsonl", "/e/test.jsonl"]);
  assert.equal(
    policy.evaluateSplits.map(({ dataset, split, scoring }) => [dataset, split, scoring]),
    [
      ["datasets/d", "validation", undefined],
      ["datasets/d", "test", undefined],
      ["datasets/e", "test", scoring],
    ],
  );
  open.datasets[1].splitFiles = {};
  assert.throws(() => openRunToConfig(open), /spec\.mixture\.datasets\[0\]: the dataset has no split "train"/);
});

test("what is set stays, zeros where zero means something included", () => {
  const spec = create(RunSpecSchema, {
    ...required,
    batchSize: 3n,
    seed: 4294967295n,
    trainable: { selection: { router: true }, routerLosses: 2 },
    optimizer: {
      algorithm: { case: "adamw", value: { beta1: 0, weightDecay: 0.5 } },
      maxGradientNorm: 0,
      schedule: { kind: 4, warmupSteps: 7n },
    },
    routing: {
      trainCapacity: { rule: { case: "factorK", value: { factor: 1.5 } } },
      evalCapacity: { rule: { case: "fixed", value: { slots: 9n } } },
      group: 3,
      groupTokens: 96n,
      routePadding: true,
      jitter: 0.01,
      topK: 2,
      gateNormalization: GateNormalization.TOP_K,
      secondExpertPolicy: SecondExpertPolicy.RANDOM,
      priority: RoutingPriority.BATCH_PRIORITIZED,
      encoderChoice: RoutingChoice.EXPERTS,
      selectionBias: {},
    },
    losses: {
      zCoefficient: 0,
      fCounts: FCounts.ALL_K,
      layerReduction: LayerReduction.POOLED,
      vocabularyZCoefficient: 1e-4,
      labelSmoothing: 0.1,
    },
    dropout: 0,
    expertDropout: 0.4,
    accumulationSteps: 3n,
    batching: Batching.BUCKETED,
    evaluation: { maxExamples: 0n, splits: ["test"], atStart: true, everySteps: 2n },
    checkpoints: { everySteps: 0n },
  });
  const { config, policy } = openRunToConfig(openRun(spec, ["train", "validation", "test"]));
  assert.is(config.batchSize, 3);
  assert.is(config.seed, 4294967295);
  assert.equal(config.trainable.selection, { add: [], remove: [], router: true });
  assert.is(config.trainable.routerLosses, "off");
  const { algorithm, maxGradientNorm, schedule, warmupSteps } = config.optimizer;
  assert.equal(algorithm, { kind: "adamw", beta1: 0, beta2: 0.999, epsilon: 1e-8, weightDecay: 0.5 });
  assert.equal([maxGradientNorm, schedule, warmupSteps], [0, "cosine", 7]);
  assert.equal(config.routing, {
    trainCapacity: { rule: "factor_k", factor: 1.5 },
    evalCapacity: { rule: "fixed", slots: 9 },
    group: { tokens: 96 },
    routePadding: true,
    jitter: 0.01,
    topK: 2,
    gateNormalization: "top_k",
    secondExpertPolicy: "random",
    priority: "batch_prioritized",
    encoderChoice: "experts",
    selectionBias: { updateRate: 1e-3 },
  });
  assert.equal(config.losses, {
    balanceCoefficient: 1e-2,
    zCoefficient: 0,
    fCounts: "all_k",
    layerReduction: "pooled",
    vocabularyZCoefficient: 1e-4,
    labelSmoothing: 0.1,
  });
  assert.equal([config.dropout, config.expertDropout, config.accumulationSteps], [0, 0.4, 3]);
  assert.is(config.batching, "bucketed");
  assert.equal(policy, {
    steps: 10,
    evaluateEverySteps: 2,
    evaluateAtStart: true,
    evaluateExamples: 0,
    overfitting: undefined,
    nonFinite: "stop",
    evaluateSplits: [{ dataset: "datasets/d", split: "test", scoring: undefined, file: "/d/test.jsonl" }],
    checkpointEverySteps: 0,
  });
  const filled = fillRunSpec(spec, ["validation"]);
  assert.ok(equals(RunSpecSchema, filled, fillRunSpec(filled, ["validation"])), "filling twice changes nothing");
});

const algorithms = [
  {
    what: "Adafactor's defaults",
    said: { case: "adafactor", value: {} },
    meant: {
      kind: "adafactor",
      decayRate: 0.8,
      clipThreshold: 1,
      epsilon: 1e-30,
      minParameterScale: 1e-3,
      minDimensionToFactor: 128,
      weightDecay: 0,
    },
  },
  {
    what: "an Adafactor said in full",
    said: {
      case: "adafactor",
      value: {
        decayRate: 0.5,
        clipThreshold: 2,
        epsilon: 1e-20,
        minParameterScale: 0,
        minDimensionToFactor: 1n,
        weightDecay: 0.25,
      },
    },
    meant: {
      kind: "adafactor",
      decayRate: 0.5,
      clipThreshold: 2,
      epsilon: 1e-20,
      minParameterScale: 0,
      minDimensionToFactor: 1,
      weightDecay: 0.25,
    },
  },
  {
    what: "SGD's defaults",
    said: { case: "sgd", value: {} },
    meant: { kind: "sgd", momentum: 0, weightDecay: 0 },
  },
  {
    what: "an SGD said in full",
    said: { case: "sgd", value: { momentum: 0.9, weightDecay: 0.5 } },
    meant: { kind: "sgd", momentum: 0.9, weightDecay: 0.5 },
  },
] as const;
for (const { what, said, meant } of algorithms) {
  test(`${what} reach the trainer through the wire`, () => {
    const spec = create(RunSpecSchema, { ...required, optimizer: { algorithm: said } });
    const filled = fromBinary(RunSpecSchema, toBinary(RunSpecSchema, fillRunSpec(spec, [])));
    assert.equal(openRunToConfig(openRun(filled)).config.optimizer.algorithm, meant);
    assert.ok(equals(RunSpecSchema, filled, fillRunSpec(filled, [])), "filling twice changes nothing");
  });
}

test("a decoding is what was said, else the contract's default", () => {
  const cases: [MessageInitShape<typeof GenerateSchema>["decoding"], Decoding][] = [
    [undefined, { kind: "greedy" }],
    [{ case: "greedy", value: {} }, { kind: "greedy" }],
    [
      { case: "sample", value: {} },
      { kind: "sample", temperature: 1, topP: 1, seed: 0 },
    ],
    [
      { case: "sample", value: { temperature: 0.5, topP: 0.25, seed: 4294967295n } },
      { kind: "sample", temperature: 0.5, topP: 0.25, seed: 4294967295 },
    ],
    [
      { case: "beam", value: {} },
      { kind: "beam", beams: 4, lengthPenalty: 1 },
    ],
    [
      { case: "beam", value: { beams: 1, lengthPenalty: 0 } },
      { kind: "beam", beams: 1, lengthPenalty: 0 },
    ],
  ];
  for (const [decoding, meant] of cases) {
    const sent = fromBinary(GenerateSchema, toBinary(GenerateSchema, create(GenerateSchema, { decoding })));
    assert.equal(decodingFromProto(sent.decoding), meant);
  }
});

test("every split without a file is named", () => {
  const spec = create(RunSpecSchema, { ...required, evaluation: { splits: ["test", "dev"] } });
  try {
    openRunToConfig(openRun(spec, []));
    assert.unreachable();
  } catch (error) {
    const fields = (error as InputError).problems.map((problem) => problem.field);
    assert.equal(fields, ["spec.dataset", "spec.evaluation.splits[0]", "spec.evaluation.splits[1]"]);
  }
});

test("reports, metrics, evaluations and descriptions keep their numbers", () => {
  const names = { restored: ["a"], fresh: ["b"], kept: ["c"], dropped: ["d"] };
  const after = { ...FAKE_COST, predictedStepSeconds: 1.25 };
  const partial = { ...FAKE_TENSOR, experts: [1, 3] };
  const report = reportToProto({
    matched: [partial],
    before: FAKE_COST,
    after,
    state: names,
    effectiveStep: 6,
  });
  const [tensor] = report.matched;
  assert.equal([tensor.name, tensor.kind, tensor.stack, tensor.layer], [FAKE_TENSOR.name, 6, 1, 1]);
  assert.equal([tensor.shape, tensor.experts, tensor.parameters, tensor.trainable], [[4n, 8n], [1, 3], 32n, true]);
  assert.is(report.before?.predictedStepDuration, undefined);
  assert.equal([report.after?.predictedStepDuration?.seconds, report.after?.peakBytes], [1n, 300n]);
  assert.equal(fieldsOf(report.state, names), names);
  assert.is(report.effectiveStep, 6n);

  const layers = [
    { stack: "decoder", layer: 3, balanceLoss: 1.5, zLoss: 0.5, load: [0.75, 0.25], dropped: 2, assignments: 8 },
  ] as const;
  const step = { step: 4, loss: 1, totalLoss: 2, gradientNorm: 3, learningRate: 0.5, tokens: 30, stepSeconds: 0.5 };
  const metrics = metricsToProto({ ...step, layers });
  assert.is(metrics.tokensPerSecond, 60);
  assert.equal([metrics.vocabularyZLoss, metrics.smoothedLoss], [undefined, undefined], "not measured is not zero");
  const smoothed = metricsToProto({ ...step, layers, vocabularyZLoss: 0, smoothedLoss: 1.5 });
  assert.equal([smoothed.vocabularyZLoss, smoothed.smoothedLoss], [0, 1.5]);
  assert.equal([metrics.step, metrics.loss, metrics.totalLoss, metrics.gradientNorm], [4n, 1, 2, 3]);
  assert.equal([metrics.layers[0].load, metrics.layers[0].dropped, metrics.layers[0].stack], [[0.75, 0.25], 2n, 2]);

  const scores = { loss: 1, tokenAccuracy: 0.5, exactMatch: 0.25, accuracy: 0.125, metrics: { matthews: -0.5 } };
  const result = { step: 4, split: "test", examples: 9, ...scores, layers, seconds: 0.25 };
  const evaluation = evaluationToProto({ ...result, primaryMetric: "matthews" }, "datasets/d");
  assert.equal([evaluation.split, evaluation.examples, evaluation.accuracy], ["test", 9n, 0.125]);
  assert.equal([evaluation.dataset, evaluation.primaryMetric], ["datasets/d", "matthews"]);
  assert.equal(evaluation.metrics, { matthews: -0.5 });
  assert.is(evaluationToProto(result, "").primaryMetric, "", "a dataset without a task");

  const description = descriptionToProto({
    modelType: "switch_transformers",
    parameters: 52,
    config: { d_model: 8, nested: { list: [1, "a", null] } },
    groups: [
      { kind: "embedding", tensors: 1, parameters: 20, bytes: 80 },
      { kind: "router", tensors: 1, parameters: 32, bytes: 128 },
    ],
    tensors: [{ name: "shared.weight", kind: "embedding", shape: [20], parameters: 20 }, FAKE_TENSOR],
  });
  assert.equal(description.config, { d_model: 8, nested: { list: [1, "a", null] } });
  assert.equal(
    description.groups.map((g) => [g.kind, g.sizeBytes, g.tensors.map((t) => t.name)]),
    [
      [1, 80n, ["shared.weight"]],
      [6, 128n, [FAKE_TENSOR.name]],
    ],
  );
});

test("a generation has a score only where there was a search", () => {
  const common = { input: "a", text: "b", inputIds: [1], tokenIds: [2], routes: [] };
  assert.is(generationToProto(common, 0, false).score, undefined);
  assert.is(generationToProto({ ...common, score: -0.5 }, 0, false).score, -0.5);
});

test("seconds become durations to the nanosecond", () => {
  const cases: [number, bigint, number][] = [
    [0, 0n, 0],
    [1.5, 1n, 500_000_000],
    [0.9999999999, 1n, 0],
    [86_400.25, 86_400n, 250_000_000],
  ];
  for (const [seconds, whole, nanos] of cases) {
    const duration = durationOf(seconds);
    assert.equal([duration.seconds, duration.nanos], [whole, nanos], `${seconds}`);
  }
});

test("every error arrives as its own kind, faults of ours with their stack", () => {
  const cases: [unknown, string, object][] = [
    [new MemoryError(10, 5, 2), "outOfMemory", { neededBytes: 10n, availableBytes: 5n, fittingBatchSize: 2n }],
    [new OutOfMemoryError("w", 64, "full"), "outOfMemory", { neededBytes: 64n, availableBytes: 0n }],
    [new DeviceLostError("gone"), "deviceLost", { message: "gone" }],
    [new WrongStateError("not open"), "wrongState", { message: "not open" }],
    [new CancelledError(), "cancelled", {}],
  ];
  for (const [error, kind, value] of cases) {
    const sent = errorToProto(error).error;
    assert.is(sent.case, kind);
    assert.equal(fieldsOf(sent.value, value), value);
  }
  const mistakes = errorToProto(new InputError([{ field: "a.b", message: "bad" }])).error;
  assert.is(mistakes.case, "input");
  if (mistakes.case === "input")
    assert.equal(
      mistakes.value.problems.map(({ field, message }) => [field, message]),
      [["a.b", "bad"]],
    );
  const fault = errorToProto(new TypeError("x is undefined")).error;
  assert.is(fault.case, "internal");
  assert.match(JSON.stringify(fault.value), /TypeError: x is undefined.*worker_convert/);
});

/** Those fields of a message that `like` has. */
const fieldsOf = (message: object | undefined, like: object) =>
  Object.fromEntries(Object.entries(message ?? {}).filter(([name]) => name in like));

test.run();
