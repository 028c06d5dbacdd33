// Experts that choose their tokens: the sparse layer and its gradients against float64, and a run that trains so.

import { test } from "uvu";
import * as assert from "uvu/assert";
import { runProgram } from "../../src/kernels/program.ts";
import { expertChoiceReference } from "../../src/kernels/routing_priority.ts";
import { packStepScalars, STEP_SCALARS_BYTES } from "../../src/kernels/step_scalars.ts";
import { openRun } from "../../src/trainer/engine.ts";
import { differentiate } from "../../src/trainer/graph/autodiff.ts";
import { elements, Graph, type Tensor } from "../../src/trainer/graph/graph.ts";
import { lowerGraph } from "../../src/trainer/graph/lowered.ts";
import { combine, expertLinear } from "../../src/trainer/graph/ops/experts.ts";
import { route } from "../../src/trainer/graph/ops/routing.ts";
import { DeviceMemory } from "../../src/trainer/run/device_memory.ts";
import type { Run } from "../../src/trainer/run/run.ts";
import { InputError, type RouteBatch, type RoutingOptions } from "../../src/trainer/types.ts";
import { relativeError, testDevice } from "../support/gpu.ts";
import { noise, tinyData, tinyModel, tinyRun } from "../support/tiny_model.ts";

const device = await testDevice();

const [TOKENS, PER_GROUP, EXPERTS, WIDTH, HIDDEN, SLOTS] = [23, 9, 3, 5, 7, 4];
const MASK = Uint32Array.from({ length: TOKENS }, (_, t) => Number(t % 6 !== 5));
const SHAPES = {
  logits: [TOKENS, EXPERTS],
  x: [TOKENS, WIDTH],
  up: [EXPERTS, HIDDEN, WIDTH],
  down: [EXPERTS, WIDTH, HIDDEN],
} as const;
type Values = Record<keyof typeof SHAPES, Float32Array<ArrayBuffer>>;
const NAMES = Object.keys(SHAPES) as (keyof typeof SHAPES)[];
const VALUES = Object.fromEntries(NAMES.map((name, i) => [name, noise(elements(SHAPES[name]), i)])) as Values;
const PROBE = noise(TOKENS * WIDTH, 9);

/** The layer on the device: its output [TOKENS, WIDTH] and the gradient of Σ output · PROBE. */
async function onDevice() {
  const g = new Graph(device.target);
  const tensors = NAMES.map((name) => {
    const spec = { name, kind: "expert", shape: SHAPES[name], keys: [name] } as const;
    const experts = name === "up" || name === "down" ? { experts: EXPERTS } : {};
    const t = g.tensor({
      name,
      shape: spec.shape,
      role: "parameter",
      requiresGradient: true,
      parameter: { ...spec, ...experts },
    });
    g.parameters.set(name, t);
    return t;
  });
  const [logits, x, up, down] = tensors;
  const step = g.input("step_scalars", [STEP_SCALARS_BYTES / 4], "f32");
  const routing = route(g, "router", logits, g.input("mask", [TOKENS], "u32"), {
    topK: 1,
    normalizeGates: false,
    secondExpertPolicy: "always",
    priority: "position",
    choose: "experts",
    tokensPerGroup: PER_GROUP,
    capacity: { rule: "fixed", slots: SLOTS },
    countAll: false,
    denominator: "routable",
    balanceCoefficient: 1, // must send nothing: loads are equal
    zCoefficient: 0,
    lossGradient: true,
    step,
  });
  const hidden = expertLinear(g, "hidden", x, up, routing, { gather: true, relu: true });
  const out = combine(
    g,
    "out",
    expertLinear(g, "rows", hidden, down, routing, { gather: false, relu: false }),
    routing,
  );
  const probe = g.input("probe", [TOKENS, WIDTH], "f32");
  g.keep(out);
  g.add({
    name: "probe",
    reads: [out, probe],
    writes: [],
    startsGradient: true,
    lower: () => [],
    backward: (gradients) => gradients.addTensor(out, probe, false),
  });
  const gradients = differentiate(g);
  const memory = new DeviceMemory(device);
  try {
    await memory.createParameters(g.parameters);
    for (const name of NAMES) device.upload(memory.parameters.get(name)!.buffer, VALUES[name]);
    const lowered = lowerGraph(g, device.capabilities.limits.minUniformBufferOffsetAlignment);
    await memory.prepare([lowered]);
    device.upload(memory.inputs.get("mask")!, MASK);
    device.upload(memory.inputs.get("probe")!, PROBE);
    const scalars = { step: 0, seed: 0, lossScale: 1, inverseTargetCount: 1, maxGradientNorm: 0 };
    device.upload(memory.inputs.get("step_scalars")!, packStepScalars(scalars));
    const recorded = await memory.record("expert choice", lowered);
    runProgram(device, recorded.program);
    const values = async (t: Tensor) =>
      new Float32Array(await device.read(recorded.range(t).buffer, 4 * elements(t.shape)));
    const result = {
      out: await values(out),
      losses: await values(routing.losses),
      gradients: await Promise.all(NAMES.map(async (name) => [name, await values(gradients.get(name)!)] as const)),
    };
    recorded.destroy();
    return result;
  } finally {
    memory.destroy();
  }
}

