import { suite } from "uvu";
import * as assert from "uvu/assert";
import { mixtureOrder } from "../../src/trainer/data/mixture.ts";
import { shuffledOrder } from "../../src/trainer/data/order.ts";

const test = suite("mixture");
const sizes = [30, 7, 200]; // ids 0 … 29, 30 … 36, 37 … 236
const sources = sizes.map((size) => ({ size, variants: 1 }));
const CAP = 50;
const ROUND = 30 + 7 + CAP;
const sourceOf = (id: number): number => (id < 30 ? 0 : id < 37 ? 1 : 2);
const idsOf = (seed: number, length: number): number[] => {
  const order = mixtureOrder(sources, seed, { cap: CAP });
  return Array.from({ length }, (_, position) => order(position));
};

test("every round holds min(size, cap) of each source, mixed", () => {
  const ids = idsOf(1, ROUND * 8);
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
  const ids = idsOf(2, ROUND * 8);
  for (const [s, length] of sizes.entries()) {
    const drawn = ids.filter((id) => sourceOf(id) === s);
    for (let start = 0; start + length <= drawn.length; start += length) {
      assert.is(new Set(drawn.slice(start, start + length)).size, length, `source ${s}, from draw ${start}`);
    }
  }
});

test("an example follows from seed and position alone, in any order of asking", () => {
  const ids = idsOf(3, 400);
  const order = mixtureOrder(sources, 3, { cap: CAP });
  for (const position of [399, 0, 172, 84, 88, 399]) assert.is(order(position), ids[position]);
  assert.is.not(String(idsOf(4, 40)), String(idsOf(3, 40)));
});

test("one source without a cap comes as it would alone", () => {
  const alone = shuffledOrder(30, 5);
  const mixed = mixtureOrder([sources[0]], 5);
  for (let position = 0; position < 80; position++) assert.is(mixed(position), alone(position));
});

test("each epoch takes the next variant of a source, in that epoch's order", () => {
  const mixed = mixtureOrder([{ size: 7, variants: 2 }, sources[0]], 6);
  const ids = Array.from({ length: 3 * 37 }, (_, position) => mixed(position)).filter((id) => id < 14);
  const alone = shuffledOrder(7, 6);
  assert.equal(
    ids,
    Array.from({ length: 21 }, (_, draw) => alone(draw) + (Math.floor(draw / 7) % 2) * 7),
  );
});

test("nothing to draw from is refused", () => {
  assert.throws(() => mixtureOrder([], 1), RangeError);
  assert.throws(() => mixtureOrder([sources[0], { size: 0, variants: 1 }], 1), RangeError);
  assert.throws(() => mixtureOrder([sources[0]], 1, { cap: 0 }), RangeError);
});

test.run();
