// The known traps of sparse models, one test each, by their number in the specification (moe-spec, section 6). Each was a
// real bug somewhere.

import { test } from "uvu";
import * as assert from "uvu/assert";
import { groupedWeightGradient } from "../../src/kernels/grouped_matmul.ts";
import { moeCombine } from "../../src/kernels/moe_combine.ts";
import { NO_ROW } from "../../src/kernels/moe_dispatch.ts";
import { routerForward, routerLosses, routerStatistics, routerStatisticsScratch } from "../../src/kernels/router.ts";
import { openRun } from "../../src/trainer/engine.ts";
import { lowerGraph } from "../../src/trainer/graph/lowered.ts";
import { resolveTrainable } from "../../src/trainer/groups.ts";
import { modelOf } from "../../src/trainer/model/open.ts";
import { DROPLESS } from "../../src/trainer/run/options.ts";
import type { Run } from "../../src/trainer/run/run.ts";
import type { RoutingOptions, RunConfig, TrainableSelection } from "../../src/trainer/types.ts";
import { runCommands, testDevice } from "../support/gpu.ts";
import { noise, plan, TINY_CONFIG, tinyData, tinyModel, tinyRun } from "../support/tiny_model.ts";

const device = await testDevice();
const directory = await tinyModel();
const data = await tinyData();
const NO_ROUTER_LOSSES = { balanceCoefficient: 0, zCoefficient: 0 };

const open = (changes: Partial<RunConfig> = {}): Promise<Run> =>
  openRun(device, tinyRun(directory, data, { dropout: 0, routing: DROPLESS, ...changes }));

/** The tiny model's training graph for a selection, with jitter. */
function trainingGraph(selection: Partial<TrainableSelection> = { preset: "all" }) {
  const model = modelOf(TINY_CONFIG);
  const trainable = resolveTrainable(model.parameters, { add: [], remove: [], ...selection });
  const built = model.trainingGraph(
    "software",
    trainable,
    {
      batch: 2,
      inputLength: 8,
      targetLength: 4,
      train: true,
      dropout: 0,
      expertDropout: 0,
      routing: { ...DROPLESS, jitter: 0.1 },
      losses: { balanceCoefficient: 1e-2, zCoefficient: 1e-3 },
      lossGradient: true,
      packed: false,
      sumGradients: false,
      arenaBytes: 2 ** 27,
    },
    { kind: "sgd", momentum: 0, weightDecay: 0 },
  );
  return { model, trainable, built };
}

/** Router, statistics and losses of logits [tokens, experts]; tokens with mask 0 are padding. */
async function routed(logits: Float32Array, mask: Uint32Array, experts: number) {
  const tokens = mask.length;
  const dims = { tokens, tokensPerGroup: tokens, experts, topK: 1, countAll: false };
  const floats = (count: number) => new Float32Array(count).fill(Number.NaN);
  return runCommands(device, {
    buffers: {
      logits,
      mask,
      probabilities: floats(tokens * experts),
      expertIds: new Uint32Array(tokens),
      gates: floats(tokens),
      logSumExp: floats(tokens),
      scratch: floats(routerStatisticsScratch(dims)),
      load: floats(experts),
      meanProbability: floats(experts),
      groupTokens: floats(1),
      zSum: floats(1),
      out: floats(2),
    },
    commands: (b) => [
      ...routerForward(b, { tokens, experts, topK: 1, normalizeGates: false }),
      ...routerStatistics(b, dims),
      ...routerLosses(b, { groups: 1, experts, outOffset: 0 }),
    ],
  });
}

const softmax = (row: ArrayLike<number>) => {
  const exponentials = Array.from(row, Math.exp);
  const sum = exponentials.reduce((a, b) => a + b, 0);
  return exponentials.map((x) => x / sum);
};
const near = (actual: number, expected: number, what: string) =>
  assert.ok(
    Math.abs(actual - expected) <= 1e-5 * Math.max(1, Math.abs(expected)),
    `${what}: ${actual}, not ${expected}`,
  );

