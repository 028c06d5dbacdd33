import { suite } from "uvu";
import * as assert from "uvu/assert";
import { type BatchShape, trainingBatches } from "../../src/trainer/data/batches.ts";
import type { EncodedExample } from "../../src/trainer/data/dataset.ts";
import { mixtureBatches } from "../../src/trainer/data/mixture.ts";

const test = suite("mixture");
const shape: BatchShape = { size: 4, inputLength: 1, targetLength: 1, padTokenId: 0, decoderStartTokenId: 0 };
const source = (size: number): EncodedExample[] =>
  Array.from({ length: size }, () => ({ inputIds: new Uint32Array(1), labels: new Int32Array(1) }));
const sources = [source(30), source(7), source(200)]; // ids 0 … 29, 30 … 36, 37 … 236
const CAP = 50;
const ROUND = 30 + 7 + CAP;
const sourceOf = (id: number): number => (id < 30 ? 0 : id < 37 ? 1 : 2);
const idsOf = (seed: number, steps: number): number[] => {
  const { batchAt } = mixtureBatches(sources, shape, seed, { cap: CAP });
  return Array.from({ length: steps }, (_, step) => [...batchAt(step).exampleIds]).flat();
};

test("every round holds min(size, cap) of each source, mixed", () => {
  const ids = idsOf(1, ROUND * 2); // 8 rounds
  for (let start = 0; start < ids.length; start += ROUND) {
    const drawn = ids.slice(start, start + ROUND).map(sourceOf);
    assert.equal(
      [0, 1, 2].map((s) => drawn.filter((other) => other === s).length),
      [30, 7, CAP],
    );
    assert.ok(new Set(drawn.slice(0, ROUND / 2)).size === 3, "no source waits for another to end");
  }
});

test("no example comes again before its source has been gone through", () => {
  const ids = idsOf(2, ROUND * 2);
  for (const [s, { length }] of sources.entries()) {
    const drawn = ids.filter((id) => sourceOf(id) === s);
    for (let start = 0; start + length <= drawn.length; start += length) {
      assert.is(new Set(drawn.slice(start, start + length)).size, length, `source ${s}, from draw ${start}`);
    }
  }
});

test("a batch follows from seed and step alone, in any order of asking", () => {
  const ids = idsOf(3, 100);
  const { batchAt } = mixtureBatches(sources, shape, 3, { cap: CAP });
  for (const step of [99, 0, 43, 21, 22, 99]) {
    assert.equal([...batchAt(step).exampleIds], ids.slice(step * 4, step * 4 + 4));
  }
  assert.is.not(String(idsOf(4, 10)), String(idsOf(3, 10)));
});

test("one source without a cap comes as it would alone", () => {
  const alone = trainingBatches(sources[0], shape, 5);
  const mixed = mixtureBatches([sources[0]], shape, 5);
  for (let step = 0; step < 20; step++) assert.equal(mixed.batchAt(step), alone.batchAt(step));
});

test("nothing to draw from is refused", () => {
  assert.throws(() => mixtureBatches([], shape, 1), RangeError);
  assert.throws(() => mixtureBatches([source(1), []], shape, 1), RangeError);
  assert.throws(() => mixtureBatches([source(1)], shape, 1, { cap: 0 }), RangeError);
});

test.run();
