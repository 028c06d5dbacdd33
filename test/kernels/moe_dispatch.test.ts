import { suite } from "uvu";
import * as assert from "uvu/assert";
import { moeDispatchReference } from "../../src/kernels/moe_dispatch.reference.ts";
import {
  type DispatchDims,
  DROPLESS,
  moeDispatch,
  moeDispatchScratch,
  moeMaxRows,
  NO_ROW,
} from "../../src/kernels/moe_dispatch.ts";
import { routerForwardReference } from "../../src/kernels/router.reference.ts";
import { integerOutput, randomNumbers, withGuard } from "../support/arrays.ts";
import { runCommands, testDevice } from "../support/gpu.ts";
import { readRoutingFixture, TOKEN_CHOICE_FIXTURES } from "../support/routing_fixture.ts";

const test = suite("moe_dispatch");

/** topK distinct experts per token, skewed to low ids when `skew` > 1, a share of tokens masked. */
function randomChoices(tokens: number, experts: number, topK: number, skew: number, masked: number): Uint32Array {
  const random = randomNumbers(tokens * 31 + experts);
  const ids = new Uint32Array(tokens * topK).fill(experts);
  for (let t = 0; t < tokens; t++) {
    if (random() < masked) continue;
    const free = Array.from({ length: experts }, (_, e) => e);
    for (let j = 0; j < topK; j++) ids[t * topK + j] = free.splice(Math.floor(free.length * random() ** skew), 1)[0];
  }
  return ids;
}

async function dispatchOnDevice(expertIds: Uint32Array, dims: DispatchDims, maxRows: number) {
  const buffers = {
    expertIds,
    scratch: integerOutput(moeDispatchScratch(dims)),
    rowOfAssignment: integerOutput(dims.tokens * dims.topK),
    sourceOfRow: integerOutput(maxRows),
    expertOfBlock: integerOutput(maxRows / dims.rowTile),
    expertOffset: integerOutput(dims.experts + 1),
    expertCount: integerOutput(dims.experts),
    demand: integerOutput(dims.experts),
  };
  return runCommands(await testDevice(), { buffers, commands: (names) => moeDispatch(names, { ...dims, maxRows }) });
}

const cases = [
  { what: "one token, one expert", tokens: 1, tokensPerGroup: 1, topK: 1, experts: 1, capacity: DROPLESS, rowTile: 8 },
  {
    what: "one token, many experts",
    tokens: 1,
    tokensPerGroup: 1,
    topK: 3,
    experts: 70,
    capacity: DROPLESS,
    rowTile: 4,
  },
  {
    what: "every token masked",
    tokens: 9,
    tokensPerGroup: 3,
    topK: 2,
    experts: 4,
    capacity: DROPLESS,
    rowTile: 4,
    masked: 1,
  },
  {
    what: "dropless, odd sizes",
    tokens: 333,
    tokensPerGroup: 111,
    topK: 2,
    experts: 5,
    capacity: DROPLESS,
    rowTile: 8,
  },
  {
    what: "empty experts",
    tokens: 65,
    tokensPerGroup: 65,
    topK: 1,
    experts: 130,
    capacity: DROPLESS,
    rowTile: 16,
    skew: 6,
  },
  { what: "tight capacity", tokens: 264, tokensPerGroup: 66, topK: 2, experts: 6, capacity: 7, rowTile: 8, skew: 3 },
  {
    what: "capacity and masks",
    tokens: 190,
    tokensPerGroup: 95,
    topK: 4,
    experts: 9,
    capacity: 11,
    rowTile: 5,
    masked: 0.3,
  },
  { what: "a group per token", tokens: 67, tokensPerGroup: 1, topK: 2, experts: 3, capacity: 4, rowTile: 8 },
  {
    what: "a shorter last group with fewer slots",
    tokens: 203,
    tokensPerGroup: 90,
    topK: 2,
    experts: 5,
    capacity: 9,
    lastCapacity: 4,
    rowTile: 8,
    skew: 2,
    masked: 0.1,
  },
  { what: "a last group of one token", tokens: 71, tokensPerGroup: 70, topK: 3, experts: 4, capacity: 8, rowTile: 4 },
  { what: "1024 experts", tokens: 40, tokensPerGroup: 20, topK: 16, experts: 1024, capacity: 4, rowTile: 1, skew: 2 },
];