const TOKENS = 6;
const EXPERTS = 3;
const LOGITS = noise(TOKENS * EXPERTS, 3).map((x) => 2 * x);
const EVERY = new Uint32Array(TOKENS).fill(1);
const row = (t: number) => LOGITS.subarray(t * EXPERTS, (t + 1) * EXPERTS);

test("1: a dropped token comes out of the layer as exactly 0", async () => {
  const { out } = await runCommands(device, {
    buffers: {
      rows: Float32Array.of(5, 6),
      gates: Float32Array.of(0.5, 0.9),
      rowOfAssignment: Uint32Array.of(0, NO_ROW),
      out: new Float32Array(4).fill(Number.NaN),
    },
    commands: (b) => moeCombine(b, { tokens: 2, topK: 1, width: 2 }),
  });
  assert.equal([...out], [2.5, 3, 0, 0]);
});

test("2: what is not routed counts as no expert's load, least of all expert 0's", async () => {
  const mask = Uint32Array.of(1, 0, 1, 0, 1, 0);
  const { load } = await routed(LOGITS, mask, EXPERTS);
  const expected = [0, 0, 0];
  for (const t of [0, 2, 4]) expected[row(t).indexOf(Math.max(...row(t)))] += 1 / 3;
  load.forEach((f, e) => {
    near(f, expected[e], `load of expert ${e}`);
  });
});

test("3: capacity is enforced", async () => {
  const run = await open({ routing: { ...DROPLESS, trainCapacity: { rule: "fixed", slots: 1 } } });
  const { layers } = await run.trainStep();
  for (const { assignments, dropped, load } of layers)
    assert.is(
      assignments - dropped,
      load.filter((share) => share > 0).length,
      "one slot for each expert that was chosen",
    );
  run.close();
});

test("4: the z-loss is of the logits", async () => {
  const { out } = await routed(LOGITS, EVERY, EXPERTS);
  const z = EVERY.reduce((n, _, t) => n + Math.log([...row(t)].reduce((a, x) => a + Math.exp(x), 0)) ** 2, 0) / TOKENS;
  near(out[1], z, "z-loss");
});

test("5: the balance loss takes the softmax once", async () => {
  const { out, meanProbability, load } = await routed(LOGITS, EVERY, EXPERTS);
  const mean = [0, 1, 2].map((e) => EVERY.reduce((n, _, t) => n + softmax(row(t))[e], 0) / TOKENS);
  meanProbability.forEach((p, e) => {
    near(p, mean[e], `mean probability of expert ${e}`);
  });
  near(out[0], EXPERTS * mean.reduce((n, p, e) => n + p * load[e], 0), "balance loss");
});

test("6: jitter reaches the router and never the experts", () => {
  const { built } = trainingGraph();
  const jittered = new Set(built.graph.nodes.filter((n) => n.name === "jitter").flatMap((n) => n.writes));
  assert.is(jittered.size, built.sparse.length);
  const readers = built.graph.nodes.filter((n) => n.phase === "forward" && n.reads.some((t) => jittered.has(t)));
  assert.equal(new Set(readers.map((n) => n.name)), new Set(["linear"]));
  assert.equal(
    readers.flatMap((n) => n.writes),
    built.sparse.map((s) => s.logits),
  );
});

test("7: an evaluation leaves the training capacity as it was", async () => {
  const routing: RoutingOptions = { ...DROPLESS, trainCapacity: { rule: "fixed", slots: 1 } };
  const run = await open({ routing });
  const before = (await run.trainStep()).layers[0];
  const evaluated = (await run.evaluate(data, "train", 0)).layers[0];
  const after = (await run.trainStep()).layers[0];
  assert.ok(before.dropped > 0 && after.dropped > 0, "training drops");
  assert.is(evaluated.dropped, 0, "evaluation does not");
  run.close();
});

