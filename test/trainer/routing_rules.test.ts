// Routing rules as a run has them, from its options to the routes it reports; the kernels' own tests are in test/kernels.

import { mkdtemp, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "uvu";
import * as assert from "uvu/assert";
import { openRun } from "../../src/trainer/engine.ts";
import { DROPLESS } from "../../src/trainer/run/options.ts";
import type { Run } from "../../src/trainer/run/run.ts";
import type { RouteBatch, RouterLayerMetrics, RoutingOptions, RunConfig } from "../../src/trainer/types.ts";
import { testDevice } from "../support/gpu.ts";
import { noise, tinyModel, tinyRun } from "../support/tiny_model.ts";

const device = await testDevice();
const model = await tinyModel();
const LENGTH = 8; // lengths are padded to a multiple of 4
const BATCH = 3;
const EXPERTS = 4;

/** Sequences of one length, so that a batch has no padding and a token's place in it is known. */
async function evenData(): Promise<string> {
  const path = join(await mkdtemp(join(tmpdir(), "thaw-data-")), "train.jsonl");
  const lines = Array.from({ length: 12 }, (_, i) => {
    const ids = [...noise(LENGTH + 2, i)].map((x) => 2 + Math.floor(17 * (x + 1)));
    return JSON.stringify({ input_ids: [...ids.slice(1, LENGTH), 1], target_ids: [...ids.slice(LENGTH), 1] });
  });
  await writeFile(path, `${lines.join("\n")}\n`);
  return path;
}
const data = await evenData();

async function open(routing: Partial<RoutingOptions>, changes: Partial<RunConfig> = {}): Promise<Run> {
  const config = tinyRun(model, data, {
    batchSize: BATCH,
    dropout: 0,
    routing: { ...DROPLESS, ...routing },
    ...changes,
  });
  return openRun(device, config);
}

/** Routes of one training step, and its metrics. */
async function stepRoutes(run: Run) {
  const routes: RouteBatch[] = [];
  run.onRoutes = (batch) => routes.push(batch);
  const metrics = await run.trainStep();
  run.onRoutes = undefined;
  return { routes, metrics };
}

test("groups of so many tokens have slots of their own, a shorter last one fewer", async () => {
  const tokensPerGroup = 17; // of 24: the last group has 7
  const factor = 1.2;
  const slotsOf = (tokens: number) => Math.max(Math.round((factor * tokens) / EXPERTS), 4);
  assert.equal([slotsOf(17), slotsOf(7)], [5, 4]);
  const trainCapacity = { rule: "factor" as const, factor };
  const run = await open({ group: { tokens: tokensPerGroup }, trainCapacity });
  const { routes, metrics } = await stepRoutes(run);
  run.close();
  let dropped = 0;
  for (const r of routes.filter((r) => r.stack === "encoder")) {
    assert.is(r.positions.length, BATCH * LENGTH, "no padding");
    const taken = new Map<string, number>();
    r.expertIds.forEach((e, t) => {
      const group = Math.floor(t / tokensPerGroup);
      const before = taken.get(`${group} ${e}`) ?? 0;
      taken.set(`${group} ${e}`, before + 1);
      const kept = before < slotsOf(group === 0 ? tokensPerGroup : BATCH * LENGTH - tokensPerGroup);
      assert.is(r.kept[t], Number(kept), `layer ${r.layer}, token ${t}`);
      dropped += Number(!kept);
    });
    const layer = metrics.layers.find((l) => l.stack === r.stack && l.layer === r.layer)!;
    assert.is(layer.dropped, r.kept.filter((kept) => kept === 0).length);
  }
  assert.ok(dropped > 0, "something is dropped");
});

test("one group of more tokens than there are is the batch", async () => {
  const step = async (group: RoutingOptions["group"]) => {
    const run = await open({ group, trainCapacity: { rule: "fixed", slots: 4 } });
    const { loss, totalLoss, gradientNorm } = await run.trainStep();
    run.close();
    return { loss, totalLoss, gradientNorm };
  };
  assert.equal(await step({ tokens: 1000 }), await step("batch"));
  assert.not.equal(await step({ tokens: 5 }), await step("batch"));
});

/** Tokens of these routes that chose both of each two experts: upper triangle, row by row. */
function pairsOf(routes: readonly RouteBatch[], layer: RouterLayerMetrics): number[] {
  const counts = new Map<string, number>();
  for (const r of routes.filter((r) => r.stack === layer.stack && r.layer === layer.layer))
    for (let t = 0; t < r.positions.length; t++) {
      const own = [...r.expertIds.subarray(t * r.topK, (t + 1) * r.topK)].filter((e) => e < EXPERTS).sort();
      for (const [i, a] of own.entries())
        for (const b of own.slice(i)) counts.set(`${a} ${b}`, (counts.get(`${a} ${b}`) ?? 0) + 1);
    }
  const experts = Array.from({ length: EXPERTS }, (_, e) => e);
  return experts.flatMap((a) => experts.slice(a).map((b) => counts.get(`${a} ${b}`) ?? 0));
}

const slots = { rule: "fixed" as const, slots: 5 };
for (const [what, routing] of [
  ["two choices, of which capacity drops some", { topK: 2, trainCapacity: slots }],
  ["a second expert at random", { topK: 2, gateNormalization: "top_k", secondExpertPolicy: "random" }],
  ["experts that choose", { topK: 2, encoderChoice: "experts", trainCapacity: slots, evalCapacity: slots }],
] as const)
  test(`metrics count which experts the routes name together: ${what}`, async () => {
    const run = await open(routing, { accumulationSteps: 2 });
    const { routes, metrics } = await stepRoutes(run);
    const evaluated: RouteBatch[] = [];
    run.onRoutes = (batch) => evaluated.push(batch);
    const evaluation = await run.evaluate(data, "train", 0);
    run.close();
    assert.is(metrics.layers.length, 3);
    for (const layer of metrics.layers) assert.equal(layer.coActivation, pairsOf(routes, layer));
    const scored = evaluated.filter((r) => r.source === "evaluation");
    for (const layer of evaluation.layers) assert.equal(layer.coActivation, pairsOf(scored, layer));
    assert.ok(pairsOf(routes, metrics.layers[0])[1] > 0, "some pair is together");
  });

test("with one expert a token there are no pairs", async () => {
  const run = await open({});
  for (const layer of (await run.trainStep()).layers) assert.is(layer.coActivation, undefined);
  run.close();
});

test.run();
