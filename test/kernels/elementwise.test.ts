import { test } from "uvu";
import * as assert from "uvu/assert";
import {
  add,
  gelu,
  geluDerivativeReference,
  geluGradient,
  geluReference,
  multiply,
  reluGradient,
  scale,
} from "../../src/kernels/elementwise.ts";
import type { Command } from "../../src/kernels/kernel.ts";
import { compareWithTolerance } from "../support/gpu.ts";
import { randomValues, runTwice, SENTINEL, unwritten } from "./run_twice.ts";

const COUNTS = [1, 4, 63, 257, 1024, 4 * 65 * 64];
const ULP = 2 ** -23;

type Names = Record<"a" | "b" | "out", string>;

// name, commands, expected value, tolerance: products and sums are one rounding; GELU is judged below.
const CASES: [
  string,
  (names: Names, count: number) => Command<string>[],
  (a: number, b: number) => number,
  (a: number, b: number) => number,
][] = [
  ["add", (names, count) => add(names, { count }), (a, b) => a + b, (a, b) => ULP * Math.abs(a + b)],
  ["multiply", (names, count) => multiply(names, { count }), (a, b) => a * b, (a, b) => ULP * Math.abs(a * b)],
  [
    "scale",
    ({ a, out }, count) => scale({ x: a, out }, { count, factor: -2.5 }),
    (a) => -2.5 * a,
    (a) => ULP * Math.abs(2.5 * a),
  ],
  [
    "reluGradient",
    ({ a, b, out }, count) => reluGradient({ y: a, dOut: b, dX: out }, { count }),
    (a, b) => (a > 0 ? b : 0),
    () => 0,
  ],
  // exp errs by 3 + 2|argument| ulp (|argument| ≤ 30 here where the result is not negligible); the derivative adds
  // terms of size up to 2 that cancel.
  ["gelu", ({ a, out }, count) => gelu({ x: a, out }, { count }), geluReference, (a) => 16 * ULP * Math.abs(a)],
  [
    "geluGradient",
    ({ a, b, out }, count) => geluGradient({ x: a, dOut: b, dX: out }, { count }),
    (a, b) => b * geluDerivativeReference(a),
    (_, b) => 32 * ULP * Math.abs(b),
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

test("gelu stays finite far out", async () => {
  const x = Float32Array.of(-1e4, -50, -12, 12, 50, 1e4);
  const ones = new Float32Array(x.length).fill(1);
  const got = await runTwice({
    buffers: { x, ones, y: unwritten(x.length), dX: unwritten(x.length) },
    commands: ({ x, ones, y, dX }) => [
      ...gelu({ x, out: y }, { count: 6 }),
      ...geluGradient({ x, dOut: ones, dX }, { count: 6 }),
    ],
  });
  const small = 2 ** -60;
  compareWithTolerance(got.y.slice(0, 6), [0, 0, 0, 12, 50, 1e4], () => small, "y");
  compareWithTolerance(got.dX.slice(0, 6), [0, 0, 0, 1, 1, 1], () => small, "dX");
});

test("nothing is dispatched for nothing", () => {
  assert.equal(add({ a: 0, b: 0, out: SENTINEL }, { count: 0 }), []);
});

test.run();
