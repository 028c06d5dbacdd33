// A loop of the caller's own: its gradients add up to the run's own step, bit for bit, and nothing of it is left behind.

import { readFile } from "node:fs/promises";
import { test } from "uvu";
import * as assert from "uvu/assert";
import { openRun } from "../../src/trainer/engine.ts";
import type { Run } from "../../src/trainer/run/run.ts";
import {
  type DrivenExample,
  InputError,
  MemoryError,
  type RouteBatch,
  type RunConfig,
} from "../../src/trainer/types.ts";
import { testDevice } from "../support/gpu.ts";
import { plan, tinyByteModel, tinyData, tinyModel, tinyRun } from "../support/tiny_model.ts";

const device = await testDevice();
const model = await tinyModel();
const data = await tinyData(8);
/** Lengths as the longest examples have them, in steps of four: the run's own batches are as long as the caller's. */
const LIMITS = { maxInputTokens: 12, maxTargetTokens: 4 };
const BATCHES = 2;
const CHANGES: Partial<RunConfig> = { ...LIMITS, batchSize: 4, accumulationSteps: BATCHES };

const open = (changes: Partial<RunConfig> = {}, memoryLimitBytes?: () => number): Promise<Run> =>
  openRun(device, tinyRun(model, data, { ...CHANGES, ...changes }), { memoryLimitBytes });

const examples: readonly DrivenExample[] = (await readFile(data, "utf8"))
  .trim()
  .split("\n")
  .map((line) => JSON.parse(line))
  .map(({ input_ids, target_ids }) => ({ inputIds: input_ids, targetIds: target_ids }));

/** The examples of a step's batches, in the order of the run's own data: what its listener hears of their routes tells. */
async function ownOrder(steps: number): Promise<DrivenExample[][]> {
  const run = await open();
  const order: DrivenExample[][] = [];
  run.onRoutes = ({ stack, layer, exampleIds }) => {
    if (stack === "encoder" && layer === 1) order.push([...new Set(exampleIds)].map((id) => examples[id]));
  };
  for (let step = 0; step < steps; step++) await run.trainStep();
  run.close();
  return order;
}

const parametersOf = async (run: Run): Promise<Map<string, Float32Array>> => {
  const values = new Map<string, Float32Array>();
  for (const { name } of run.source.model.parameters) values.set(name, await run.readParameter(name));
  return values;
};

test("as many batches as the run accumulates, and a step, are the run's own step, and it goes on from there", async () => {
  const [order, own] = [await ownOrder(4), await open()];
  const expected = [];
  for (let step = 0; step < 5; step++) expected.push(await own.trainStep());
  const run = await open();
  for (let step = 0; step < 4; step++) {
    const batches = order.slice(step * BATCHES, (step + 1) * BATCHES);
    const divisor = batches
      .flat()
      .reduce((n, example) => n + ("targetIds" in example ? example.targetIds.length : 0), 0);
    for (const [i, batch] of batches.entries()) {
      const { batches: added, targetTokens, tokenLosses, loss } = await run.forwardBackward(batch, { divisor });
      assert.is(added, i + 1);
      assert.equal([targetTokens, tokenLosses.length], [divisor / BATCHES, batch.length]);
      const mean = tokenLosses.reduce((n, losses) => n + losses.reduce((sum, x) => sum + x, 0), 0) / targetTokens;
      assert.is(loss, mean);
    }
    const { stepSeconds: _, ...metrics } = await run.optimStep();
    const { stepSeconds: __, ...wanted } = expected[step];
    assert.equal(metrics, wanted);
  }
  await run.endDriving();
  assert.is((await run.trainStep()).loss, expected[4].loss);
  assert.equal(await parametersOf(run), await parametersOf(own));
  run.close();
  own.close();
});

test("gradients of a run without accumulation add up too; a step and what replans clear them", async () => {
  const run = await open({ accumulationSteps: 1, dropout: 0 });
  const batch = examples.slice(0, 3);
  await run.forwardBackward(batch);
  const once = await run.optimStep(0);
  await run.forwardBackward(batch);
  await run.forwardBackward(batch);
  assert.is(run.drivenBatches, 2);
  const twice = await run.optimStep(0);
  assert.equal([run.drivenBatches, once.learningRate, twice.step], [0, 0, 2]);
  // The router's jitter differs from batch to batch: about the same gradient twice.
  const ratio = twice.gradientNorm / once.gradientNorm;
  assert.ok(ratio > 1.8 && ratio < 2.2, String(ratio));
  await run.forwardBackward(batch);
  await run.setTrainable(plan({ preset: "ffn" }));
  assert.is(run.drivenBatches, 0);
  await run.trainStep();
  run.close();
});

test("a batch that cannot be is refused with every reason, and leaves the gradients as they were", async () => {
  const run = await open();
  await run.forwardBackward(examples.slice(0, 2));
  const bad = [
    { inputIds: [1], targetIds: [99] },
    { inputIds: [2], targetIds: [1] },
    { input: "a", target: "b" },
  ];
  try {
    await run.forwardBackward(bad);
    assert.unreachable();
  } catch (error) {
    assert.instance(error, InputError);
    assert.equal(
      (error as InputError).problems.map(({ message }) => message),
      [
        "examples[0]: target has token id 99; the model's vocabulary has 37",
        "examples[2]: is text, and the model has no tokenizer; give input_ids and target_ids",
      ],
    );
  }
  for (const count of [0, 5]) {
    try {
      await run.forwardBackward(examples.slice(0, count));
      assert.unreachable();
    } catch (error) {
      assert.match((error as InputError).message, new RegExp(`examples: has ${count}; a batch of this run has 1 to 4`));
    }
  }
  assert.is(run.drivenBatches, 1);
  run.close();
});

