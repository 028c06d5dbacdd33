// Selection biases in a run: they follow the loads, rest with a frozen router, and go wherever the model goes.

import { mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "uvu";
import * as assert from "uvu/assert";
import { updateSelectionBiasReference } from "../../src/kernels/selection_bias.ts";
import { createEngine, openRun } from "../../src/trainer/engine.ts";
import { openModelDirectory } from "../../src/trainer/model/open.ts";
import type { Run } from "../../src/trainer/run/run.ts";
import type { RouterLayerMetrics, RunConfig, StepMetrics } from "../../src/trainer/types.ts";
import { testDevice } from "../support/gpu.ts";
import { plan, tinyData, tinyModel, tinyRun } from "../support/tiny_model.ts";

const device = await testDevice();
const model = await tinyModel();
const data = await tinyData();
const RATE = 0.03;

function open(changes: Partial<RunConfig> = {}, rate = RATE, resumeFrom?: string): Promise<Run> {
  const base = tinyRun(model, data);
  const routing = {
    ...base.routing,
    trainCapacity: { rule: "dropless" as const },
    selectionBias: { updateRate: rate },
  };
  return openRun(
    device,
    { ...base, routing, losses: { balanceCoefficient: 0, zCoefficient: 0 }, ...changes },
    { resumeFrom },
  );
}

async function steps(run: Run, count: number): Promise<StepMetrics[]> {
  const all: StepMetrics[] = [];
  for (let i = 0; i < count; i++) all.push(await run.trainStep());
  return all;
}

const biases = ({ layers }: { layers: readonly RouterLayerMetrics[] }) => layers.map((l) => [...l.selectionBias!]);
const directory = () => mkdtemp(join(tmpdir(), "thaw-bias-"));

for (const accumulationSteps of [1, 3])
  test(`biases follow the loads of ${accumulationSteps} batches, layer by layer`, async () => {
    const before = device.allocatedBytes;
    const run = await open({ accumulationSteps });
    assert.is(device.allocatedBytes - before, run.cost.peakBytes, "planned bytes are what is allocated");
    let expected: Float32Array[] = [];
    for (const { layers } of await steps(run, 4)) {
      expected = layers.map((layer, i) => {
        const load = layer.load.map((share) => Math.round(share * layer.assignments));
        return updateSelectionBiasReference(expected[i] ?? new Float32Array(4), load, RATE);
      });
      assert.equal(
        biases({ layers }),
        expected.map((b) => [...b]),
      );
    }
    run.close();
  });

test("a bias rests while its router is frozen", async () => {
  const run = await open();
  const [, learnt] = await steps(run, 2);
  await run.setTrainable(plan({ preset: "non_moe" }));
  for (const step of await steps(run, 2)) assert.equal(biases(step), biases(learnt));
  const first = {
    kinds: ["router" as const],
    stacks: ["encoder" as const],
    layers: { first: 1, last: 1 },
    experts: [],
  };
  await run.setTrainable(plan({ add: [first] }));
  const [thawed] = await steps(run, 1);
  const moved = biases(thawed).map((b, i) => b.join() !== biases(learnt)[i].join());
  assert.equal(moved, [true, false, false], "only the layer whose router trains");
  run.close();
});

test("a run resumed from a checkpoint goes on to the same bits", async () => {
  const straight = await open();
  const expected = (await steps(straight, 5)).slice(3);
  straight.close();
  const first = await open();
  await steps(first, 3);
  const checkpoint = await directory();
  await first.saveCheckpoint(checkpoint);
  first.close();
  const second = await open({}, RATE, checkpoint);
  const actual = await steps(second, 2);
  second.close();
  assert.equal(actual.map(biases), expected.map(biases));
  assert.equal(
    actual.map((s) => s.loss),
    expected.map((s) => s.loss),
  );
});

test("evaluation, generation and an exported model choose by the bias", async () => {
  // After a step, every expert above the mean load is out of the question, and those below it are in.
  const run = await open({}, 10);
  const [step] = await steps(run, 1);
  const allowed = biases(step).map((bias) => bias.map((b) => b > 0));
  const check = (layers: readonly RouterLayerMetrics[], what: string) => {
    for (const [i, layer] of layers.entries()) {
      assert.equal(layer.selectionBias, biases(step)[i]);
      for (const [e, share] of layer.load.entries())
        assert.ok(allowed[i][e] || share === 0, `${what}: layer ${i}, expert ${e}`);
    }
  };
  check((await run.evaluate(data, "train", 6)).layers, "evaluation");
  const target = await directory();
  await run.exportModel(target);

  const { lengths } = await run.inference({ input: 4, target: 4 });
  const decoder = await run.decoder(lengths, 1, false);
  decoder.begin();
  const rows = decoder.shape.rows;
  const { results } = await decoder.decode(new Uint32Array(rows), 0, new Uint32Array(rows).fill(1));
  const [{ routing }] = decoder.step.built.sparse;
  for (const expert of results.u32(routing.chosenIds)) assert.ok(allowed[2][expert], `generation: expert ${expert}`);
  decoder.close();
  run.close();

  const exported = await createEngine(device).openModel(target, 4, 16, 8);
  check((await exported.evaluate(data, "train", 6)).layers, "an exported model");
  exported.close();
});

test("a run that learns no biases keeps those of its model, and a model without them has none", async () => {
  const run = await open({}, 0.5);
  const [step] = await steps(run, 1);
  const target = await directory();
  await run.exportModel(target);
  run.close();
  const base = tinyRun(target, data);
  const kept = await openRun(device, base);
  for (const later of await steps(kept, 2)) assert.equal(biases(later), biases(step));
  const again = await directory();
  await kept.saveCheckpoint(again);
  kept.close();
  const { checkpoint } = await openModelDirectory(again);
  const keys = [...checkpoint.tensors.keys()].filter((key) => key.endsWith("selection_bias"));
  assert.equal(keys, [
    "encoder.block.1.layer.1.mlp.router.selection_bias",
    "encoder.block.3.layer.1.mlp.router.selection_bias",
    "decoder.block.1.layer.2.mlp.router.selection_bias",
  ]);
  const values = await Promise.all(keys.map(async (key) => [...((await checkpoint.read(key)) as Float32Array)]));
  await checkpoint.close();
  assert.equal(values, biases(step));

  const plain = await openRun(device, tinyRun(model, data));
  for (const layer of (await plain.trainStep()).layers) assert.is(layer.selectionBias, undefined);
  plain.close();
});

test.run();
