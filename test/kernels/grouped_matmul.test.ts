import { test } from "uvu";
import * as assert from "uvu/assert";
import {
  groupedMatmul,
  groupedMatmulReference,
  groupedWeightGradient,
  groupedWeightGradientReference,
  PADDING_ROW,
} from "../../src/kernels/grouped_matmul.ts";
import type { KernelCall } from "../../src/kernels/kernel.ts";
import { compareWithTolerance } from "../support/gpu.ts";
import { layOut } from "./grouped_rows.ts";
import { randomValues, runTwice, SENTINEL, unwritten } from "./run_twice.ts";

const CASES: { why: string; counts: number[]; rowTile: number; topK: number; n: number; k: number }[] = [
  { why: "vectors, an empty expert", counts: [5, 0, 17, 8], rowTile: 8, topK: 2, n: 24, k: 20 },
  { why: "no vectors, first and last expert empty", counts: [0, 9, 1, 0], rowTile: 8, topK: 1, n: 7, k: 5 },
  { why: "tile of 4, odd multiple", counts: [3, 13], rowTile: 12, topK: 3, n: 12, k: 64 },
  {
    why: "hardware's tile, more than one block and column tile",
    counts: [70, 3, 0],
    rowTile: 64,
    topK: 2,
    n: 68,
    k: 33,
  },
  { why: "one expert, one row, one column", counts: [1], rowTile: 4, topK: 1, n: 1, k: 1 },
  { why: "no token at all", counts: [0, 0], rowTile: 8, topK: 1, n: 8, k: 8 },
];

/** A k-term f32 sum in order: c·sqrt(k)·2^-24·Σ|ab| with c = 2 and two more roundings. */
const tolerance = (terms: number, magnitude: number): number => (2 * Math.sqrt(terms) + 2) * 2 ** -24 * magnitude;

for (const target of ["software", "hardware"] as const) {
  // How x is read and how the weight is stored are independent in the kernels: two pairs show both.
  for (const [gather, transposeWeight] of [
    [true, true],
    [false, false],
  ])
    test(`${target}: ${gather ? "gathered" : "sorted"} rows, weight ${transposeWeight ? "[n,k]" : "[k,n]"}`, async () => {
      for (const [index, c] of CASES.entries()) {
        const rows = layOut(c);
        const { n, k, rowTile } = c;
        const x = randomValues((gather ? rows.tokens : rows.maxRows) * k, 1);
        for (let r = 0; r < rows.maxRows; r++)
          if (!gather && rows.sourceOfRow[r] === PADDING_ROW) x.fill(0, r * k, (r + 1) * k);
        const weight = randomValues(c.counts.length * n * k, 2);
        const options = { n, k, transposeWeight, gatherTopK: gather ? c.topK : undefined, relu: index % 2 === 0 };
        const { expertOfBlock, sourceOfRow, maxRows } = rows;
        const got = await runTwice({
          buffers: { x, weight, expertOfBlock, sourceOfRow, out: unwritten(maxRows * n) },
          commands: (names) => groupedMatmul(names, { ...options, maxRows, rowTile }, target),
        });
        const expected = groupedMatmulReference(x, weight, rows, options);
        const magnitude = groupedMatmulReference(x.map(Math.abs), weight.map(Math.abs), rows, options);
        const used = rows.usedRows * n;
        compareWithTolerance(got.out.slice(0, used), expected, (i) => tolerance(k, magnitude[i]), c.why);
        assert.equal([...got.out.slice(maxRows * n)], [...unwritten(0)], `${c.why}: nothing behind out`);
        if (c.counts.length > 1)
          assert.ok(
            got.out.slice(used).every((v) => v === Math.fround(SENTINEL)),
            `${c.why}: unused blocks are left`,
          );
      }
    });

  for (const gather of [true, false])
    test(`${target}: weight gradient of ${gather ? "gathered" : "sorted"} rows`, async () => {
      for (const c of CASES) {
        const rows = layOut(c);
        const { n, k } = c;
        const x = randomValues((gather ? rows.tokens : rows.maxRows) * k, 3);
        // Rows that hold no assignment must not be read: NaN would show.
        const dy = randomValues(rows.maxRows * n, 4).map((v, i) =>
          rows.sourceOfRow[Math.floor(i / n)] === PADDING_ROW ? Number.NaN : v,
        );
        const every = c.counts.map((_, e) => e);
        for (const trainable of [every, every.slice(1).reverse()]) {
          const trainableExperts = Uint32Array.from([...trainable, 0]);
          const slots = trainable.length;
          const options = { n, k, gatherTopK: gather ? c.topK : undefined };
          const { expertOffset, expertCount, sourceOfRow } = rows;
          const out = unwritten(slots * n * k);
          const got = await runTwice({
            buffers: { x, dy, out, expertOffset, expertCount, trainableExperts, sourceOfRow },
            commands: (names) => groupedWeightGradient(names, { slots, ...options }, target),
          });
          const expected = groupedWeightGradientReference(x, dy, rows, trainable, options);
          const magnitude = groupedWeightGradientReference(x.map(Math.abs), dy.map(Math.abs), rows, trainable, options);
          compareWithTolerance(
            got.out,
            [...expected, ...unwritten(0)],
            (i) => (i < expected.length ? tolerance(c.counts[trainable[Math.floor(i / (n * k))]], magnitude[i]) : 0),
            `${c.why}, experts ${trainable}`,
          );
        }
      }
    });
}

