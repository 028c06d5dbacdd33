import { mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "uvu";
import * as assert from "uvu/assert";
import type { Device } from "../../src/kernels/device/device.ts";
import { createEngine, openRun } from "../../src/trainer/engine.ts";
import type { Run } from "../../src/trainer/run/run.ts";
import { InputError, MemoryError, PRESETS, type RouteBatch, type RunConfig } from "../../src/trainer/types.ts";
import { testDevice } from "../support/gpu.ts";
import { plan, tinyData, tinyModel, tinyRun } from "../support/tiny_model.ts";

const device: Device = await testDevice();
const model = await tinyModel();
const data = await tinyData();

const open = (changes: Partial<RunConfig> = {}, resumeFrom?: string, memoryLimitBytes?: () => number): Promise<Run> =>
  openRun(device, tinyRun(model, data, changes), { resumeFrom, memoryLimitBytes });

async function losses(run: Run, steps: number): Promise<number[]> {
  const result: number[] = [];
  for (let i = 0; i < steps; i++) result.push((await run.trainStep()).loss);
  return result;
}

const parameters = async (run: Run) => {
  const all = new Map<string, Float32Array>();
  for (const p of run.source.model.parameters) all.set(p.name, await run.readParameter(p.name));
  return all;
};
const sameBits = (a: Float32Array, b: Float32Array) => Buffer.from(a.buffer).equals(Buffer.from(b.buffer));
const directory = () => mkdtemp(join(tmpdir(), "thaw-checkpoint-"));

for (const preset of PRESETS)
  test(`${preset}: planned peak bytes are what is allocated, and only what trains changes`, async () => {
    const before = device.allocatedBytes;
    const run = await open({ trainable: plan({ preset }) });
    assert.is(device.allocatedBytes - before, run.cost.peakBytes);
    const start = await parameters(run);
    const [first, ...rest] = await losses(run, 6);
    assert.ok(Math.min(...rest) < first, "the loss falls");
    const trained = new Set(run.trainable.map((t) => t.name));
    for (const [name, values] of await parameters(run))
      if (!trained.has(name)) assert.ok(sameBits(values, start.get(name)!), `${name} is frozen`);
      else assert.not.ok(sameBits(values, start.get(name)!), `${name} trains`);
    assert.is(device.allocatedBytes - before, run.cost.peakBytes, "training allocates nothing");
    run.close();
    assert.is(device.allocatedBytes, before, "closing frees everything");
  });

test("the same run twice gives the same bits, with dropout, jitter and capacity", async () => {
  const results = [];
  for (let i = 0; i < 2; i++) {
    const run = await open();
    results.push({ losses: await losses(run, 4), parameters: await parameters(run) });
    run.close();
  }
  assert.equal(results[0].losses, results[1].losses);
  for (const [name, values] of results[0].parameters)
    assert.ok(sameBits(values, results[1].parameters.get(name)!), name);
});

test("two steps may be in flight; the losses are those of one at a time", async () => {
  const one = await open();
  const expected = await losses(one, 4);
  one.close();
  const two = await open();
  const [a, b] = [two.trainStep(), two.trainStep()];
  const actual = [(await a).loss, (await b).loss];
  const [c, d] = [two.trainStep(), two.trainStep()];
  actual.push((await c).loss, (await d).loss);
  two.close();
  assert.equal(actual, expected);
});

test("a resumed run has the losses of an unbroken one, to the bit", async () => {
  const unbroken = await open();
  const expected = await losses(unbroken, 6);
  unbroken.close();
  const first = await open();
  await losses(first, 3);
  const checkpoint = await directory();
  await first.saveCheckpoint(checkpoint);
  first.close();
  const second = await open({}, checkpoint);
  assert.is(second.step, 3);
  assert.equal(await losses(second, 3), expected.slice(3));
  second.close();
});

test("freezing and thawing: kept state comes back, dropped state starts fresh", async () => {
  const all = plan({ preset: "all" });
  const run = await open();
  await losses(run, 2);
  const bytes = () => run.cost.optimizerBytes;
  const whole = bytes();
  const frozen = await run.setTrainable(plan({ preset: "ffn" }));
  assert.is(frozen.effectiveStep, 2);
  assert.is(frozen.before.optimizerBytes, whole);
  assert.ok(frozen.after.optimizerBytes < whole && bytes() === frozen.after.optimizerBytes);
  assert.ok(frozen.state.kept.includes("shared.weight") && frozen.state.dropped.length === 0);
  const before = await run.readParameter("shared.weight");
  await losses(run, 1);
  assert.ok(sameBits(before, await run.readParameter("shared.weight")), "frozen while the run goes on");
  const thawed = await run.setTrainable(all);
  assert.ok(thawed.state.restored.includes("shared.weight") && thawed.state.fresh.length === 0);
  await losses(run, 1);
  assert.not.ok(sameBits(before, await run.readParameter("shared.weight")), "thawed");

  const dropped = await run.setTrainable(plan({ preset: "moe" }, { optimizerState: "drop" }));
  assert.ok(dropped.state.dropped.includes("shared.weight") && dropped.state.kept.length === 0);
  assert.ok((await run.setTrainable(all)).state.fresh.includes("shared.weight"));
  run.close();
});

test("setting the plan in force again changes nothing", async () => {
  const reference = await open();
  const expected = await losses(reference, 4);
  reference.close();
  const run = await open();
  const actual = await losses(run, 2);
  await run.setTrainable(plan({ preset: "all" }));
  actual.push(...(await losses(run, 2)));
  run.close();
  assert.equal(actual, expected);
});

test("freezing with kept state and thawing at the same step changes nothing", async () => {
  const reference = await open();
  const expected = await losses(reference, 4);
  reference.close();
  const run = await open();
  const actual = await losses(run, 2);
  await run.setTrainable(plan({ add: [{ kinds: ["expert"], stacks: [], experts: [1] }] }));
  await run.setTrainable(plan({ preset: "all" }));
  actual.push(...(await losses(run, 2)));
  run.close();
  assert.equal(actual, expected);
});

test("training some experts leaves the bits of the others", async () => {
  const name = "encoder.block.1.layer.1.mlp.experts.wi.weight";
  const run = await open({ trainable: plan({ add: [{ kinds: ["expert"], stacks: ["encoder"], experts: [0, 2] }] }) });
  const start = await run.readParameter(name);
  await losses(run, 3);
  const end = await run.readParameter(name);
  const size = start.length / 4;
  const same = (e: number) => sameBits(start.slice(e * size, (e + 1) * size), end.slice(e * size, (e + 1) * size));
  assert.equal([0, 1, 2, 3].map(same), [false, true, false, true]);
  run.close();
});

test("a dry run says what SetTrainable then does, and changes nothing", async () => {
  const run = await open();
  await losses(run, 1);
  const dry = run.planTrainable(plan({ preset: "attention" }));
  assert.is(run.trainable.length, run.source.model.parameters.length);
  const real = await run.setTrainable(plan({ preset: "attention" }));
  assert.equal(real.matched, dry.matched);
  assert.is(real.after.peakBytes, dry.after.peakBytes);
  assert.ok(dry.after.predictedStepSeconds! < dry.before.predictedStepSeconds!);
  assert.throws(
    () => run.planTrainable(plan({ add: [{ kinds: ["head"], stacks: [], experts: [] }] })),
    (e: Error) => e instanceof InputError,
  );
  run.close();
});

test("routes name every routed token once per sparse layer, and what capacity dropped", async () => {
  const run = await open({
    routing: { ...tinyRun(model, data).routing, trainCapacity: { rule: "fixed", slots: 2 } },
  });
  const routes: RouteBatch[] = [];
  run.onRoutes = (batch) => routes.push(batch);
  const metrics = await run.trainStep();
  assert.is(routes.length, 3);
  for (const [i, r] of routes.entries()) {
    assert.is(r.expertIds.length, r.exampleIds.length * r.topK);
    assert.ok(r.expertIds.every((e) => e < r.experts));
    const dropped = r.kept.filter((k) => k === 0).length;
    assert.is(dropped, metrics.layers[i].dropped);
    assert.is(r.kept.length, metrics.layers[i].assignments);
    const load = metrics.layers[i].load.map((share) => Math.round(share * r.kept.length));
    assert.equal(
      load.map((_, e) => r.expertIds.filter((id) => id === e).length),
      load,
    );
  }
  assert.ok(
    routes.some((r) => r.kept.includes(0)),
    "two slots an expert must drop something",
  );
  run.onRoutes = undefined;
  await run.trainStep();
  assert.is(routes.length, 3, "no listener, no routes");
  run.close();
});

test("evaluation: a model that has learnt its data matches it, and evaluation leaves training alone", async () => {
  const steps = 60;
  const run = await open({ dropout: 0, steps });
  const before = await run.evaluate(data, "train", 0);
  await losses(run, steps);
  const after = await run.evaluate(data, "train", 0);
  assert.is(after.examples, 24);
  assert.ok(after.loss < 0.5 * before.loss, `loss ${before.loss} → ${after.loss}`);
  assert.ok(after.tokenAccuracy > 0.8 && after.tokenAccuracy > before.tokenAccuracy);
  // Dropless and padding not routed: greedy generation matches exactly where teacher forcing is right throughout.
  assert.is(after.exactMatch, after.accuracy);
  const part = await run.evaluate(data, "train", 5);
  assert.is(part.examples, 5);
  const plain = await open({ dropout: 0, steps });
  const expected = await losses(plain, 2);
  plain.close();
  const evaluated = await open({ dropout: 0, steps });
  const actual = await losses(evaluated, 1);
  await evaluated.evaluate(data, "train", 0);
  actual.push(...(await losses(evaluated, 1)));
  evaluated.close();
  run.close();
  assert.equal(actual, expected);
});

test("routes name the expert that was chosen also where the random policy does not use it", async () => {
  const base = tinyRun(model, data).routing;
  const dropless = { ...base, trainCapacity: { rule: "dropless" as const } };
  const run = await open({
    routing: { ...dropless, topK: 2, gateNormalization: "top_k", secondExpertPolicy: "random" },
  });
  const routes: RouteBatch[] = [];
  run.onRoutes = (batch) => routes.push(batch);
  const { layers } = await run.trainStep();
  run.close();
  const unused = routes.flatMap((r) => [...r.kept]).filter((kept) => kept === 0).length;
  assert.ok(unused > 0 && routes.every((r) => r.expertIds.every((e) => e < r.experts)));
  for (const r of routes) assert.ok(r.kept.every((kept, a) => kept === 1 || (a % 2 === 1 && r.gates[a] === 0)));
  assert.ok(
    layers.every((l) => l.dropped === 0),
    "an unused choice is not a dropped one",
  );
});

test("batches are passed over, and a checkpoint remembers how many", async () => {
  /** Examples of each of so many steps. */
  const examples = async (run: Run, steps: number): Promise<string[]> => {
    const seen: string[] = [];
    for (let i = 0; i < steps; i++) {
      const ids = new Set<number>();
      run.onRoutes = (batch) => {
        for (const id of batch.exampleIds) ids.add(id);
      };
      await run.trainStep();
      seen.push([...ids].sort((a, b) => a - b).join());
    }
    return seen;
  };
  const all = await open();
  const expected = await examples(all, 6);
  all.close();
  assert.is(new Set(expected).size, 6);
  const first = await open({ passedOverSteps: 2 });
  assert.equal(await examples(first, 1), [expected[2]]);
  const checkpoint = await directory();
  await first.saveCheckpoint(checkpoint);
  first.close();
  const second = await open({ passedOverSteps: 1 }, checkpoint);
  assert.equal(await examples(second, 2), expected.slice(4, 6));
  second.close();
});

test("an exported model is the run's, bit for bit", async () => {
  const run = await open();
  await losses(run, 2);
  const target = await directory();
  await run.exportModel(target);
  const copy = await openRun(device, tinyRun(target, data));
  for (const [name, values] of await parameters(run)) assert.ok(sameBits(values, await copy.readParameter(name)), name);
  copy.close();
  run.close();
});

test("a plan over the memory limit is refused before anything is allocated, with what would fit", async () => {
  const before = device.allocatedBytes;
  const run = await open();
  const enough = run.cost.peakBytes;
  run.close();
  try {
    await open({ batchSize: 64 }, undefined, () => 2 * enough);
    assert.unreachable();
  } catch (error) {
    assert.instance(error, MemoryError);
    const { neededBytes, availableBytes, fittingBatchSize } = error as MemoryError;
    assert.ok(neededBytes > availableBytes && availableBytes === 2 * enough);
    assert.ok(fittingBatchSize >= 4 && fittingBatchSize < 64);
  }
  assert.is(device.allocatedBytes, before);
});

test("what is open on one engine shares its memory", async () => {
  const alone = await open();
  const enough = alone.cost.peakBytes;
  alone.close();
  const memoryLimitBytes = Math.floor(1.5 * enough);
  const engine = createEngine(device, { memoryLimitBytes });
  const config = tinyRun(model, data);
  const first = await engine.openRun(config);
  try {
    await engine.openRun(config);
    assert.unreachable();
  } catch (error) {
    assert.instance(error, MemoryError);
    assert.is((error as MemoryError).availableBytes, memoryLimitBytes - enough);
  }
  assert.ok(first.planTrainable(plan({ preset: "ffn" })), "a run's own memory is its own to plan anew");
  first.close();
  (await engine.openRun(config)).close();
});

test.run();
