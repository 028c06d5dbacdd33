import { suite } from "uvu";
import * as assert from "uvu/assert";
import {
  type Batch,
  type BatchShape,
  completeBatch,
  IGNORED_LABEL,
  NO_EXAMPLE,
  sequentialBatches,
} from "../../src/trainer/data/batches.ts";
import type { EncodedExample } from "../../src/trainer/data/dataset.ts";
import { paddedBatches, shuffledOrder } from "../../src/trainer/data/order.ts";
import { randomPermutation } from "../../src/trainer/data/random.ts";
import { openSafetensors } from "../../src/trainer/formats/safetensors.ts";

const test = suite("batches");

/** Example i: input of i % 3 + 1 tokens 10 + i, target of i % 2 + 1 tokens 20 + i. */
const examples: EncodedExample[] = Array.from({ length: 10 }, (_, i) => ({
  inputIds: new Uint32Array((i % 3) + 1).fill(10 + i),
  labels: new Int32Array((i % 2) + 1).fill(20 + i),
}));
const shape: BatchShape = { size: 4, inputLength: 3, targetLength: 3, padTokenId: 9, decoderStartTokenId: 8 };

const ignored = IGNORED_LABEL;

test("pads rows, shifts labels right and counts what is learnt", () => {
  const [batch] = sequentialBatches(examples.slice(0, 3), { ...shape, size: 4 });
  assert.equal([...batch.inputIds], [10, 9, 9, 11, 11, 9, 12, 12, 12, 9, 9, 9]);
  assert.equal([...batch.inputSegments], [1, 0, 0, 1, 1, 0, 1, 1, 1, 0, 0, 0]);
  assert.equal(
    [...batch.labels],
    [20, ignored, ignored, 21, 21, ignored, 22, ignored, ignored, ignored, ignored, ignored],
  );
  assert.equal([...batch.decoderInputIds], [8, 20, 9, 8, 21, 21, 8, 22, 9, 8, 9, 9]);
  assert.equal([...batch.decoderMask], [1, 0, 0, 1, 1, 0, 1, 0, 0, 0, 0, 0]);
  assert.equal([...batch.exampleIds], [0, 1, 2, NO_EXAMPLE]);
  assert.is(batch.targetTokens, 4);
});

test("labels ignored inside a row become the pad id in the decoder's input, and are masked", async () => {
  const file = await openSafetensors(
    new URL("../../../shared/fixtures/switch-tiny/batch.safetensors", import.meta.url).pathname,
  );
  const labels = (await file.read("labels")) as Int32Array<ArrayBuffer>;
  const [size, targetLength] = file.tensors.get("labels")!.shape;
  const [, inputLength] = file.tensors.get("input_ids")!.shape;
  const inputIds = Uint32Array.from((await file.read("input_ids")) as Int32Array);
  const inputSegments = Uint32Array.from((await file.read("attention_mask")) as Int32Array);
  await file.close();
  const exampleIds = Uint32Array.from({ length: size }, (_, i) => i);
  const batch = completeBatch(
    { inputIds, inputSegments, labels, exampleIds },
    { size, inputLength, targetLength, padTokenId: 0, decoderStartTokenId: 0 },
  );
  const ignoredLabels = labels.filter((label) => label === IGNORED_LABEL).length;
  assert.ok(ignoredLabels > 0, "the fixture has ignored labels");
  assert.is(batch.targetTokens, labels.length - ignoredLabels);
  for (let row = 0; row < size; row++) {
    assert.is(batch.decoderInputIds[row * targetLength], 0);
    for (let t = 1; t < targetLength; t++) {
      const i = row * targetLength + t;
      assert.is(batch.decoderInputIds[i], Math.max(labels[i - 1], 0));
      assert.is(batch.decoderMask[i], labels[i] === IGNORED_LABEL ? 0 : 1);
    }
  }
});

const idsOf = (batches: Iterable<Batch>): number[] => [...batches].flatMap((batch) => [...batch.exampleIds]);
const firstSteps = (seed: number, steps: number, from = examples): Batch[] => {
  const { batchAt } = paddedBatches(from, shuffledOrder(from.length, seed), shape);
  return Array.from({ length: steps }, (_, step) => batchAt(step));
};

test("every epoch holds every example once, in another order; batches reach across epochs", () => {
  const ids = idsOf(firstSteps(1, 10)); // 40 rows = 4 epochs of 10
  const epochs = [0, 10, 20, 30].map((start) => ids.slice(start, start + 10));
  for (const epoch of epochs) assert.equal([...epoch].sort(), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
  assert.is(new Set(epochs.map(String)).size, 4);
});

test("a batch follows from seed and step alone", () => {
  const steps = firstSteps(5, 8);
  const { batchAt } = paddedBatches(examples, shuffledOrder(examples.length, 5), shape);
  for (const step of [7, 0, 3, 2, 7]) assert.equal(batchAt(step), steps[step]);
  assert.not.equal(idsOf(firstSteps(6, 8)), idsOf(steps));
  // Seeds that differ only above 32 bits are different seeds.
  assert.not.equal(idsOf(firstSteps(5 + 2 ** 32, 8)), idsOf(steps));
});

test("a batch may be larger than the data", () => {
  const ids = idsOf(firstSteps(1, 3, examples.slice(0, 3))); // 12 rows = 4 epochs of 3
  for (let start = 0; start < 12; start += 3) assert.equal(ids.slice(start, start + 3).sort(), [0, 1, 2]);
});

test("the order is pinned: a change would break the resumption of stored runs", () => {
  assert.equal([...randomPermutation(10, 42, 0)], [4, 8, 7, 9, 0, 6, 2, 3, 1, 5]);
});

test("permutations are uniform: each example is as often in each place", () => {
  const [length, draws] = [8, 4000];
  const counts = new Uint32Array(length * length);
  for (let epoch = 0; epoch < draws; epoch++) {
    randomPermutation(length, 3, epoch).forEach((id, place) => {
      counts[id * length + place]++;
    });
  }
  const expected = draws / length;
  const chiSquare = counts.reduce((sum, count) => sum + (count - expected) ** 2 / expected, 0);
  // (length − 1)² = 49 degrees of freedom: mean 49, standard deviation √98 ≈ 9.9; five of them above the mean.
  assert.ok(chiSquare < 99, `chi-square ${chiSquare}`);
});

test("evaluation sees every example once, in order, and empty rows have no loss", () => {
  const batches = [...sequentialBatches(examples, shape)];
  assert.is(batches.length, 3);
  assert.equal(idsOf(batches), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, NO_EXAMPLE, NO_EXAMPLE]);
  const { labels, inputSegments, decoderMask, size, targetLength, inputLength } = batches[2];
  assert.ok(labels.subarray(2 * targetLength).every((label) => label === IGNORED_LABEL));
  assert.ok(inputSegments.subarray(2 * inputLength).every((bit) => bit === 0));
  assert.ok(decoderMask.subarray(2 * targetLength).every((bit) => bit === 0));
  assert.is(labels.length, size * targetLength);
});

test("an example longer than the batch is refused, never cut", () => {
  assert.throws(() => [...sequentialBatches(examples, { ...shape, inputLength: 2 })], /example 2 is longer/);
});

test.run();
