import { test } from "uvu";
import * as assert from "uvu/assert";
import {
  embeddingForward,
  embeddingForwardReference,
  embeddingGradient,
  embeddingGradientReference,
  sortTokens,
} from "../../src/kernels/embedding.ts";
import { compareWithTolerance } from "../support/gpu.ts";
import { randomValues, runTwice, unwritten } from "./run_twice.ts";

// [tokens, width, vocabulary]
const SIZES = [
  [1, 1, 1],
  [70, 5, 9],
  [33, 12, 100],
  [200, 64, 3],
];

const idsOf = (tokens: number, vocabulary: number): Uint32Array =>
  Uint32Array.from(randomValues(tokens, 9), (x) => Math.floor(((x + 1) / 2) * vocabulary));

test("forward copies table rows; an id outside the vocabulary gives zeros", async () => {
  for (const [tokens, width, vocabulary] of SIZES) {
    const ids = idsOf(tokens, vocabulary);
    if (tokens > 2) ids.set([vocabulary, 0xffffffff], 1);
    const table = randomValues(vocabulary * width, 1);
    const got = await runTwice({
      buffers: { table, ids, out: unwritten(tokens * width) },
      commands: ({ table, ids, out }) => embeddingForward({ table, ids, out }, { tokens, width, vocabulary }),
    });
    const expected = embeddingForwardReference(table, ids, { width, vocabulary });
    assert.equal(Array.from(got.out), [...expected, ...unwritten(0)]);
  }
});

for (const accumulate of [false, true])
  test(`gradient ${accumulate ? "adds to what is there" : "writes every row, zeros for unused ids"}`, async () => {
    for (const [tokens, width, vocabulary] of SIZES) {
      const ids = idsOf(tokens, vocabulary);
      const { tokenOrder, rowStart } = sortTokens(ids, vocabulary);
      const dOut = randomValues(tokens * width, 2);
      const out = unwritten(vocabulary * width);
      if (accumulate) out.set(randomValues(vocabulary * width, 3));
      const got = await runTwice({
        buffers: { dOut, tokenOrder, rowStart, out },
        commands: (names) => embeddingGradient(names, { vocabulary, width, accumulate }),
      });
      const before = out.map((x, i) => (accumulate || i >= vocabulary * width ? x : 0));
      const expected = embeddingGradientReference(dOut, ids, before, { width, vocabulary });
      // A sum of n f32 terms in order: at most n roundings of 2^-24 of Σ|terms|.
      const magnitude = embeddingGradientReference(dOut.map(Math.abs), ids, before.map(Math.abs), {
        width,
        vocabulary,
      });
      compareWithTolerance(
        got.out,
        expected,
        (i) => {
          const row = Math.floor(i / width);
          return row < vocabulary ? (rowStart[row + 1] - rowStart[row]) * 2 ** -24 * magnitude[i] : 0;
        },
        `${tokens} tokens, ${vocabulary}×${width}`,
      );
    }
  });

test("sortTokens is stable, and leaves ids outside the vocabulary out", () => {
  const { tokenOrder, rowStart } = sortTokens(Int32Array.of(2, 0, 2, -1, 3, 0, 7), 4);
  assert.equal([...rowStart], [0, 2, 2, 4, 5]);
  assert.equal([...tokenOrder.slice(0, 5)], [1, 5, 0, 2, 4]);
});

test.run();
