import { test } from "uvu";
import * as assert from "uvu/assert";
import { moeDispatchReference } from "../../src/kernels/moe_dispatch.reference.ts";
import { moeDispatch, moeDispatchScratch, moeMaxRows } from "../../src/kernels/moe_dispatch.ts";
import { RANDOM_POLICY_THRESHOLD, routerForward } from "../../src/kernels/router.ts";
import {
  expertChoice,
  expertChoiceReference,
  priorityOrder,
  priorityOrderReference,
} from "../../src/kernels/routing_priority.ts";
import { packStepScalars } from "../../src/kernels/step_scalars.ts";
import { randomValues, runTwice, unwritten } from "./run_twice.ts";

const integers = (count: number) => new Uint32Array(count).fill(0xabcdef);

const SIZES = [
  { tokens: 1, tokensPerGroup: 1, experts: 1, topK: 1 },
  { tokens: 21, tokensPerGroup: 7, experts: 5, topK: 2 },
  { tokens: 300, tokensPerGroup: 150, experts: 4, topK: 2 },
  { tokens: 40, tokensPerGroup: 18, experts: 3, topK: 2 }, // the last group has 4 tokens
];

/** Probabilities with ties, ids with masked tokens. */
function routed({ tokens, experts, topK }: (typeof SIZES)[number]) {
  const probabilities = randomValues(tokens * experts, 5).map((x) => Math.round(8 * Math.abs(x)) / 8);
  const mask = Uint32Array.from({ length: tokens }, (_, t) => Number(t % 5 !== 3));
  const expertIds = Uint32Array.from({ length: tokens * topK }, (_, a) => {
    const t = Math.floor(a / topK);
    return mask[t] ? (t * 3 + (a % topK)) % experts : experts;
  });
  return { probabilities, mask, expertIds };
}

for (const size of SIZES) {
  const { tokens } = size;
  const what = `${tokens} tokens in groups of ${size.tokensPerGroup}, ${size.experts} experts`;

  test(`tokens stand by descending first choice, ties and masked ones in their place: ${what}`, async () => {
    const { probabilities, expertIds } = routed(size);
    const dims = size;
    const out = await runTwice({
      buffers: { probabilities, expertIds, tokenOrder: integers(tokens + 3) },
      commands: (names) => priorityOrder(names, dims),
    });
    const expected = priorityOrderReference(probabilities, expertIds, dims);
    assert.equal([...out.tokenOrder], [...expected, ...integers(3)]);
  });

  test(`slots are taken in the order given: ${what}`, async () => {
    const { probabilities, expertIds } = routed(size);
    const tokenOrder = priorityOrderReference(probabilities, expertIds, size);
    const dims = { ...size, capacity: 2, lastCapacity: 1, rowTile: 4 };
    const maxRows = moeMaxRows(dims);
    const out = await runTwice({
      buffers: {
        expertIds,
        tokenOrder,
        scratch: integers(moeDispatchScratch(dims)),
        rowOfAssignment: integers(tokens * size.topK),
        sourceOfRow: integers(maxRows),
        expertOfBlock: integers(maxRows / dims.rowTile),
        expertOffset: integers(size.experts + 1),
        expertCount: integers(size.experts),
        demand: integers(size.experts),
      },
      commands: (names) => moeDispatch(names, { ...dims, maxRows }),
    });
    const expected = moeDispatchReference(expertIds, { ...dims, maxRows }, tokenOrder);
    for (const name of ["rowOfAssignment", "sourceOfRow", "expertCount", "demand"] as const)
      assert.equal([...out[name]], [...expected[name]], name);
  });

  for (const capacity of [1, 3, 1000])
    test(`each expert takes its ${capacity} most probable routable tokens: ${what}`, async () => {
      const { probabilities, mask } = routed(size);
      const dims = { ...size, capacity, lastCapacity: Math.ceil(capacity / 2) };
      const out = await runTwice({
        buffers: {
          probabilities,
          mask,
          expertIds: integers(tokens * size.experts + 2),
          gates: unwritten(tokens * size.experts, 2),
        },
        commands: (names) => expertChoice(names, dims),
      });
      const expected = expertChoiceReference(probabilities, mask, dims);
      assert.equal([...out.expertIds], [...expected.expertIds, ...integers(2)]);
      assert.equal([...out.gates], [...expected.gates, ...unwritten(0, 2)]);
    });
}

test("a later expert is used as often as its gate says, an unused one has neither id nor gate", async () => {
  const tokens = 4000;
  const experts = 2;
  // The second expert's normalised gate is the same for every token: 0.05, used with probability 0.25.
  const gate = 0.05;
  const logits = Float32Array.from({ length: tokens * experts }, (_, i) =>
    i % 2 === 0 ? 0 : Math.log(gate / (1 - gate)),
  );
  const scalars = packStepScalars({ step: 4, seed: 9, lossScale: 1, inverseTargetCount: 1, maxGradientNorm: 0 });
  const run = (use: number) =>
    runTwice({
      buffers: {
        logits,
        mask: new Uint32Array(tokens).fill(1),
        step: new Uint32Array(scalars.buffer),
        probabilities: unwritten(tokens * experts, 0),
        expertIds: integers(tokens * 2),
        chosenIds: integers(tokens * 2),
        gates: unwritten(tokens * 2, 0),
        logSumExp: unwritten(tokens, 0),
      },
      commands: (b) =>
        routerForward(
          { ...b, random: { chosenIds: b.chosenIds, step: b.step } },
          { tokens, experts, topK: 2, normalizeGates: true, use },
        ),
    });
  const { expertIds, chosenIds, gates } = await run(3);
  let used = 0;
  for (let t = 0; t < tokens; t++) {
    assert.is(expertIds[2 * t], 0, "the first choice is always used");
    assert.equal([...chosenIds.subarray(2 * t, 2 * t + 2)], [0, 1], "what was chosen is known");
    const second = expertIds[2 * t + 1];
    assert.ok(second === 1 ? gates[2 * t + 1] > 0 : second === experts && gates[2 * t + 1] === 0);
    used += Number(second === 1);
  }
  const probability = gate / RANDOM_POLICY_THRESHOLD;
  const sigma = Math.sqrt((probability * (1 - probability)) / tokens);
  assert.ok(Math.abs(used / tokens - probability) < 5 * sigma, `${used} of ${tokens} used`);
  assert.not.equal([...(await run(4)).expertIds], [...expertIds], "another use draws other numbers");
});

test.run();