test("8: padding counts in no router loss", async () => {
  const padded = new Float32Array([...LOGITS, ...noise(2 * EXPERTS, 8).map((x) => 9 * x)]);
  const withPadding = await routed(padded, Uint32Array.of(1, 1, 1, 1, 1, 1, 0, 0), EXPERTS);
  const without = await routed(LOGITS, EVERY, EXPERTS);
  for (const i of [0, 1]) near(withPadding.out[i], without.out[i], `loss ${i}`);
});

test("9: the backward pass reuses the recorded choice and routes nothing again", () => {
  const { built } = trainingGraph();
  const chosen = new Set(built.sparse.map((s) => s.routing.expertIds));
  const writers = built.graph.nodes.filter((n) => n.writes.some((t) => chosen.has(t)));
  assert.is(writers.length, built.sparse.length);
  assert.ok(writers.every((n) => n.phase === "forward"));
  const gradients = built.graph.nodes.filter((n) => n.name === "router_gradient");
  assert.is(gradients.length, built.sparse.length);
  assert.ok(gradients.every((n) => n.reads.some((t) => chosen.has(t))));
});

test("10: an expert without a token has gradient exactly 0", async () => {
  const { out } = await runCommands(device, {
    buffers: {
      x: Float32Array.of(1, 2, 0, 0),
      dy: Float32Array.of(3, 0),
      expertOffset: Uint32Array.of(0, 2, 2),
      expertCount: Uint32Array.of(1, 0),
      trainableExperts: Uint32Array.of(0, 1),
      out: new Float32Array(4).fill(Number.NaN),
    },
    commands: (b) => groupedWeightGradient(b, { slots: 2, n: 1, k: 2 }, device.target),
  });
  assert.equal([...out], [3, 6, 0, 0]);
});

test("11: layer 1 is layer 1, not expert 1 of another layer", () => {
  const { parameters } = modelOf({ ...TINY_CONFIG, num_sparse_encoder_layers: 4 });
  const selector = { kinds: [], stacks: ["encoder" as const], layers: { first: 1, last: 1 }, experts: [] };
  const set = resolveTrainable(parameters, { add: [selector], remove: [] });
  assert.ok(set.size > 5);
  for (const p of parameters) assert.is(set.has(p.name), p.stack === "encoder" && p.layer === 1, p.name);
});

test("12: no weight gradient of what is frozen is computed", () => {
  const { built, trainable } = trainingGraph({ preset: "attention" });
  const { weightGradientDispatches } = lowerGraph(built.graph, 256);
  assert.equal([...weightGradientDispatches.keys()].sort(), [...trainable.keys()].sort());
});

test("13: weight decay leaves frozen experts alone", async () => {
  const add = [{ kinds: ["expert" as const], stacks: [], experts: [1] }];
  const base = tinyRun(directory, data).optimizer;
  const algorithm = { kind: "sgd", momentum: 0, weightDecay: 0.5 } as const;
  const run = await open({ trainable: plan({ add }), optimizer: { ...base, algorithm, learningRate: 0.1 } });
  const { name, shape } = run.source.model.parameters.find((p) => p.kind === "expert")!;
  const before = await run.readParameter(name);
  await run.trainStep();
  const after = await run.readParameter(name);
  const size = before.length / shape[0];
  for (let e = 0; e < shape[0]; e++) {
    const part = (x: Float32Array) => [...x.subarray(e * size, (e + 1) * size)];
    (e === 1 ? assert.not.equal : assert.equal)(part(after), part(before), `expert ${e}`);
  }
  run.close();
});

test("14: gradients are cleared once a step, not once a batch", async () => {
  const losses = NO_ROUTER_LOSSES;
  const parts = await open({ losses, batchSize: 2, accumulationSteps: 2 });
  const whole = await open({ losses, batchSize: 4 });
  for (let step = 0; step < 2; step++) {
    const [actual, expected] = [await parts.trainStep(), await whole.trainStep()];
    assert.ok(Math.abs(actual.gradientNorm / expected.gradientNorm - 1) < 1e-4, `norm of step ${step}`);
  }
  parts.close();
  whole.close();
});

test.run();
