import { test } from "uvu";
import * as assert from "uvu/assert";
import { expertScale, expertScaleGradient, expertScaleGradientReference } from "../../src/kernels/expert_scale.ts";
import { compareWithTolerance } from "../support/gpu.ts";
import { randomValues, runTwice, unwritten } from "./run_twice.ts";

// Four experts in blocks of 4 rows: 6 rows of expert 0 (padded to 8), none of 1, 4 of 2, 1 of 3 (padded to 4); then two
// unused blocks.
const ROW_TILE = 4;
const MAX_ROWS = 24;
const expertOffset = Uint32Array.from([0, 8, 8, 12, 16]);
const expertCount = Uint32Array.from([6, 0, 4, 1]);
const expertOfBlock = Uint32Array.from([0, 0, 2, 3, 4, 4]);
for (const WIDTH of [19, 20]) {
  const x = randomValues(MAX_ROWS * WIDTH, 1);
  const scale = randomValues(4 * WIDTH, 2);

  test(`width ${WIDTH}: each row is multiplied by the vector of its block's expert; unused blocks are 0`, async () => {
    const got = await runTwice({
      buffers: { x, scale, expertOfBlock, out: unwritten(MAX_ROWS * WIDTH) },
      commands: (b) => expertScale(b, { maxRows: MAX_ROWS, rowTile: ROW_TILE, width: WIDTH, experts: 4 }),
    });
    const expected = Float32Array.from(x, (value, i) => {
      const expert = expertOfBlock[Math.floor(i / WIDTH / ROW_TILE)];
      return expert < 4 ? value * scale[expert * WIDTH + (i % WIDTH)] : 0;
    });
    assert.equal(Array.from(got.out), [...expected, ...unwritten(0)]);
  });

  for (const trainable of [[0, 1, 2, 3], [3], [1, 2]])
    test(`width ${WIDTH}: the gradient sums the real rows of the trainable experts ${trainable}`, async () => {
      const dOut = randomValues(MAX_ROWS * WIDTH, 3);
      const trainableExperts = Uint32Array.from(trainable);
      const count = trainable.length * WIDTH;
      const got = await runTwice({
        buffers: { x, dOut, expertOffset, expertCount, trainableExperts, out: unwritten(count) },
        commands: (b) => expertScaleGradient(b, { slots: trainable.length, width: WIDTH }),
      });
      const expected = expertScaleGradientReference(x, dOut, { expertOffset, expertCount }, trainable, WIDTH);
      // At most 6 products of numbers below 1, each product and each sum one rounding: 12 · 6 half units. An expert
      // without rows is exactly 0.
      compareWithTolerance(
        got.out,
        [...expected, ...unwritten(0)],
        (i) => (i >= count || expertCount[trainable[Math.floor(i / WIDTH)]] === 0 ? 0 : 72 * 2 ** -24),
        "gradient",
      );
    });
}

test.run();
