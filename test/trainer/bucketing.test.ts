import { mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "uvu";
import * as assert from "uvu/assert";
import type { Batch } from "../../src/trainer/data/batches.ts";
import { bucketedBatches, chooseBuckets } from "../../src/trainer/data/bucketing.ts";
import type { EncodedExample } from "../../src/trainer/data/dataset.ts";
import { shuffledOrder } from "../../src/trainer/data/order.ts";
import { openRun } from "../../src/trainer/engine.ts";
import { DROPLESS } from "../../src/trainer/run/options.ts";
import type { Run } from "../../src/trainer/run/run.ts";
import type { RunConfig } from "../../src/trainer/types.ts";
import { testDevice } from "../support/gpu.ts";
import { plan, tinyData, tinyModel, tinyRun } from "../support/tiny_model.ts";

const device = await testDevice();
const model = await tinyModel();
const data = await tinyData();

const example = (input: number, target: number): EncodedExample => ({
  inputIds: new Uint32Array(input).fill(2),
  labels: new Int32Array(target).fill(2),
});

for (const { what, lengths, longest, buckets } of [
  { what: "one length", lengths: [[9, 3]], longest: [12, 4], buckets: [[12, 4]] },
  {
    what: "two lengths",
    lengths: [
      [5, 3],
      [60, 14],
    ],
    longest: [60, 16],
    buckets: [
      [6, 4],
      [60, 16],
    ],
  },
  {
    what: "a long target beside a short input goes where both fit",
    lengths: [
      [5, 3],
      [5, 3],
      [5, 30],
      [60, 3],
    ],
    longest: [60, 32],
    buckets: [
      [6, 4],
      [6, 32],
      [60, 32],
    ],
  },
])
  test(`buckets hold the examples in the fewest positions: ${what}`, () => {
    const examples = lengths.map(([input, target]) => example(input, target));
    const chosen = chooseBuckets(examples, { input: longest[0], target: longest[1] });
    assert.equal(
      chosen.map(({ input, target }) => [input, target]),
      buckets,
    );
  });

test("of many lengths there are four buckets, each longer than the one before", () => {
  const examples = Array.from({ length: 200 }, (_, i) => example(1 + ((i * 37) % 100), 1 + ((i * 11) % 30)));
  const longest = { input: 100, target: 32 };
  const buckets = chooseBuckets(examples, longest);
  assert.is(buckets.length, 4);
  assert.equal(buckets[3], longest);
  for (let i = 1; i < 4; i++) {
    assert.ok(buckets[i].input >= buckets[i - 1].input && buckets[i].target >= buckets[i - 1].target);
    assert.not.equal(buckets[i], buckets[i - 1]);
  }
});

const SIZE = 5;
const many = Array.from({ length: 100 }, (_, i) => example(1 + ((i * 37) % 50), 1 + ((i * 7) % 9)));
const buckets = chooseBuckets(many, { input: 52, target: 12 });
const batchesOf = (seed: number) =>
  bucketedBatches(
    many,
    shuffledOrder(many.length, seed),
    buckets,
    { size: SIZE, padTokenId: 0, decoderStartTokenId: 0 },
    seed,
  );
const lengthOf = (batch: Batch) => `${batch.inputLength} ${batch.targetLength}`;

test("every epoch holds every example once, in batches of one bucket but for a few, short and long by turns", () => {
  const { batchAt } = batchesOf(1);
  const batches = Array.from({ length: 40 }, (_, index) => batchAt(index)); // two epochs
  for (const epoch of [batches.slice(0, 20), batches.slice(20)])
    assert.equal(
      epoch.flatMap((batch) => [...batch.exampleIds]).sort((a, b) => a - b),
      many.map((_, id) => id),
    );
  const bucketOf = (id: number) =>
    buckets.findIndex((b) => many[id].inputIds.length <= b.input && many[id].labels.length <= b.target);
  let mixed = 0;
  for (const batch of batches) {
    const members = [...batch.exampleIds].map(bucketOf);
    const { input, target } = buckets[Math.max(...members)];
    assert.is(lengthOf(batch), `${input} ${target}`);
    if (new Set(members).size > 1) mixed++;
  }
  assert.ok(mixed <= 2 * (buckets.length - 1), "a block has at most one batch across each pair of neighbours");
  const turns = batches.slice(1).filter((batch, i) => lengthOf(batch) !== lengthOf(batches[i])).length;
  assert.ok(turns > 10, `${turns} changes of shape in 40 batches`);
});

test("a bucketed batch follows from seed and index alone", () => {
  const batches = Array.from({ length: 45 }, (_, index) => batchesOf(2).batchAt(index));
  const { batchAt } = batchesOf(2);
  for (const index of [44, 0, 19, 20, 44]) assert.equal(batchAt(index), batches[index]);
  assert.not.equal(batchesOf(3).batchAt(0).exampleIds, batches[0].exampleIds);
});

const open = (changes: Partial<RunConfig>, resumeFrom?: string): Promise<Run> =>
  openRun(device, tinyRun(model, data, { batching: "bucketed", ...changes }), { resumeFrom });

test("programs of several shapes share gradients and optimizer state; planned bytes are what is allocated", async () => {
  const padded = await open({ batching: "padded" });
  const { cost } = padded;
  padded.close();
  const before = device.allocatedBytes;
  const run = await open({});
  assert.ok(run.data.shapes.length > 1);
  assert.ok(Math.abs(run.data.shapes.reduce((n, { share }) => n + share, 0) - 1) < 1e-12);
  assert.is(device.allocatedBytes - before, run.cost.peakBytes);
  for (const key of ["parameterBytes", "gradientBytes", "optimizerBytes"] as const) assert.is(run.cost[key], cost[key]);
  assert.ok(run.cost.forwardFlops < cost.forwardFlops, "short batches cost less");
  for (let step = 0; step < 6; step++) await run.trainStep();
  await run.setTrainable(plan({ preset: "ffn" }));
  assert.is(device.allocatedBytes - before, run.cost.peakBytes);
  for (let step = 0; step < 6; step++) await run.trainStep();
  assert.is(device.allocatedBytes - before, run.cost.peakBytes);
  run.close();
  assert.is(device.allocatedBytes, before);
});

test("batches of several shapes make the step of one padded batch of the same examples", async () => {
  const quiet: Partial<RunConfig> = {
    dropout: 0,
    losses: { balanceCoefficient: 0, zCoefficient: 0 },
    routing: DROPLESS,
  };
  const whole = await open({ ...quiet, batching: "padded", batchSize: 24 });
  const parts = await open({ ...quiet, batchSize: 4, accumulationSteps: 6 }); // an epoch, like the other
  for (let step = 0; step < 3; step++) {
    const expected = await whole.trainStep();
    const actual = await parts.trainStep();
    assert.is(actual.tokens, expected.tokens);
    // Equal but for the order of the sums, which the first steps' Adam, dividing by |gradient|, magnifies.
    for (const key of ["loss", "gradientNorm"] as const) {
      const error = Math.abs(actual[key] - expected[key]) / expected[key];
      assert.ok(error < 1e-4, `${key} of step ${step}: ${actual[key]} is not ${expected[key]}`);
    }
  }
  whole.close();
  parts.close();
});

test("an interrupted bucketed run goes on with the same bits, evaluated in between or not", async () => {
  const unbroken = await open({ accumulationSteps: 2 });
  const losses: number[] = [];
  for (let step = 0; step < 6; step++) losses.push((await unbroken.trainStep()).loss);
  unbroken.close();
  const first = await open({ accumulationSteps: 2 });
  for (let step = 0; step < 3; step++) await first.trainStep();
  assert.is((await first.evaluate(data, "train", 0)).examples, 24);
  const directory = await mkdtemp(join(tmpdir(), "thaw-checkpoint-"));
  await first.saveCheckpoint(directory);
  first.close();
  const second = await open({ accumulationSteps: 2 }, directory);
  const resumed: number[] = [];
  for (let step = 0; step < 3; step++) resumed.push((await second.trainStep()).loss);
  second.close();
  assert.equal(resumed, losses.slice(3));
});

test.run();
