// Products of mixed precision: operands rounded to f16, sums in f32; by the loops of every adapter, and on matrix units.

import { test } from "uvu";
import * as assert from "uvu/assert";
import {
  groupedMatmul,
  groupedMatmulReference,
  groupedWeightGradient,
  groupedWeightGradientReference,
} from "../../src/kernels/grouped_matmul.ts";
import type { Command, KernelCall } from "../../src/kernels/kernel.ts";
import { type MatmulDims, matmul, matmulReference, matmulScratch } from "../../src/kernels/matmul.ts";
import { compareWithTolerance, testDevice } from "../support/gpu.ts";
import { onMatrixUnits } from "../support/matrix_units.ts";
import { layOut } from "./grouped_rows.ts";
import { testTransposes, WAYS } from "./product_cases.ts";
import { randomValues, runTwice, unwritten } from "./run_twice.ts";

const { capabilities } = await testDevice();

/**
 * Rounding both operands to f16, to nearest or towards zero, changes a product by at most 2·2^-10 of itself and a little;
 * operands here are at least 2^-13 or 0, so none is subnormal. The f32 sum's c·sqrt(k)·2^-24, c = 2, is small beside it.
 */
const tolerance = (terms: number, magnitude: number): number =>
  (2.1 * 2 ** -10 + (2 * Math.sqrt(terms) + 4) * 2 ** -24) * magnitude;

const kernelNames = (commands: readonly Command<string>[]) =>
  commands.flatMap((c) => ("kernel" in c ? c.kernel.name : []));

// [m, n, k]: a part of a tile; several tiles with edges; an odd size, which matrix units leave to the others.
const SIZES = [
  [24, 40, 16],
  [72, 72, 40],
  [21, 10, 17],
] as const;

testTransposes(test, async (target, given) => {
  const { products } = given;
  for (const [index, [m, n, k]] of SIZES.entries()) {
    const offsets = index === 1 ? { aOffset: 8, bOffset: 16, outOffset: 4, accumulate: true, alpha: -0.5 } : {};
    const dims: MatmulDims = { m, n, k, ...given, relu: index === 0, ...offsets };
    const a = randomValues(m * k + (dims.aOffset ?? 0), 1);
    const b = randomValues(k * n + (dims.bOffset ?? 0), 2);
    const out = unwritten(m * n + (dims.outOffset ?? 0));
    if (dims.accumulate) out.set(randomValues(m * n, 3), dims.outOffset);
    const got = await runTwice({
      buffers: { a, b, out },
      commands: (names) => {
        const commands = matmul(names, dims, target);
        if (products === "matrix") assert.match(kernelNames(commands)[0], index < 2 ? /matrix/ : /rounded/);
        return onMatrixUnits(capabilities, commands);
      },
    });
    const magnitude = matmulReference(a.map(Math.abs), b.map(Math.abs), out.map(Math.abs), {
      ...dims,
      alpha: Math.abs(dims.alpha ?? 1),
      relu: false,
    });
    compareWithTolerance(
      got.out,
      matmulReference(a, b, out, dims),
      (i) => tolerance(k, magnitude[i]),
      `${m}×${n}×${k}`,
    );
  }
});

test("an operand is rounded to f16 exactly once", async () => {
  // 1 + 2^-12 becomes 1; its square in f32 would be 1 + 2^-11.
  const a = new Float32Array(16 * 16).fill(1 + 2 ** -12);
  for (const [target, products] of WAYS) {
    const dims = { m: 16, n: 16, k: 16, transposeA: false, transposeB: false, products };
    const got = await runTwice({
      buffers: { a, b: a, out: unwritten(256, 0) },
      commands: (names) => onMatrixUnits(capabilities, matmul(names, dims, target)),
    });
    assert.ok(
      got.out.every((x) => x === 16),
      `${target} ${products}`,
    );
  }
});

test("a long sum is split in stretches on matrix units too", async () => {
  const dims = { m: 64, n: 72, k: 1064, transposeA: true, transposeB: false, products: "matrix" } as const;
  const a = randomValues(dims.m * dims.k, 6);
  const b = randomValues(dims.k * dims.n, 7);
  const out = unwritten(dims.m * dims.n);
  const elements = matmulScratch(dims, "hardware");
  assert.ok(elements >= 2 * dims.m * dims.n);
  const got = await runTwice({
    buffers: { a, b, out, scratch: unwritten(elements) },
    commands: (names) => onMatrixUnits(capabilities, matmul(names, dims, "hardware")),
  });
  const magnitude = matmulReference(a.map(Math.abs), b.map(Math.abs), out.map(Math.abs), dims);
  compareWithTolerance(got.out, matmulReference(a, b, out, dims), (i) => tolerance(dims.k, magnitude[i]));
});

