import { test } from "uvu";
import * as assert from "uvu/assert";
import { add, addInto, reluGradient } from "../../src/kernels/elementwise.ts";
import type { Command } from "../../src/kernels/kernel.ts";
import { compareWithTolerance } from "../support/gpu.ts";
import { randomValues, runTwice, SENTINEL, unwritten } from "./run_twice.ts";

const COUNTS = [1, 4, 63, 257, 1024, 4 * 65 * 64];
const ULP = 2 ** -23;

type Names = Record<"a" | "b" | "out", string>;

// name, commands, expected value, tolerance: a sum is one rounding.
const CASES: [
  string,
  (names: Names, count: number) => Command<string>[],
  (a: number, b: number) => number,
  (a: number, b: number) => number,
][] = [
  ["add", (names, count) => add(names, { count }), (a, b) => a + b, (a, b) => ULP * Math.abs(a + b)],
  [
    "reluGradient",
    ({ a, b, out }, count) => reluGradient({ y: a, dOut: b, out }, { count }),
    (a, b) => (a > 0 ? b : 0),
    () => 0,
  ],
];

for (const [name, commands, reference, tolerance] of CASES)
  test(name, async () => {
    for (const count of COUNTS) {
      const a = randomValues(count, 1).map((x, i) => (i % 7 === 0 ? 0 : 6 * x));
      const b = randomValues(count, 2);
      const out = unwritten(count, 8);
      const got = await runTwice({ buffers: { a, b, out }, commands: (names) => commands(names, count) });
      const expected = [...Array.from(a, (x, i) => reference(x, b[i])), ...unwritten(0, 8)];
      compareWithTolerance(got.out, expected, (i) => (i < count ? tolerance(a[i], b[i]) : 0), `${name} of ${count}`);
    }
  });

test("addInto", async () => {
  for (const count of COUNTS) {
    const x = randomValues(count, 1);
    const before = Float32Array.from([...randomValues(count, 2), ...unwritten(0, 8)]);
    const got = await runTwice({ buffers: { x, out: before }, commands: (names) => addInto(names, { count }) });
    assert.equal(
      got.out,
      before.map((value, i) => (i < count ? Math.fround(value + x[i]) : value)),
      `addInto of ${count}`,
    );
  }
});

test("nothing is dispatched for nothing", () => {
  assert.equal(add({ a: 0, b: 0, out: SENTINEL }, { count: 0 }), []);
});

test.run();