/** The same in float64, for values of which the choice is that of VALUES. */
function reference(v: Record<keyof Values, ArrayLike<number>>, chosen: Uint32Array): Float64Array {
  const out = new Float64Array(TOKENS * WIDTH);
  for (let t = 0; t < TOKENS; t++) {
    const exponentials = Array.from({ length: EXPERTS }, (_, e) => Math.exp(v.logits[t * EXPERTS + e]));
    const sum = exponentials.reduce((a, b) => a + b);
    for (let e = 0; e < EXPERTS; e++) {
      if (chosen[t * EXPERTS + e] !== e) continue;
      for (let h = 0; h < HIDDEN; h++) {
        let z = 0;
        for (let i = 0; i < WIDTH; i++) z += v.up[(e * HIDDEN + h) * WIDTH + i] * v.x[t * WIDTH + i];
        for (let i = 0; i < WIDTH && z > 0; i++)
          out[t * WIDTH + i] += (exponentials[e] / sum) * v.down[(e * WIDTH + i) * HIDDEN + h] * z;
      }
    }
  }
  return out;
}

test("a token's output is the sum over the experts that took it, and its gradients are float64's", async () => {
  const probabilities = Float64Array.from(VALUES.logits, (_, i) => {
    const row = VALUES.logits.subarray(i - (i % EXPERTS), i - (i % EXPERTS) + EXPERTS);
    return Math.exp(VALUES.logits[i]) / row.reduce((sum, x) => sum + Math.exp(x), 0);
  });
  const dims = { tokens: TOKENS, tokensPerGroup: PER_GROUP, experts: EXPERTS, capacity: SLOTS };
  const { expertIds } = expertChoiceReference(probabilities, MASK, dims);
  const experts = Array.from({ length: TOKENS }, (_, t) =>
    [...expertIds.subarray(t * EXPERTS, (t + 1) * EXPERTS)].reduce((n, id, e) => n + Number(id === e), 0),
  );
  assert.equal([Math.min(...experts), Math.max(...experts) > 1], [0, true], "some tokens have none, some several");

  const actual = await onDevice();
  assert.ok(relativeError(actual.out, reference(VALUES, expertIds)) < 1e-5, "output");
  experts.forEach((n, t) => {
    if (n === 0) assert.ok(actual.out.subarray(t * WIDTH, (t + 1) * WIDTH).every((value) => value === 0));
  });
  assert.is(actual.losses[0], 0, "there is no load to balance");
  // Central differences of a function that is smooth here: exact to the cube of the step, below f32's rounding.
  const STEP = 1e-5;
  for (const [name, gradient] of actual.gradients) {
    const expected = Float64Array.from(VALUES[name], (_, i) => {
      const at = (shift: number) => {
        const moved = Float64Array.from(VALUES[name]);
        moved[i] += shift;
        return reference({ ...VALUES, [name]: moved }, expertIds).reduce((sum, y, j) => sum + y * PROBE[j], 0);
      };
      return (at(STEP) - at(-STEP)) / (2 * STEP);
    });
    assert.ok(relativeError(gradient, expected) < 1e-5, `gradient of ${name}: ${relativeError(gradient, expected)}`);
  }
});

