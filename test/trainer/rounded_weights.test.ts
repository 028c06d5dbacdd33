// Weights in mixed precision: products of many rows read an f16 copy, which changes no bit where f16 holds the weights.

import { test } from "uvu";
import * as assert from "uvu/assert";
import { runProgram } from "../../src/kernels/program.ts";
import { declareParameters } from "../../src/trainer/graph/arenas.ts";
import { elements, Graph } from "../../src/trainer/graph/graph.ts";
import { lowerGraph } from "../../src/trainer/graph/lowered.ts";
import { linear } from "../../src/trainer/graph/ops/dense.ts";
import { DeviceMemory } from "../../src/trainer/run/device_memory.ts";
import { testDevice } from "../support/gpu.ts";
import { asHalves } from "../support/halves.ts";
import { noise } from "../support/tiny_model.ts";

const [MANY, K, N] = [256, 16, 24];

/** Two linear maps of `rows` rows by a weight that is the second of its arena. */
function maps(rows: number, mixed: boolean, exact = false) {
  const g = new Graph("software", mixed ? "f16" : "f32", mixed ? "f16" : "f32");
  const specs = [
    { name: "other", shape: [10] },
    { name: "weight", shape: [N, K] },
  ].map((p) => ({ ...p, kind: "ffn", keys: [p.name] }) as const);
  declareParameters(g, specs, new Map(), 4096);
  const weight = g.parameters.get("weight")!;
  const x = g.input("x", [rows, K], "f32");
  const outputs = ["first", "second"].map((name) => linear(g, name, x, weight, { precise: true, exact }));
  g.keep(...outputs);
  return { g, outputs };
}

const copies = (g: Graph): number => g.nodes.filter(({ name }) => name === "rounded_weights").length;

test("one copy for all products of many rows; none for few rows, in f32, or where a product is exact", () => {
  assert.is(copies(maps(MANY, true).g), 1);
  assert.is(copies(maps(MANY - 1, true).g), 0);
  assert.is(copies(maps(MANY, false).g), 0);
  assert.is(copies(maps(MANY, true, true).g), 0);
});

async function run(rows: number, values: Float32Array<ArrayBuffer>, weight: Float32Array<ArrayBuffer>) {
  const device = await testDevice();
  const { g, outputs } = maps(rows, true);
  const memory = new DeviceMemory(device);
  try {
    await memory.createParameters(g.parameters);
    const { buffer, offset } = memory.parameters.get("weight")!;
    assert.ok(offset > 0, "the weight begins behind another");
    device.upload(buffer, weight, offset);
    const lowered = lowerGraph(g, device.capabilities.limits.minUniformBufferOffsetAlignment);
    await memory.prepare([lowered]);
    device.upload(memory.inputs.get("x")!, values.slice(0, rows * K));
    const recorded = await memory.record("maps", lowered);
    runProgram(device, recorded.program);
    const results = await Promise.all(
      outputs.map(async (t) => {
        const { buffer, offset } = recorded.range(t);
        return new Float32Array(await device.read(buffer, 4 * elements(t.shape), offset));
      }),
    );
    recorded.destroy();
    return results;
  } finally {
    memory.destroy();
  }
}

test("a row comes out the same, bit for bit, with and without the copy of weights that f16 holds", async () => {
  const x = Float32Array.from(noise(MANY * K, 1));
  const weight = Float32Array.from(asHalves(Float32Array.from(noise(N * K, 2))));
  const [first, second] = await run(MANY, x, weight);
  const [plain] = await run(MANY - 1, x, weight);
  assert.equal(first.slice(0, plain.length), plain);
  assert.equal(second, first);
  assert.ok(first.some((value) => value !== 0));
});

test.run();
