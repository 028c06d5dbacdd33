// The blocks of ST-MoE: what parameters a configuration has, what is refused, and that a run trains every one of them.

import { test } from "uvu";
import * as assert from "uvu/assert";
import { openRun } from "../../src/trainer/engine.ts";
import { lowerGraph } from "../../src/trainer/graph/lowered.ts";
import { resolveTrainable } from "../../src/trainer/groups.ts";
import type { BuildOptions } from "../../src/trainer/model/family.ts";
import { openModelDirectory } from "../../src/trainer/model/open.ts";
import { isSparse, parseSwitchConfig } from "../../src/trainer/model/switch/config.ts";
import { initialValues } from "../../src/trainer/model/switch/init.ts";
import type { Run } from "../../src/trainer/run/run.ts";
import { InputError, type LossOptions, type RoutingOptions, type RunConfig } from "../../src/trainer/types.ts";
import { testDevice } from "../support/gpu.ts";
import { plan, tinyData, tinyModel, tinyRun } from "../support/tiny_model.ts";

const ST_MOE = {
  model_type: "st_moe",
  num_layers: 4,
  num_decoder_layers: 2,
  sparse_step: 2,
  num_selected_experts: 2,
  expert_multiplicative_bias: true,
};
const directory = await tinyModel(ST_MOE);
const opened = await openModelDirectory(directory);
await opened.checkpoint.close();
const { model, config } = opened;

test("sparse layers by layout and step", () => {
  const layers = (layout: "hf" | "flaxformer", step: number) =>
    Array.from({ length: 12 }, (_, i) => i).filter((i) => isSparse(layout, i, step));
  assert.equal(layers("hf", 4), [1, 5, 9]);
  assert.equal(layers("flaxformer", 4), [3, 7, 11]);
  assert.equal(layers("hf", 2), layers("flaxformer", 2));
  assert.equal(layers("flaxformer", 1).length, 12);
  assert.equal([...layers("hf", 0), ...layers("flaxformer", 0)], []);
});

test("a sparse layer has GEGLU experts, their bias, and a dense FFN sublayer after it", () => {
  const of = (prefix: string) =>
    model.parameters
      .filter((p) => p.name.startsWith(prefix))
      .map((p) => [p.name.slice(prefix.length), p.kind, p.shape]);
  assert.equal(of("encoder.block.1.layer.1."), [
    ["mlp.router.classifier.weight", "router", [4, 12]],
    ["mlp.experts.wi_0.weight", "expert", [4, 20, 12]],
    ["mlp.experts.wi_1.weight", "expert", [4, 20, 12]],
    ["mlp.experts.wo.weight", "expert", [4, 12, 20]],
    ["mlp.experts.scale.weight", "expert", [4, 20]],
    ["layer_norm.weight", "norm", [12]],
  ]);
  const dense = [
    ["mlp.wi_0.weight", "ffn", [20, 12]],
    ["mlp.wi_1.weight", "ffn", [20, 12]],
    ["mlp.wo.weight", "ffn", [12, 20]],
    ["layer_norm.weight", "norm", [12]],
  ];
  assert.equal(of("encoder.block.1.layer.2."), dense);
  assert.equal(of("decoder.block.1.layer.3."), dense);
  assert.equal(of("encoder.block.0.layer.1."), dense);
  assert.equal(of("encoder.block.0.layer.2."), []);
});

test("experts' biases start as ones", () => {
  const scale = model.parameters.find((p) => p.name.endsWith("experts.scale.weight"))!;
  assert.equal([...new Set(initialValues(scale, 1, 0))], [1]);
});

test("every wrong field is listed", () => {
  const wrong = {
    ...config,
    num_selected_experts: 5,
    feed_forward_proj: "swiglu",
    gate_normalization: "sum",
    sparse_layout: "odd",
    sparse_step: -1,
    extra_dense_ffn: "yes",
    d_model: 0,
  };
  try {
    parseSwitchConfig(wrong);
    assert.unreachable();
  } catch (error) {
    assert.instance(error, InputError);
    assert.equal((error as InputError).problems.map((p) => p.field.slice("config.".length)).sort(), [
      "d_model",
      "extra_dense_ffn",
      "feed_forward_proj",
      "gate_normalization",
      "num_selected_experts",
      "sparse_layout",
      "sparse_step",
    ]);
  }
});