for (const { what, skew = 1, masked = 0, ...dims } of cases) {
  test(`sorts assignments by expert, then group, choice and token: ${what}`, async () => {
    const expertIds = randomChoices(dims.tokens, dims.experts, dims.topK, skew, masked);
    const maxRows = moeMaxRows(dims);
    const expected = moeDispatchReference(expertIds, { ...dims, maxRows });
    const out = await dispatchOnDevice(expertIds, dims, maxRows);
    for (const name of [
      "rowOfAssignment",
      "sourceOfRow",
      "expertOfBlock",
      "expertOffset",
      "expertCount",
      "demand",
    ] as const)
      assert.equal(Array.from(out[name]), withGuard(expected[name], out[name]), name);
  });
}

test("the row bound is reached, and never exceeded, over every routing of small layers", () => {
  for (const rowTile of [1, 2, 3])
    for (const capacity of [1, 2, DROPLESS])
      for (const tokensPerGroup of [4, 3, 2]) {
        const dims = { tokens: 4, tokensPerGroup, topK: 1, experts: 3, capacity, rowTile };
        const bound = moeMaxRows(dims);
        let most = 0;
        for (let code = 0; code < 3 ** 4; code++) {
          const ids = [0, 1, 2, 3].map((t) => Math.floor(code / 3 ** t) % 3);
          const dispatch = moeDispatchReference(ids, { ...dims, maxRows: 12 * rowTile });
          most = Math.max(most, dispatch.expertOffset[dims.experts]);
        }
        assert.is(most, bound, JSON.stringify(dims));
      }
});

test("refuses fewer rows than a routing can need", () => {
  const dims = { tokens: 8, tokensPerGroup: 8, topK: 1, experts: 2, capacity: DROPLESS, rowTile: 4 };
  const names = ["expertIds", "scratch", "rowOfAssignment", "sourceOfRow", "expertOfBlock", "expertOffset"] as const;
  const buffers = Object.fromEntries([...names, "expertCount", "demand"].map((n) => [n, n])) as Record<
    (typeof names)[number] | "expertCount" | "demand",
    string
  >;
  assert.throws(() => moeDispatch(buffers, { ...dims, maxRows: 8 }), /at least 12, got 8/);
  assert.throws(() => moeDispatch(buffers, { ...dims, maxRows: 13 }), /multiple of 4/);
});

for (const name of TOKEN_CHOICE_FIXTURES) {
  test(`keeps the assignments and slots that flaxformer keeps: ${name}`, async () => {
    const { groups, tokensPerGroup, experts, topK, capacity, mask, tensor } = await readRoutingFixture(name);
    const tokens = groups * tokensPerGroup;
    const { expertIds } = routerForwardReference(tensor("router_logits"), mask, {
      tokens,
      experts,
      topK,
      normalizeGates: false,
    });
    const dims = { tokens, tokensPerGroup, topK, experts, capacity, rowTile: 8 };
    const maxRows = moeMaxRows(dims);
    const { slot, ...reference } = moeDispatchReference(expertIds, { ...dims, maxRows });
    const dispatchMask = new Int32Array(tokens * experts * capacity); // [group, token, expert, slot]
    slot.forEach((s, a) => {
      if (s !== NO_ROW) dispatchMask[(Math.floor(a / topK) * experts + expertIds[a]) * capacity + s] = 1;
    });
    assert.equal(dispatchMask, tensor("dispatch_mask"));
    const out = await dispatchOnDevice(expertIds, dims, maxRows);
    assert.equal(
      Array.from(out.rowOfAssignment),
      withGuard(reference.rowOfAssignment, out.rowOfAssignment),
      "rowOfAssignment",
    );
  });
}

test.run();
