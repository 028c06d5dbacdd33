import { test } from "uvu";
import * as assert from "uvu/assert";
import { routerForwardReference } from "../../src/kernels/router.reference.ts";
import { routerForward } from "../../src/kernels/router.ts";
import {
  countSelectionLoad,
  updateSelectionBias,
  updateSelectionBiasReference,
} from "../../src/kernels/selection_bias.ts";
import { randomValues, runTwice, unwritten } from "./run_twice.ts";

const BEHIND = 3;
/** Whole numbers, and sentinels behind them. */
const integers = (values: readonly number[]) => Uint32Array.from([...values, ...Array(BEHIND).fill(0xabcdef)]);
const floats = (values: ArrayLike<number>) => Float32Array.from([...Array.from(values), ...unwritten(0, BEHIND)]);

for (const experts of [1, 5, 70, 1024]) {
  const load = Array.from({ length: experts }, (_, e) => (e * 7) % 11);
  const demand = Array.from({ length: experts }, (_, e) => (e * 5) % 3);
  const start = randomValues(experts, 3).subarray(0, experts);

  test(`loads add up, a bias moves towards the mean, and counting begins anew: ${experts} experts`, async () => {
    const rate = 1e-3;
    const out = await runTwice({
      buffers: {
        demand: integers(demand),
        load: integers(load),
        norm: Float32Array.of(2, 1, 1),
        bias: floats(start),
      },
      commands: (b) => [...countSelectionLoad(b, { experts }), ...updateSelectionBias(b, { experts, rate })],
    });
    const sum = load.map((n, e) => n + demand[e]);
    assert.equal([...out.bias], [...floats(updateSelectionBiasReference(start, sum, rate))]);
    assert.equal([...out.load], [...integers(Array(experts).fill(0))]);
  });

  test(`a step that changes nothing leaves the bias, and its load does not count later: ${experts} experts`, async () => {
    const out = await runTwice({
      buffers: { load: integers(load), norm: Float32Array.of(Number.NaN, 0, 0), bias: floats(start) },
      commands: (b) => updateSelectionBias(b, { experts, rate: 0.5 }),
    });
    assert.equal([...out.bias], [...floats(start)]);
    assert.equal([...out.load], [...integers(Array(experts).fill(0))]);
  });
}

for (const [loads, moves] of [
  [
    [1, 2, 3],
    [1, 0, -1],
  ],
  [
    [1, 2, 2],
    [1, -1, -1],
  ],
  [
    [2, 2, 1],
    [-1, -1, 1],
  ],
  [
    [0, 0, 0],
    [0, 0, 0],
  ],
])
  test(`loads ${loads} move the bias by ${moves}: an expert at the mean stays, whole number or not`, async () => {
    assert.equal([...updateSelectionBiasReference(new Float32Array(3), loads, 1)], moves);
    const out = await runTwice({
      buffers: { load: integers(loads), norm: Float32Array.of(1, 1, 1), bias: new Float32Array(3) },
      commands: (b) => updateSelectionBias(b, { experts: 3, rate: 1 }),
    });
    assert.equal([...out.bias], moves);
  });

for (const normalizeGates of [false, true])
  test(`tokens choose by probability + bias and weigh by the probability, normalised: ${normalizeGates}`, async () => {
    const [tokens, experts, topK] = [70, 6, 2];
    const logits = randomValues(tokens * experts, 8).map((x) => 3 * x);
    const mask = Uint32Array.from({ length: tokens }, (_, t) => Number(t % 7 !== 4));
    // Large enough to overrule most probabilities; unequal, so that no two scores are equal within rounding.
    const selectionBias = Float32Array.of(0.5, -0.25, 0, 0.125, 0.75, -1);
    const dims = { tokens, experts, topK, normalizeGates };
    const out = await runTwice({
      buffers: {
        logits,
        mask,
        selectionBias,
        probabilities: unwritten(tokens * experts, 0),
        expertIds: new Uint32Array(tokens * topK).fill(0xabcdef),
        gates: unwritten(tokens * topK, 0),
        logSumExp: unwritten(tokens, 0),
      },
      commands: (b) => routerForward(b, dims),
    });
    const expected = routerForwardReference(logits, mask, dims, selectionBias);
    const unbiased = routerForwardReference(logits, mask, dims);
    assert.equal([...out.expertIds], [...expected.expertIds]);
    assert.not.equal([...out.expertIds], [...unbiased.expertIds], "the bias decides somewhere");
    // exp to 3 + 2·|x| units of 2^-23 with |x| ≤ 9, sums of 6 terms, a quotient or two: below 2^-18 of the gate.
    out.gates.forEach((gate, a) => {
      assert.ok(Math.abs(gate - expected.gates[a]) <= 2 ** -18 * expected.gates[a], `gate ${a}`);
    });
  });

test.run();