/** Nothing of chance, so that two passes over one batch are one. */
const STILL: Partial<RunConfig> = {
  accumulationSteps: 1,
  dropout: 0,
  routing: {
    trainCapacity: { rule: "factor", factor: 1.25 },
    evalCapacity: { rule: "dropless" },
    group: "batch",
    routePadding: false,
    jitter: 0,
    topK: 2,
    gateNormalization: "top_k",
  },
};

test("a pass that replays its own routes has the same losses and gradients to the bit", async () => {
  const run = await open(STILL);
  const batch = examples.slice(0, 4);
  const recorded = await run.forwardBackward(batch, { recordRoutes: true });
  const first = await run.optimStep(0);
  const told = batch.map((example, i) => ({ ...example, routes: recorded.routes[i] }));
  const replayed = await run.forwardBackward(told, { recordRoutes: true });
  assert.equal(replayed.tokenLosses, recorded.tokenLosses);
  assert.equal(replayed.layers, recorded.layers);
  const at = (step: number) => recorded.routes.map((layers) => layers.map((routes) => ({ ...routes, step })));
  assert.equal(replayed.routes, at(1));
  assert.is((await run.optimStep(0)).gradientNorm, first.gradientNorm);
  run.close();
});

test("routes of before hold after the weights have changed, with the gates of now", async () => {
  const run = await open(STILL);
  const batch = examples.slice(0, 4);
  const { routes } = await run.forwardBackward(batch, { recordRoutes: true });
  for (let i = 0; i < 5; i++) {
    if (i > 0) await run.forwardBackward(batch);
    await run.optimStep(0.1);
  }
  const free = await run.forwardBackward(batch, { recordRoutes: true });
  const ids = (all: typeof routes) => all.map((layers) => layers.map(({ expertIds }) => expertIds));
  const gates = (all: typeof routes) => all.map((layers) => layers.map((one) => one.gates));
  assert.not.equal(ids(free.routes), ids(routes), "by themselves tokens choose anew");
  // The first two examples are told, the others choose.
  const told = batch.map((example, i) => (i < 2 ? { ...example, routes: routes[i] } : example));
  const replayed = await run.forwardBackward(told, { recordRoutes: true });
  assert.equal(ids(replayed.routes).slice(0, 2), ids(routes).slice(0, 2));
  assert.not.equal(gates(replayed.routes).slice(0, 2), gates(routes).slice(0, 2));
  assert.not.equal(replayed.tokenLosses.slice(0, 2), free.tokenLosses.slice(0, 2));
  for (const layers of replayed.routes)
    for (const { gates: own, topK } of layers)
      for (let t = 0; t < own.length; t += topK) assert.ok(Math.abs(own[t] + own[t + 1] - 1) < 1e-6, "normalised");
  run.close();
});

test("what a generation recorded is replayed by a pass over what it wrote", async () => {
  const directory = await tinyByteModel();
  const run = await openRun(device, tinyRun(directory, data, { ...CHANGES, ...STILL }));
  const generations = await run.generate(["abc", "hello"], { maxNewTokens: 3 });
  for (let i = 0; i < 5; i++) {
    await run.forwardBackward(examples.slice(0, 4));
    await run.optimStep(0.1);
  }
  const told = generations.map(({ inputIds, tokenIds, routes }) => ({ inputIds, targetIds: tokenIds, routes }));
  const free = await run.forwardBackward(
    told.map(({ routes: _, ...example }) => example),
    { recordRoutes: true },
  );
  const replayed = await run.forwardBackward(told, { recordRoutes: true });
  const differs: boolean[] = [];
  told.forEach(({ routes }, i) => {
    for (const recorded of routes) {
      const same = ({ stack, layer }: RouteBatch): boolean => stack === recorded.stack && layer === recorded.layer;
      // The pass has a position more where the generation was cut before its end.
      const length = recorded.expertIds.length;
      const [own, unled] = [replayed, free].map(({ routes }) => [
        ...routes[i].find(same)!.expertIds.subarray(0, length),
      ]);
      assert.equal(own, [...recorded.expertIds], `${recorded.stack} ${recorded.layer} of example ${i}`);
      differs.push(unled.join() !== own.join());
    }
  });
  assert.ok(differs.includes(true), "by themselves some tokens choose anew");
  run.close();
});

test("routes of other tokens are refused", async () => {
  const run = await open(STILL);
  const { routes } = await run.forwardBackward(examples.slice(0, 2), { recordRoutes: true });
  try {
    await run.forwardBackward([{ ...examples[1], routes: routes[0] }]);
    assert.unreachable();
  } catch (error) {
    assert.instance(error, InputError);
    assert.match(
      (error as InputError).message,
      /examples\[0\]: its routes are of other tokens, in the encoder from position 0/,
    );
  }
  assert.is(run.drivenBatches, 1);
  run.close();
});

test("sums that do not fit are refused, and the run trains on", async () => {
  let limit = Number.POSITIVE_INFINITY;
  const run = await open({ accumulationSteps: 1 }, () => limit);
  limit = run.cost.peakBytes;
  try {
    await run.forwardBackward(examples.slice(0, 1));
    assert.unreachable();
  } catch (error) {
    assert.instance(error, MemoryError);
  }
  assert.is((await run.trainStep()).step, 1);
  run.close();
});

test.run();
