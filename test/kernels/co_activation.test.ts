import { test } from "uvu";
import * as assert from "uvu/assert";
import { coActivation, coActivationMatrix, expertPairs } from "../../src/kernels/co_activation.ts";
import { runTwice } from "./run_twice.ts";

const BEHIND = 3;

for (const { tokens, topK, experts } of [
  { tokens: 1, topK: 1, experts: 1 },
  { tokens: 3, topK: 2, experts: 2 },
  { tokens: 200, topK: 2, experts: 7 },
  { tokens: 131, topK: 5, experts: 64 },
  { tokens: 70, topK: 9, experts: 9 }, // as where experts choose: a column for each
])
  test(`pairs are counted once per token: ${tokens} tokens, ${topK} of ${experts} experts`, async () => {
    const expertIds = Uint32Array.from({ length: tokens * topK }, (_, a) => {
      const [t, j] = [Math.floor(a / topK), a % topK];
      const none = t % 5 === 3 || (t % 4 === 1 && j === 1); // padding, or a choice that is none
      return none ? experts : (t * t + (topK === experts ? j : 3 * j)) % experts;
    });
    const pairs = expertPairs(experts);
    const out = await runTwice({
      buffers: { expertIds, counts: new Uint32Array(pairs + BEHIND).fill(77) },
      commands: (b) => coActivation(b, { tokens, topK, experts }),
    });
    const expected = new Array<number>(experts * experts).fill(0);
    for (let t = 0; t < tokens; t++) {
      const own = [...expertIds.subarray(t * topK, (t + 1) * topK)].filter((e) => e < experts);
      for (const a of own) for (const b of own) expected[a * experts + b]++;
    }
    assert.equal(coActivationMatrix(out.counts, experts), expected);
    assert.equal([...out.counts.subarray(pairs)], Array(BEHIND).fill(0), "only cleared");
  });

test.run();
