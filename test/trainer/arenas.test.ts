// What arenas must not change: odd sizes, several arenas and stacks of which some experts train give the bits of one arena.

import { mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "uvu";
import * as assert from "uvu/assert";
import type { Device } from "../../src/kernels/device/device.ts";
import { openRun } from "../../src/trainer/engine.ts";
import { openSafetensors } from "../../src/trainer/formats/safetensors.ts";
import { arenaOf, declareParameters, gapsOf } from "../../src/trainer/graph/arenas.ts";
import { Graph } from "../../src/trainer/graph/graph.ts";
import { planMemory } from "../../src/trainer/graph/memory_plan.ts";
import type { OptimizerAlgorithm } from "../../src/trainer/types.ts";
import { testDevice } from "../support/gpu.ts";
import { plan, tinyData, tinyModel, tinyRun } from "../support/tiny_model.ts";

const device = await testDevice();
const model = await tinyModel({ d_model: 11, d_ff: 21 });
const data = await tinyData();

/** The device, as if it had smaller buffers: enough for the largest tensor of these runs, not for all parameters. */
const { capabilities } = device;
const limits = { ...capabilities.limits, maxBufferSize: 20_000 };
const small: Device = Object.create(device, { capabilities: { value: { ...capabilities, limits } } });

const ALGORITHMS: OptimizerAlgorithm[] = [
  { kind: "adamw", beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0.01 },
  {
    kind: "adafactor",
    decayRate: 0.8,
    clipThreshold: 1,
    epsilon: 1e-30,
    minParameterScale: 1e-3,
    minDimensionToFactor: 11,
    weightDecay: 1e-3,
  },
  { kind: "sgd", momentum: 0.9, weightDecay: 0.01 },
];

/** Trains, freezes some experts, trains on, thaws them, trains on; returns the checkpoint, tensor by tensor. */
async function trained(on: Device, algorithm: OptimizerAlgorithm) {
  const base = tinyRun(model, data);
  // No clipping: the clip factor depends on the order in which the norm is summed.
  const config = { ...base, optimizer: { ...base.optimizer, algorithm, learningRate: 0.02, maxGradientNorm: 0 } };
  const before = device.allocatedBytes;
  const run = await openRun(on, config);
  const allocatedAsPlanned = () => assert.is(device.allocatedBytes - before, run.cost.peakBytes);
  const arenas = [run.kernels.get("sum_of_squares")!];
  const norms: number[] = [];
  const some = { preset: "all", remove: [{ kinds: ["expert"], stacks: [], experts: [0, 2] }] } as const;
  for (const selection of [some, { preset: "all" }] as const) {
    for (let i = 0; i < 2; i++) norms.push((await run.trainStep()).gradientNorm);
    allocatedAsPlanned();
    await run.setTrainable(plan({ ...selection, remove: "remove" in selection ? [...selection.remove] : [] }));
    arenas.push(run.kernels.get("sum_of_squares")!);
  }
  for (let i = 0; i < 2; i++) await run.trainStep();
  allocatedAsPlanned();
  const directory = await mkdtemp(join(tmpdir(), "thaw-checkpoint-"));
  await run.saveCheckpoint(directory);
  run.close();
  assert.is(device.allocatedBytes, before, "closing frees everything");
  const tensors = new Map<string, Float32Array>();
  for (const file of ["model.safetensors", "optimizer.safetensors"]) {
    const opened = await openSafetensors(join(directory, file));
    for (const name of opened.tensors.keys()) tensors.set(name, (await opened.read(name)) as Float32Array);
    await opened.close();
  }
  return { tensors, arenas, norms };
}

for (const algorithm of ALGORITHMS)
  test(`${algorithm.kind}: several arenas give the bits of one`, async () => {
    const one = await trained(device, algorithm);
    const several = await trained(small, algorithm);
    assert.equal(one.arenas, [1, 1, 1]);
    assert.ok(Math.min(...several.arenas) >= 3, `${several.arenas} arenas`);
    // The same gradients, summed in another order; what lies between them in an arena must not count.
    for (const [i, norm] of one.norms.entries())
      assert.ok(Math.abs(several.norms[i] / norm - 1) < 1e-5, `${several.norms[i]} and ${norm}`);
    assert.equal([...several.tensors.keys()], [...one.tensors.keys()]);
    for (const [name, values] of one.tensors) {
      assert.equal(several.tensors.get(name), values, name);
      assert.ok(values.every(Number.isFinite), name);
    }
  });

test("parameters fill arenas in order, each at a multiple of 512 bytes; what fits in none has its own", () => {
  const g = new Graph("software");
  const sizes = [65, 1, 300, 64, 2];
  const specs = sizes.map((size, i) => ({ name: `p${i}`, kind: "norm", shape: [size], keys: [`p${i}`] }) as const);
  declareParameters(g, specs, new Map(), 1024);
  assert.equal(
    [...g.parameters.values()].map(({ part }) => [part?.of.name, part?.offset, part?.of.shape]),
    [
      ["parameters 0", 0, [132]],
      ["parameters 0", 512, [132]],
      ["parameters 1", 0, [300]],
      ["parameters 2", 0, [132]],
      ["parameters 2", 512, [132]],
    ],
  );
});

test("gradients take the place of activations that are done with, and of nothing after them", () => {
  const g = new Graph("software");
  const [before, after] = ["before", "after"].map((name) => g.activation(name, [64]));
  const member = (name: string) => g.tensor({ name, shape: [3], role: "gradient" });
  const [first, second] = [member("first"), member("second")];
  const arena = arenaOf(g, "gradients", "gradient", [first, second]);
  for (const t of [before, first, after, second]) g.add({ name: t.name, reads: [], writes: [t], lower: () => [] });
  const { slotOf, slotBytes, bytes } = planMemory(g);
  assert.is(slotOf.get(arena), slotOf.get(before));
  assert.is.not(slotOf.get(arena), slotOf.get(after));
  assert.equal(slotBytes, [272, 256]);
  assert.is(bytes.gradient, 272);
  const gaps = gapsOf(g, arena, [first, second]).map(({ shape, part }) => [part!.offset, shape[0]]);
  assert.equal(gaps, [
    [12, 61],
    [268, 1],
  ]);
});

test.run();