for (const [n, k] of [
  [3332, 4],
  [3331, 5],
])
  test(`hardware: many columns take tiles of 64×128, ${n % 4 ? "no " : ""}vectors`, async () => {
    const counts = [70, 3, 64];
    const rows = layOut({ counts, rowTile: 64, topK: 2 });
    const { maxRows, expertOfBlock, sourceOfRow } = rows;
    const x = randomValues(rows.tokens * k, 5);
    const weight = randomValues(counts.length * n * k, 6);
    const options = { n, k, transposeWeight: true, gatherTopK: 2 };
    const got = await runTwice({
      buffers: { x, weight, expertOfBlock, sourceOfRow, out: unwritten(maxRows * n) },
      commands: (names) => {
        const commands = groupedMatmul(names, { ...options, maxRows, rowTile: 64 }, "hardware");
        assert.match((commands[0] as KernelCall<string>).kernel.name, /64x128/);
        return commands;
      },
    });
    const expected = groupedMatmulReference(x, weight, rows, options);
    const magnitude = groupedMatmulReference(x.map(Math.abs), weight.map(Math.abs), rows, options);
    compareWithTolerance(got.out.slice(0, expected.length), expected, (i) => tolerance(k, magnitude[i]));
    assert.ok(
      got.out.slice(expected.length).every((v) => v === Math.fround(SENTINEL)),
      "unused blocks are left",
    );
  });

for (const [n, k] of [
  [1028, 1032],
  [1029, 1031],
])
  test(`hardware: many weights take tiles of 128×128, ${n % 4 ? "no " : ""}vectors`, async () => {
    const counts = [9, 0];
    const rows = layOut({ counts, rowTile: 8, topK: 1 });
    const { maxRows, expertOffset, expertCount, sourceOfRow } = rows;
    const x = randomValues(rows.tokens * k, 7);
    const dy = randomValues(maxRows * n, 8);
    const trainableExperts = Uint32Array.from([1, 0]);
    const options = { n, k, gatherTopK: 1 };
    const got = await runTwice({
      buffers: { x, dy, out: unwritten(2 * n * k), expertOffset, expertCount, trainableExperts, sourceOfRow },
      commands: (names) => {
        const commands = groupedWeightGradient(names, { slots: 2, ...options }, "hardware");
        assert.match((commands[0] as KernelCall<string>).kernel.name, /128x128/);
        return commands;
      },
    });
    const expected = groupedWeightGradientReference(x, dy, rows, trainableExperts, options);
    const magnitude = groupedWeightGradientReference(
      x.map(Math.abs),
      dy.map(Math.abs),
      rows,
      trainableExperts,
      options,
    );
    compareWithTolerance(got.out, [...expected, ...unwritten(0)], (i) => tolerance(9, magnitude[i] ?? 0));
  });

test("a row tile that is not a multiple of 4 is refused", () => {
  const dims = { maxRows: 6, rowTile: 6, n: 4, k: 4, transposeWeight: true };
  assert.throws(() => groupedMatmul({ x: 0, weight: 1, out: 2, expertOfBlock: 3 }, dims, "software"), /multiple of 4/);
});

test.run();
