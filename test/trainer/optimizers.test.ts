// What a run does with each optimizer: training, resuming, freezing and thawing, and a gradient that is not finite.

import { mkdtemp, readFile, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "uvu";
import * as assert from "uvu/assert";
import { openRun } from "../../src/trainer/engine.ts";
import type { Run } from "../../src/trainer/run/run.ts";
import { InputError, type OptimizerAlgorithm, type RunConfig } from "../../src/trainer/types.ts";
import { testDevice } from "../support/gpu.ts";
import { plan, tinyData, tinyModel, tinyRun } from "../support/tiny_model.ts";

const device = await testDevice();
const model = await tinyModel();
const data = await tinyData();

const ADAFACTOR = {
  kind: "adafactor",
  decayRate: 0.8,
  clipThreshold: 1,
  epsilon: 1e-30,
  minParameterScale: 1e-3,
  // Factors the tiny model's matrices (12 by 12 and 12 by 20), not its relative biases.
  minDimensionToFactor: 12,
  weightDecay: 1e-3,
} as const;

interface Case {
  name: string;
  algorithm: OptimizerAlgorithm;
  learningRate: number;
}
const ADAMW: Case = {
  name: "adamw",
  algorithm: { kind: "adamw", beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0.01 },
  learningRate: 1e-2,
};
const SGD: Case = { name: "sgd", algorithm: { kind: "sgd", momentum: 0, weightDecay: 0.01 }, learningRate: 0.1 };
const CASES: Case[] = [
  ADAMW,
  { name: "adafactor", algorithm: ADAFACTOR, learningRate: 0.05 },
  { name: "sgd with momentum", algorithm: { kind: "sgd", momentum: 0.9, weightDecay: 0.01 }, learningRate: 0.05 },
  SGD,
];

function open(c: Case, changes: Partial<RunConfig> = {}, resumeFrom?: string): Promise<Run> {
  const base = tinyRun(model, data, changes);
  const config = { ...base, optimizer: { ...base.optimizer, algorithm: c.algorithm, learningRate: c.learningRate } };
  return openRun(device, config, { resumeFrom });
}

async function losses(run: Run, steps: number): Promise<number[]> {
  const result: number[] = [];
  for (let i = 0; i < steps; i++) result.push((await run.trainStep()).loss);
  return result;
}

async function checkpointOf(run: Run): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), "thaw-checkpoint-"));
  await run.saveCheckpoint(directory);
  return directory;
}

const sameBits = (a: Float32Array, b: Float32Array) => Buffer.from(a.buffer).equals(Buffer.from(b.buffer));

for (const c of CASES) {
  test(`${c.name}: planned peak bytes are what is allocated, and the loss falls`, async () => {
    const before = device.allocatedBytes;
    const run = await open(c, { dropout: 0 });
    assert.is(device.allocatedBytes - before, run.cost.peakBytes);
    const [first, ...rest] = await losses(run, 8);
    assert.ok(Math.min(...rest) < first - 0.05, `${first} → ${rest}`);
    run.close();
    assert.is(device.allocatedBytes, before, "closing frees everything");
  });

  test(`${c.name}: a resumed run has the losses of an unbroken one, to the bit`, async () => {
    const unbroken = await open(c);
    const expected = await losses(unbroken, 5);
    unbroken.close();
    const first = await open(c);
    await losses(first, 2);
    const checkpoint = await checkpointOf(first);
    first.close();
    const second = await open(c, {}, checkpoint);
    assert.equal(await losses(second, 3), expected.slice(2));
    second.close();
  });

  test(`${c.name}: freezing with kept state and thawing at the same step changes nothing`, async () => {
    const reference = await open(c);
    const expected = await losses(reference, 4);
    reference.close();
    const run = await open(c);
    const actual = await losses(run, 2);
    const whole = run.cost.optimizerBytes;
    await run.setTrainable(plan({ add: [{ kinds: ["expert"], stacks: [], experts: [1, 3] }] }));
    if (whole > 0) assert.ok(run.cost.optimizerBytes < whole);
    // A checkpoint keeps the state of what is frozen, too.
    const checkpoint = await checkpointOf(run);
    run.close();
    const resumed = await open(c, {}, checkpoint);
    await resumed.setTrainable(plan({ preset: "all" }));
    actual.push(...(await losses(resumed, 2)));
    resumed.close();
    assert.equal(actual, expected);
  });

  test(`${c.name}: dropped state starts fresh`, async () => {
    const after = async (policy: "keep" | "drop") => {
      const run = await open(c);
      await losses(run, 2);
      await run.setTrainable(plan({ preset: "moe" }, { optimizerState: policy }));
      const { state } = await run.setTrainable(plan({ preset: "all" }));
      await losses(run, 1);
      const values = await run.readParameter("shared.weight");
      run.close();
      return { state, values };
    };
    const [kept, dropped] = [await after("keep"), await after("drop")];
    assert.ok(kept.state.restored.includes("shared.weight"));
    assert.ok(dropped.state.fresh.includes("shared.weight"));
    // Plain SGD remembers nothing that could make a difference.
    assert.is(sameBits(kept.values, dropped.values), c === SGD);
  });

  test(`${c.name}: a step whose gradient is not finite is skipped, bit for bit`, async () => {
    // A learning rate of 3e38 makes the parameters overflow; nothing that comes after may move them.
    const run = await open({ ...c, learningRate: 3e38 }, { dropout: 0 });
    let metrics = await run.trainStep();
    assert.ok(Number.isFinite(metrics.gradientNorm));
    const broken = await run.readParameter("shared.weight");
    metrics = await run.trainStep();
    assert.not.ok(Number.isFinite(metrics.gradientNorm));
    assert.ok(sameBits(await run.readParameter("shared.weight"), broken));
    run.close();
  });
}

test("state of another optimizer is refused, with what it is", async () => {
  const run = await open(ADAMW, { trainable: plan({ preset: "attention" }) });
  await losses(run, 1);
  const checkpoint = await checkpointOf(run);
  run.close();
  const before = device.allocatedBytes;
  for (const other of CASES.slice(1)) {
    try {
      await open(other, {}, checkpoint);
      assert.unreachable(other.name);
    } catch (error) {
      assert.instance(error, InputError);
      assert.match((error as InputError).message, /optimizer\.algorithm: the state of .* is m \[144\], v \[144\]/);
    }
    assert.is(device.allocatedBytes, before, "nothing stays allocated");
  }
});

test("a checkpoint of format 1 is AdamW's", async () => {
  const run = await open(ADAMW);
  await losses(run, 2);
  const checkpoint = await checkpointOf(run);
  const expected = await losses(run, 2);
  run.close();
  const path = join(checkpoint, "training.json");
  const training = JSON.parse(await readFile(path, "utf8"));
  training.format = 1;
  for (const entries of Object.values<{ tensors?: string[] }[]>(training.state))
    for (const e of entries) delete e.tensors;
  await writeFile(path, JSON.stringify(training));
  const old = await open(ADAMW, {}, checkpoint);
  assert.equal(await losses(old, 2), expected);
  old.close();
});

test.run();