const routing: RoutingOptions = {
  trainCapacity: { rule: "factor", factor: 1.25 },
  evalCapacity: { rule: "factor", factor: 2 },
  group: "batch",
  routePadding: false,
  jitter: 0,
};
const losses: LossOptions = { balanceCoefficient: 1e-2, zCoefficient: 1e-3 };

/** Kernels of a training graph by how often they are dispatched. */
function kernels(changes: Partial<BuildOptions>, selection: { preset: "all" | "ffn" } = { preset: "all" }) {
  const options: BuildOptions = {
    batch: 2,
    inputLength: 8,
    targetLength: 4,
    train: true,
    dropout: 0,
    expertDropout: 0,
    routing,
    losses,
    lossGradient: true,
    packed: false,
    sumGradients: false,
    arenaBytes: 2 ** 27,
    ...changes,
  };
  const trainable = resolveTrainable(model.parameters, { add: [], remove: [], ...selection });
  const sgd = { kind: "sgd", momentum: 0, weightDecay: 0 } as const;
  const built = model.trainingGraph("software", trainable, options, sgd);
  const names = lowerGraph(built.graph, 256).commands.flatMap((c) => ("kernel" in c ? [c.kernel.name] : []));
  return { built, count: (name: RegExp) => names.filter((n) => name.test(n)).length };
}

test("experts have a dropout rate of their own", () => {
  // One dropout per sparse layer forward, one backward.
  assert.is(kernels({ expertDropout: 0.4 }).count(/^dropout_/), 2 * 3);
  assert.is(kernels({}).count(/^dropout_/), 0);
});

test("a run's top-k and gate normalisation override the model's", () => {
  const topK = (changes: Partial<RoutingOptions>) =>
    kernels({ routing: { ...routing, ...changes } }).built.sparse.map((s) => s.routing.topK);
  assert.equal(topK({}), [2, 2, 2]);
  assert.equal(topK({ topK: 1 }), [1, 1, 1]);
});

test("biases of frozen experts have no gradient", () => {
  assert.is(kernels({}).count(/^expert_scale_gradient_/), 3);
  assert.is(kernels({}, { preset: "ffn" }).count(/^expert_scale_gradient_/), 0);
});

const device = await testDevice();
const data = await tinyData();

const open = (changes: Partial<RunConfig>, file = data): Promise<Run> =>
  openRun(device, tinyRun(directory, file, changes));

test("every parameter of a run trains, and the loss falls", async () => {
  const run = await open({ dropout: 0, trainable: plan({ preset: "all" }) });
  const before = new Map<string, Float32Array>();
  for (const p of model.parameters) before.set(p.name, await run.readParameter(p.name));
  const seen: number[] = [];
  for (let i = 0; i < 12; i++) seen.push((await run.trainStep()).loss);
  assert.ok(seen[11] < 0.9 * seen[0], `${seen}`);
  for (const p of model.parameters) assert.not.equal(await run.readParameter(p.name), before.get(p.name), p.name);
  run.close();
});

const oneBatch = await tinyData(4);
for (const kind of ["expert", "ffn", "norm"] as const)
  test(`the gradient of ${kind} parameters predicts what a small step does to the loss`, async () => {
    const select = { kinds: [kind], stacks: [], experts: [] };
    const learningRate = 1e-3;
    const run = await open(
      {
        dropout: 0,
        trainable: plan({ add: [select] }),
        optimizer: {
          algorithm: { kind: "sgd", momentum: 0, weightDecay: 0 },
          learningRate,
          maxGradientNorm: 0,
          schedule: "constant",
          warmupSteps: 0,
        },
        routing: { ...routing, trainCapacity: { rule: "dropless" } },
        losses: { balanceCoefficient: 0, zCoefficient: 0 },
      },
      oneBatch,
    );
    const first = await run.trainStep();
    const second = await run.trainStep();
    run.close();
    const predicted = learningRate * first.gradientNorm ** 2;
    const actual = first.loss - second.loss;
    // Both batches are the same four examples. Second order in a step this small, and the losses' last digits.
    assert.ok(Math.abs(actual - predicted) < 0.05 * predicted + 2e-6, `${actual}, predicted ${predicted}`);
    assert.ok(predicted > 2e-5, `${predicted} is too small to tell`);
  });

test.run();
