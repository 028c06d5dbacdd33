import { suite } from "uvu";
import * as assert from "uvu/assert";
import { corruptSpans, type SpanCorruption, sentinelIdsOf } from "../../src/trainer/data/span_corruption.ts";
import { loadTokenizer } from "../../src/trainer/data/tokenizer.ts";

const test = suite("span corruption");
const SENTINEL = 1000;
const options: SpanCorruption = {
  noiseDensity: 0.15,
  meanSpanLength: 3,
  sentinelIds: Array.from({ length: 16 }, (_, i) => SENTINEL + i),
};
const tokens = (length: number): number[] => Array.from({ length }, (_, i) => i + 3);

/** Puts the target's spans back in place of the input's sentinels. */
function restore(inputIds: readonly number[], targetIds: readonly number[]): number[] {
  const spans = new Map<number, number[]>();
  let span: number[] = [];
  for (const id of targetIds) {
    if (id >= SENTINEL) {
      span = [];
      spans.set(id, span);
    } else span.push(id);
  }
  return inputIds.flatMap((id) => (id >= SENTINEL ? spans.get(id)! : [id]));
}

for (const length of [2, 3, 7, 20, 40, 200]) {
  test(`a text of ${length} tokens: nothing is lost, the share and number of spans are right`, () => {
    const noise = Math.min(Math.max(Math.round(length * 0.15), 1), length - 1);
    const spans = Math.min(Math.max(Math.round(noise / 3), 1), 14);
    for (let stream = 0; stream < 50; stream++) {
      const { inputIds, targetIds } = corruptSpans(tokens(length), options, 1, stream);
      assert.equal(restore(inputIds, targetIds), tokens(length));
      const used = inputIds.filter((id) => id >= SENTINEL);
      assert.equal(used, options.sentinelIds.slice(0, used.length), "sentinels in order");
      // Rolling the mask may cut a span in two.
      assert.ok(used.length === spans || used.length === spans + 1, `${used.length} spans of ${spans}`);
      assert.equal(
        targetIds.filter((id) => id >= SENTINEL),
        options.sentinelIds.slice(0, used.length + 1),
        "a last sentinel ends the target",
      );
      assert.is(targetIds.length - used.length - 1, noise);
    }
  });
}

test("every position is cut out about equally often", () => {
  const [length, draws] = [20, 4000];
  const counts = new Uint32Array(length);
  for (let stream = 0; stream < draws; stream++) {
    for (const id of corruptSpans(tokens(length), options, 7, stream).targetIds) if (id < SENTINEL) counts[id - 3]++;
  }
  // 3 of 20 tokens each time: 600 of 4000, standard deviation √(4000 · 0.15 · 0.85) ≈ 22.6; five of them.
  for (const count of counts) assert.ok(Math.abs(count - 600) < 113, `${counts}`);
});

test("seed and stream decide", () => {
  const text = tokens(40);
  assert.equal(corruptSpans(text, options, 1, 2), corruptSpans(text, options, 1, 2));
  assert.not.equal(corruptSpans(text, options, 1, 2), corruptSpans(text, options, 1, 3));
  assert.not.equal(corruptSpans(text, options, 1, 2), corruptSpans(text, options, 2, 2));
});

test("too little text or too few sentinels are refused", () => {
  assert.throws(() => corruptSpans([5], options, 1, 0), /1 tokens/);
  assert.throws(() => corruptSpans(tokens(9), { ...options, sentinelIds: [1, 2] }, 1, 0), /three sentinels/);
});

test("sentinels are found by name, in order", async () => {
  const directory = new URL("../../../shared/fixtures/tokenizers/unigram", import.meta.url).pathname;
  const tokenizer = await loadTokenizer(directory);
  assert.ok(tokenizer);
  const ids = sentinelIdsOf(tokenizer);
  assert.ok(ids.length > 0);
  assert.equal(
    ids,
    ids.map((_, i) => tokenizer.specials.get(`<extra_id_${i}>`)),
  );
});

test.run();