const ROWS = { counts: [70, 3, 0, 64], rowTile: 64, topK: 2 };
const [N, K] = [72, 40];

for (const [target, products] of WAYS)
  for (const gather of [true, false]) {
    test(`${target} ${products}: rows of experts, ${gather ? "gathered" : "sorted"}`, async () => {
      const rows = layOut(ROWS);
      const x = randomValues((gather ? rows.tokens : rows.maxRows) * K, 1);
      if (!gather) rows.padding.forEach((r) => void x.fill(0, r * K, (r + 1) * K));
      const weight = randomValues(ROWS.counts.length * N * K, 2);
      const options = { n: N, k: K, transposeWeight: gather, gatherTopK: gather ? ROWS.topK : undefined, products };
      const { expertOfBlock, sourceOfRow, maxRows } = rows;
      const got = await runTwice({
        buffers: { x, weight, expertOfBlock, sourceOfRow, out: unwritten(maxRows * N) },
        commands: (names) =>
          onMatrixUnits(capabilities, groupedMatmul(names, { ...options, maxRows, rowTile: ROWS.rowTile }, target)),
      });
      const expected = groupedMatmulReference(x, weight, rows, options);
      const magnitude = groupedMatmulReference(x.map(Math.abs), weight.map(Math.abs), rows, options);
      const used = rows.usedRows * N;
      compareWithTolerance(got.out.slice(0, used), expected, (i) => tolerance(K, magnitude[i]));
      assert.equal([...got.out.slice(used)], [...unwritten(2 * ROWS.rowTile * N)], "unused blocks are left");
    });

    test(`${target} ${products}: weight gradient of ${gather ? "gathered" : "sorted"} rows`, async () => {
      const rows = layOut(ROWS);
      const x = randomValues((gather ? rows.tokens : rows.maxRows) * K, 3);
      const dy = randomValues(rows.maxRows * N, 4);
      rows.padding.forEach((r) => void dy.fill(Number.NaN, r * N, (r + 1) * N));
      const trainable = [3, 0, 2];
      const { expertOffset, expertCount, sourceOfRow } = rows;
      const options = { n: N, k: K, gatherTopK: gather ? ROWS.topK : undefined, products };
      const buffers = { x, dy, out: unwritten(3 * N * K), expertOffset, expertCount, sourceOfRow };
      const got = await runTwice({
        buffers: { ...buffers, trainableExperts: Uint32Array.from(trainable) },
        commands: (names) =>
          onMatrixUnits(capabilities, groupedWeightGradient(names, { slots: 3, ...options }, target)),
      });
      const expected = groupedWeightGradientReference(x, dy, rows, trainable, options);
      const magnitude = groupedWeightGradientReference(x.map(Math.abs), dy.map(Math.abs), rows, trainable, options);
      compareWithTolerance(got.out, [...expected, ...unwritten(0)], (i) =>
        i < expected.length ? tolerance(ROWS.counts[trainable[Math.floor(i / (N * K))]], magnitude[i]) : 0,
      );
    });
  }

for (const transposeWeight of [true, false])
  test(`hardware matrix: many columns of experts take tiles of 64×192, weight ${transposeWeight ? "transposed" : "as is"}`, async () => {
    const [n, k, counts] = [520, 40, [70, 3]];
    const rows = layOut({ counts, rowTile: 64, topK: 1 }, 50);
    const { maxRows, expertOfBlock, sourceOfRow } = rows;
    const x = randomValues(rows.tokens * k, 5);
    const weight = randomValues(counts.length * n * k, 6);
    const options = { n, k, transposeWeight, gatherTopK: 1, products: "matrix" } as const;
    const got = await runTwice({
      buffers: { x, weight, expertOfBlock, sourceOfRow, out: unwritten(maxRows * n) },
      commands: (names) => {
        const commands = groupedMatmul(names, { ...options, maxRows, rowTile: 64 }, "hardware");
        assert.match((commands[0] as KernelCall<string>).kernel.name, /64x192/);
        return onMatrixUnits(capabilities, commands);
      },
    });
    const expected = groupedMatmulReference(x, weight, rows, options);
    const magnitude = groupedMatmulReference(x.map(Math.abs), weight.map(Math.abs), rows, options);
    const used = rows.usedRows * n;
    compareWithTolerance(got.out.slice(0, used), expected, (i) => tolerance(k, magnitude[i]));
    assert.equal([...got.out.slice(used)], [...unwritten((maxRows - rows.usedRows) * n)], "unused blocks are left");
  });

test.run();
