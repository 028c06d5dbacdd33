import { mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "uvu";
import * as assert from "uvu/assert";
import type { KernelTarget } from "../../src/kernels/capabilities.ts";
import { runProgram } from "../../src/kernels/program.ts";
import { packStepScalars } from "../../src/kernels/step_scalars.ts";
import { type Batch, collateRows, NO_EXAMPLE } from "../../src/trainer/data/batches.ts";
import type { EncodedExample } from "../../src/trainer/data/dataset.ts";
import { shuffledOrder } from "../../src/trainer/data/order.ts";
import { packedBatches, packedLengths, packRows, tokenCounts } from "../../src/trainer/data/packing.ts";
import { openRun } from "../../src/trainer/engine.ts";
import type { Tensor } from "../../src/trainer/graph/graph.ts";
import { elements } from "../../src/trainer/graph/graph.ts";
import { lowerGraph } from "../../src/trainer/graph/lowered.ts";
import type { TrainableSet } from "../../src/trainer/groups.ts";
import { openModelDirectory } from "../../src/trainer/model/open.ts";
import { uploadBatch } from "../../src/trainer/run/batch_upload.ts";
import { DeviceMemory, type RecordedGraph } from "../../src/trainer/run/device_memory.ts";
import { loadParameters } from "../../src/trainer/run/load.ts";
import { DROPLESS } from "../../src/trainer/run/options.ts";
import type { Run } from "../../src/trainer/run/run.ts";
import { InputError, type RouteBatch, type RunConfig } from "../../src/trainer/types.ts";
import { testDevice } from "../support/gpu.ts";
import { tinyData, tinyModel, tinyRun } from "../support/tiny_model.ts";

const device = await testDevice();
const model = await tinyModel();
const data = await tinyData();

/** Examples of 1 … 9 input and 1 … 5 target tokens; a label inside every third target is ignored. */
const examples: EncodedExample[] = Array.from({ length: 40 }, (_, i) => ({
  inputIds: Uint32Array.from({ length: 1 + ((i * 5) % 9) }, (_, j) => 2 + ((i * 7 + j * 5) % 35)),
  labels: Int32Array.from({ length: 1 + ((i * 3) % 5) }, (_, j) =>
    i % 3 === 0 && j === 1 ? -100 : 2 + ((i * 3 + j * 11) % 35),
  ),
}));
const lengths = { inputLength: 16, targetLength: 8 };
const shape = { size: 4, ...lengths, padTokenId: 0, decoderStartTokenId: 36 };

test("packed rows hold every example once, within both lengths, and leave little room", () => {
  const ids = examples.map((_, id) => id);
  const rows = packRows(tokenCounts(examples), ids, lengths);
  assert.equal(
    rows.flat().sort((a, b) => a - b),
    ids,
  );
  const tokens = (row: readonly number[], of: "inputIds" | "labels") =>
    row.reduce((n, id) => n + examples[id][of].length, 0);
  for (const row of rows) assert.ok(tokens(row, "inputIds") <= 16 && tokens(row, "labels") <= 8, String(row));
  assert.equal(
    rows.map((row) => row[0]),
    rows.map((row) => row[0]).sort((a, b) => a - b),
    "rows come in the order in which they were opened",
  );
  // 40 examples of 3 target tokens on average need at least 15 rows of 8.
  assert.ok(rows.length <= 18, `${rows.length} rows`);
});

test("rows are no longer than what fills them first lets them be, and hold the longest example", () => {
  const of = (input: number, target: number): EncodedExample => ({
    inputIds: new Uint32Array(input).fill(2),
    labels: new Int32Array(target).fill(2),
  });
  const longest = { input: 20, target: 4 };
  const lengths = (all: EncodedExample[], limits: { input: number; target: number }) =>
    packedLengths(all, shuffledOrder(all.length, 1), longest, limits);
  // Three inputs of 20 fill a row of 64, and nine target tokens need twelve positions.
  assert.equal(lengths([of(20, 3)], { input: 64, target: 32 }), { input: 64, target: 12 });
  assert.equal(lengths([of(20, 3)], { input: 64, target: 6 }), { input: 40, target: 6 });
  assert.equal(lengths([of(2, 1)], { input: 64, target: 6 }), { input: 20, target: 6 });
  assert.equal(lengths([of(20, 4)], { input: 60, target: 12 }), { input: 60, target: 12 });
  // One long list of targets among many short ones does not make every row long.
  const mixed = [...Array.from({ length: 40 }, () => of(12, 2)), ...Array.from({ length: 10 }, () => of(1, 4))];
  const { input, target } = lengths(mixed, { input: 64, target: 128 });
  assert.ok(input === 64 && target >= 12 && target <= 20, `${target}`);
});

test("a packed batch says which tokens belong together, and every example decodes from its own start", () => {
  const short = examples.slice(0, 3); // inputs of 1, 6, 2 tokens, targets of 1, 4, 2
  const batch = collateRows(short, [[0, 1], [2]], { ...shape, size: 3, inputLength: 8, targetLength: 6 });
  const row = (values: ArrayLike<number>, length: number, at: number) =>
    Array.from(values).slice(at * length, (at + 1) * length);
  assert.equal(row(batch.inputSegments, 8, 0), [1, 2, 2, 2, 2, 2, 2, 0]);
  assert.equal(row(batch.inputSegments, 8, 1), [1, 1, 0, 0, 0, 0, 0, 0]);
  assert.equal(row(batch.inputSegments, 8, 2), new Array(8).fill(0));
  assert.equal(row(batch.decoderSegments, 6, 0), [1, 2, 2, 2, 2, 0]);
  const [a, [b0, b1, b2]] = [short[0].labels[0], Array.from(short[1].labels)];
  assert.equal(row(batch.labels, 6, 0), [a, ...short[1].labels, -100]);
  assert.equal(row(batch.decoderInputIds, 6, 0).slice(0, 5), [36, 36, b0, b1, b2]);
  assert.equal(Array.from(batch.exampleIds), [0, 1, 2, NO_EXAMPLE, NO_EXAMPLE, NO_EXAMPLE]);
  assert.is(batch.targetTokens, 1 + 4 + 2);
});

test("a packed batch follows from seed and index alone, and every epoch's examples come as often", () => {
  const batches = packedBatches(examples, shuffledOrder(examples.length, 3), shape);
  const ids = (batch: Batch) => Array.from(batch.exampleIds).filter((id) => id !== NO_EXAMPLE);
  const first = Array.from({ length: 300 }, (_, index) => ids(batches.batchAt(index)));
  const again = packedBatches(examples, shuffledOrder(examples.length, 3), shape);
  for (const index of [299, 0, 150, 149, 299]) assert.equal(ids(again.batchAt(index)), first[index]);
  const other = packedBatches(examples, shuffledOrder(examples.length, 4), shape);
  assert.not.equal(ids(other.batchAt(0)), first[0]);
  const counts = new Uint32Array(examples.length);
  for (const id of first.flat()) counts[id]++;
  // Sixteen open rows hold fewer than 48 examples: nobody is more than two epochs ahead of another.
  assert.ok(Math.max(...counts) - Math.min(...counts) <= 2, String(counts));
});

interface Outcome {
  loss: number;
  routerLosses: number[];
  gradients: Map<string, Float32Array>;
}

/** Loss, router losses and gradients of everything for one batch: dropless, no dropout. */
async function outcome(batch: Batch, packed: boolean, target: KernelTarget): Promise<Outcome> {
  const source = await openModelDirectory(model);
  const everything: TrainableSet = new Map(source.model.parameters.map((p) => [p.name, true]));
  const built = source.model.trainingGraph(
    target,
    everything,
    {
      batch: batch.size,
      inputLength: batch.inputLength,
      targetLength: batch.targetLength,
      packed,
      train: true,
      dropout: 0,
      expertDropout: 0,
      routing: { ...DROPLESS, topK: 2 },
      losses: { balanceCoefficient: 1e-2, zCoefficient: 1e-3 },
      lossGradient: true,
      sumGradients: false,
      arenaBytes: 2 ** 27,
    },
    { kind: "sgd", momentum: 0, weightDecay: 0 },
  );
  const memory = new DeviceMemory(device);
  const read = async (recorded: RecordedGraph, t: Tensor) => {
    const { buffer, offset } = recorded.range(t);
    return new Float32Array(await device.read(buffer, 4 * elements(t.shape), offset));
  };
  try {
    await loadParameters(source, built.graph.parameters, memory);
    const lowered = lowerGraph(built.graph, device.capabilities.limits.minUniformBufferOffsetAlignment);
    await memory.prepare([lowered]);
    uploadBatch(device, memory.inputs, batch, { routePadding: false, vocabularySize: source.model.vocabularySize });
    const scalars = { step: 0, seed: 0, lossScale: 1, inverseTargetCount: 1 / batch.targetTokens, maxGradientNorm: 0 };
    device.upload(memory.inputs.get("step_scalars")!, packStepScalars(scalars));
    const recorded = await memory.record("training", lowered);
    runProgram(device, recorded.program);
    const gradients = new Map<string, Float32Array>();
    for (const [name, t] of built.gradients) gradients.set(name, await read(recorded, t));
    const rows = await read(recorded, built.loss.rowLoss);
    const layers = await Promise.all(built.sparse.map(({ routing }) => read(recorded, routing.losses)));
    recorded.destroy();
    return {
      loss: rows.reduce((n, x) => n + x, 0) / batch.targetTokens,
      routerLosses: layers.flatMap((l) => [...l]),
      gradients,
    };
  } finally {
    memory.destroy();
    await source.checkpoint.close();
  }
}

for (const target of ["software", "hardware"] as KernelTarget[])
  test(`loss, router losses and gradients of packed rows are those of an example a row (${target})`, async () => {
    const ids = examples.map((_, id) => id).slice(0, 20);
    const rows = packRows(tokenCounts(examples), ids, lengths);
    const packed = collateRows(examples, rows, { ...shape, size: rows.length + 1 });
    const one = { ...shape, size: ids.length, inputLength: 9, targetLength: 5 };
    const padded = collateRows(
      examples,
      ids.map((id) => [id]),
      one,
    );
    assert.ok(packed.examplesPerRow >= 3 && packed.targetTokens === padded.targetTokens);
    const expected = await outcome(padded, false, target);
    const actual = await outcome(packed, true, target);
    // The same tokens pass through the same sums over their width; only sums over tokens (K of about 100) come in another
    // order: 2 · sqrt(K) · 2^-24 of Σ|terms|. Means of positive terms have no cancellation; in a tensor's gradients
    // Σ|terms| is taken to be at most 4 times the largest.
    const rounding = 2 * Math.sqrt(100) * 2 ** -24;
    const near = (a: number, b: number, what: string) =>
      assert.ok(Math.abs(a - b) <= rounding * Math.abs(b), `${what}: ${a} is not ${b}`);
    near(actual.loss, expected.loss, "loss");
    assert.ok(expected.routerLosses.every((x) => x > 0));
    actual.routerLosses.forEach((x, i) => {
      near(x, expected.routerLosses[i], `router loss ${i}`);
    });
    for (const [name, gradient] of expected.gradients) {
      const largest = gradient.reduce((n, x) => Math.max(n, Math.abs(x)), 0);
      assert.ok(largest > 0, `${name} has a gradient`);
      const error = gradient.reduce((n, x, i) => Math.max(n, Math.abs(x - actual.gradients.get(name)![i])), 0);
      assert.ok(error <= 4 * rounding * largest, `${name}: off by ${error} of ${largest}`);
    }
  });

const open = (changes: Partial<RunConfig>, resumeFrom?: string): Promise<Run> =>
  openRun(device, tinyRun(model, data, { batching: "packed", ...changes }), { resumeFrom });

test("a packed run allocates what it planned, evaluates, and goes on with the same bits when interrupted", async () => {
  const before = device.allocatedBytes;
  const unbroken = await open({ accumulationSteps: 2 });
  assert.is(device.allocatedBytes - before, unbroken.cost.peakBytes);
  assert.equal(unbroken.data.shapes, [{ input: 16, target: 8, share: 1 }]);
  const losses: number[] = [];
  for (let step = 0; step < 4; step++) losses.push((await unbroken.trainStep()).loss);
  assert.is((await unbroken.evaluate(data, "train", 0)).examples, 24);
  const first = await open({ accumulationSteps: 2 });
  for (let step = 0; step < 2; step++) await first.trainStep();
  const directory = await mkdtemp(join(tmpdir(), "thaw-checkpoint-"));
  await first.saveCheckpoint(directory);
  first.close();
  const second = await open({ accumulationSteps: 2 }, directory);
  const resumed = [(await second.trainStep()).loss, (await second.trainStep()).loss];
  second.close();
  unbroken.close();
  assert.equal(resumed, losses.slice(2));
  assert.is(device.allocatedBytes, before);
});

test("routes name the example of every token of a packed row, and its place there", async () => {
  const run = await open({});
  const routes: RouteBatch[] = [];
  run.onRoutes = (batch) => routes.push(batch);
  const { tokens } = await run.trainStep();
  const { examples: encoded } = await run.dataset(data);
  run.close();
  for (const { stack, exampleIds, positions, tokenIds } of routes) {
    assert.ok(new Set(exampleIds).size > 4, "more examples than rows");
    tokenIds.forEach((id, t) => {
      const { inputIds, labels } = encoded[exampleIds[t]];
      const decoded = [0, ...labels].slice(0, labels.length);
      assert.is(id, (stack === "encoder" ? [...inputIds] : decoded)[positions[t]], `${stack} token ${t}`);
    });
  }
  const perStack = (stack: string) => routes.find((r) => r.stack === stack)!.tokenIds.length;
  assert.is(perStack("encoder") + perStack("decoder"), tokens);
});

test("routing that needs one example a row is refused beside packing, all of it at once", async () => {
  const routing = { ...tinyRun(model, data).routing, group: "sequence" as const, routePadding: true };
  try {
    await open({ routing });
    assert.unreachable();
  } catch (error) {
    assert.instance(error, InputError);
    assert.equal(
      (error as InputError).problems.map((p) => p.field),
      ["routing.group", "routing.route_padding"],
    );
  }
});

test.run();
