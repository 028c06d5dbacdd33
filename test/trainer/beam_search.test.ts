import { test } from "uvu";
import * as assert from "uvu/assert";
import { advanceBeams, type BeamSearch, beginBeamSearch } from "../../src/trainer/run/beam_search.ts";
import { sampleToken, softmax } from "../../src/trainer/run/sampling.ts";

const EOS = 1;
const VOCABULARY = 4;

/** Log-probabilities after a prefix: any fixed function of it. */
function logProbabilities(prefix: readonly number[], seed: number): Float64Array {
  const logits = Array.from({ length: VOCABULARY }, (_, token) => {
    const key = [...prefix, token].reduce((h, t) => (Math.imul(h, 31) + t + 7) >>> 0, seed);
    return (Math.imul(key ^ (key >>> 15), 2654435761) >>> 0) / 2 ** 31;
  });
  return softmax(logits).map(Math.log);
}

function search(seed: number, options: { beams: number; lengthPenalty: number; length: number }): BeamSearch {
  const s = beginBeamSearch({ ...options, eosTokenId: EOS });
  for (let position = 0; position < options.length && !s.done; position++) {
    const rows = s.running.map((_, beam) => beam);
    advanceBeams(
      s,
      s.running.map((h) => logProbabilities(h.tokenIds, seed)),
      rows,
      position + 1 === options.length,
    );
  }
  return s;
}

/** The best of all sequences, by trying them all. */
function exhaustive(seed: number, length: number, lengthPenalty: number): { tokenIds: number[]; score: number } {
  let best = { tokenIds: [] as number[], score: Number.NEGATIVE_INFINITY };
  const visit = (prefix: number[], sum: number) => {
    if (prefix.at(-1) === EOS || prefix.length === length) {
      const score = sum / prefix.length ** lengthPenalty;
      if (score > best.score) best = { tokenIds: prefix, score };
      return;
    }
    logProbabilities(prefix, seed).forEach((logP, token) => {
      visit([...prefix, token], sum + logP);
    });
  };
  visit([], 0);
  return best;
}

for (const lengthPenalty of [0, 1, 2])
  test(`with beams for every prefix the best of all sequences is found (length penalty ${lengthPenalty})`, () => {
    for (let seed = 1; seed <= 20; seed++) {
      const length = 4;
      const found = search(seed, { beams: VOCABULARY ** length, lengthPenalty, length }).finished[0];
      const best = exhaustive(seed, length, lengthPenalty);
      assert.equal(found.tokenIds, best.tokenIds, `seed ${seed}`);
      assert.ok(Math.abs(found.score - best.score) < 1e-12);
    }
  });

test("one beam takes the most probable token each time", () => {
  const { finished } = search(3, { beams: 1, lengthPenalty: 1, length: 5 });
  const greedy: number[] = [];
  while (greedy.length < 5 && greedy.at(-1) !== EOS) {
    const p = logProbabilities(greedy, 3);
    greedy.push(p.indexOf(Math.max(...p)));
  }
  assert.equal(finished[0].tokenIds, greedy);
});

test("a search ends when no running beam can beat what is finished", () => {
  const s = beginBeamSearch({ beams: 1, lengthPenalty: 1, eosTokenId: EOS });
  advanceBeams(s, [Float64Array.of(-3, -0.1, -4, -5)], [0], false);
  assert.ok(s.done, "the end mark was by far the best");
  assert.equal(s.finished[0].tokenIds, [EOS]);
});

test("each hypothesis remembers the rows that decoded its tokens", () => {
  const s = beginBeamSearch({ beams: 2, lengthPenalty: 1, eosTokenId: EOS });
  assert.equal(advanceBeams(s, [Float64Array.of(-1, -9, -1.1, -9)], [0], false), [0, 0]);
  assert.equal(
    advanceBeams(s, [Float64Array.of(-5, -9, -6, -9), Float64Array.of(-1, -9, -2, -9)], [0, 1], false),
    [1, 1],
  );
  assert.equal(
    s.running.map((h) => [h.tokenIds, h.rows]),
    [
      [
        [2, 0],
        [0, 1],
      ],
      [
        [2, 2],
        [0, 1],
      ],
    ],
  );
});

test("sampling draws each token as often as its probability says, and none outside the nucleus", () => {
  const logits = [2, 1, 0, -1].map((x) => x);
  const p = softmax(logits, 0.8);
  const draws = 20000;
  for (const topP of [1, 0.9]) {
    const counts = new Array(4).fill(0);
    for (let i = 0; i < draws; i++) counts[sampleToken(logits, { temperature: 0.8, topP }, (i + 0.5) / draws)]++;
    const kept = topP === 1 ? 4 : 2; // 0.73 + 0.21 ≥ 0.9
    const mass = p.slice(0, kept).reduce((a, b) => a + b, 0);
    counts.forEach((count, token) => {
      const expected = token < kept ? p[token] / mass : 0;
      // Evenly spaced draws: a token's share is off by at most one draw at each end.
      assert.ok(Math.abs(count / draws - expected) <= 2 / draws, `token ${token}: ${count / draws} not ${expected}`);
    });
  }
});

test("a nucleus of nothing still holds the most probable token, the lower id among equals", () => {
  for (const draw of [0, 0.5, 0.999999]) assert.is(sampleToken([1, 5, 5, 0], { temperature: 1, topP: 1e-9 }, draw), 1);
});

test.run();