const model = await tinyModel();
const data = await tinyData();
const SLOTS_OF_RUN = 6;
const EXPERTS_CHOOSE: RoutingOptions = {
  trainCapacity: { rule: "fixed", slots: SLOTS_OF_RUN },
  evalCapacity: { rule: "fixed", slots: SLOTS_OF_RUN },
  group: "batch",
  routePadding: false,
  jitter: 0,
  encoderChoice: "experts",
};

async function open(routing: Partial<RoutingOptions> = {}, pooled = false): Promise<Run> {
  const losses = { balanceCoefficient: 1e-2, zCoefficient: 1e-3, ...(pooled && { layerReduction: "pooled" as const }) };
  const config = tinyRun(model, data, { dropout: 0, routing: { ...EXPERTS_CHOOSE, ...routing }, losses });
  return openRun(device, config);
}

test("a run whose encoder's experts choose: equal loads, routes with the experts each token has, a decoder as ever", async () => {
  const run = await open();
  const routes: RouteBatch[] = [];
  run.onRoutes = (batch) => routes.push(batch);
  const first = await run.trainStep();
  for (const layer of first.layers.filter((l) => l.stack === "encoder")) {
    assert.equal([...layer.load], [0.25, 0.25, 0.25, 0.25]);
    assert.equal([layer.assignments, layer.dropped, layer.balanceLoss], [4 * SLOTS_OF_RUN, 0, 0]);
    assert.ok(layer.zLoss > 0);
  }
  const decoder = first.layers.find((l) => l.stack === "decoder")!;
  assert.ok(decoder.balanceLoss > 0.5);
  for (const r of routes) {
    const tokens = r.positions.length;
    assert.is(r.expertIds.length, tokens * r.topK);
    if (r.stack === "decoder") {
      assert.is(r.topK, 1);
      continue;
    }
    const taken = [0, 0, 0, 0];
    for (let t = 0; t < tokens; t++) {
      const own = [...r.expertIds.subarray(t * r.topK, (t + 1) * r.topK)];
      const n = own.filter((e) => e < r.experts).length;
      assert.equal(new Set(own.slice(0, n)).size, n, "distinct experts");
      assert.ok(own.slice(n).every((e) => e === r.experts));
      own.forEach((e, j) => {
        assert.equal([r.kept[t * r.topK + j], r.gates[t * r.topK + j] > 0], [Number(e < r.experts), e < r.experts]);
        if (e < r.experts) taken[e]++;
        if (j > 0) assert.ok(r.gates[t * r.topK + j] <= r.gates[t * r.topK + j - 1], "best first");
      });
    }
    assert.equal(taken, Array(4).fill(SLOTS_OF_RUN));
  }
  run.onRoutes = undefined;
  let last = first.loss;
  for (let i = 0; i < 12; i++) last = (await run.trainStep()).loss;
  assert.ok(last < first.loss, "the loss falls");
  const { layers, loss } = await run.evaluate(data, "train", 8);
  assert.ok(Number.isFinite(loss));
  assert.equal([...layers[0].load], [0.25, 0.25, 0.25, 0.25], "in evaluation too");
  run.close();
});

test("what does not go with experts that choose is refused, all of it at once", async () => {
  const fields = async (routing: Partial<RoutingOptions>, pooled = false) => {
    try {
      (await open(routing, pooled)).close();
      return [];
    } catch (error) {
      assert.instance(error, InputError);
      return (error as InputError).problems.map((p) => p.field);
    }
  };
  const dropless = { rule: "dropless" as const };
  assert.equal(await fields({ trainCapacity: dropless, priority: "batch_prioritized" }, true), [
    "routing.priority",
    "routing.train_capacity",
    "losses.layer_reduction",
  ]);
  assert.equal(await fields({}), []);
});

test("a random second expert needs normalised gates", async () => {
  const random = { encoderChoice: "tokens", topK: 2, secondExpertPolicy: "random" } as const;
  const before = device.allocatedBytes;
  try {
    (await open(random)).close();
    assert.unreachable("the model's gates are not normalised");
  } catch (error) {
    assert.match(String(error), /second_expert_policy: random .*normalised gate.*needs gate_normalization top_k/);
  }
  assert.is(device.allocatedBytes, before, "nothing is left allocated");
  (await open({ ...random, gateNormalization: "top_k" })).close();
});

test.run();
