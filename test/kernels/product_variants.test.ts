// Variants of products, bit for bit against those without: f16 in memory gives what f32 gives, rounded; a mask keeps results
// where it is positive, and the rest is 0. That products are right is the business of matmul, grouped_matmul and
// matrix_products.test.ts.

import { test } from "uvu";
import * as assert from "uvu/assert";
import { groupedMatmul, groupedWeightGradient } from "../../src/kernels/grouped_matmul.ts";
import { type MatmulDims, matmul, matmulScratch } from "../../src/kernels/matmul.ts";
import { testDevice } from "../support/gpu.ts";
import { asHalves } from "../support/halves.ts";
import { onMatrixUnits } from "../support/matrix_units.ts";
import { layOut } from "./grouped_rows.ts";
import { held, sameInHalves } from "./in_halves.ts";
import { testTransposes, WAYS } from "./product_cases.ts";
import { randomValues, runTwice, unwritten } from "./run_twice.ts";

const device = await testDevice();

// [m, n, k]: a part of a tile; several tiles with edges; a sum whose length is no multiple of 4, as a router's.
const SIZES = [
  [24, 40, 16],
  [72, 72, 40],
  [24, 16, 6],
] as const;

testTransposes(test, async (target, given) => {
  const { transposeA, transposeB } = given;
  for (const [index, [m, n, k]] of SIZES.entries()) {
    const offsets = index === 1 ? { aOffset: 8, bOffset: 16, outOffset: 8, accumulate: true, alpha: -0.5 } : {};
    const dims: MatmulDims = { m, n, k, ...given, relu: index === 0, ...offsets };
    const { aOffset = 0, bOffset = 0, outOffset = 0 } = dims;
    const floats = {
      a: held(m * k + aOffset, 1),
      b: held(k * n + bOffset, 2),
      out: held(m * n + outOffset + 8, 3),
    };
    // What a graph keeps as f16 has rows of whole eights.
    const rows = { a: transposeA ? m : k, b: transposeB ? k : n, out: n };
    const halves = Object.entries(rows).flatMap(([name, width]) => (width % 8 === 0 ? [name] : []));
    await sameInHalves(floats, {}, halves, { out: m * n + outOffset }, ({ a, b, out }, halves) =>
      matmul({ a, b, out }, { ...dims, halves }, target),
    );
  }
});

/** Where the mask is not positive, results are 0, else what they are without it. */
function checkMask(masked: Float32Array, without: Float32Array, mask: Float32Array): void {
  assert.ok(mask.some((x) => x > 0) && mask.some((x) => x < 0));
  assert.equal(
    masked,
    without.map((x, i) => (mask[i] > 0 ? x : 0)),
  );
}

for (const [target, products] of [["software", "f32"], ["hardware", "f32"], ...WAYS] as const)
  test(`${target} ${products}: results are masked by a ReLU's output`, async () => {
    for (const [m, n, k] of [...SIZES, [21, 10, 17]]) {
      const dims = { m, n, k, transposeA: false, transposeB: false, products };
      const mask = randomValues(m * n, 3);
      mask.fill(0, 2, 4);
      const got = await runTwice({
        buffers: {
          a: randomValues(m * k, 1),
          b: randomValues(k * n, 2),
          mask,
          out: unwritten(m * n, 0),
          without: unwritten(m * n, 0),
        },
        commands: ({ a, b, mask, out, without }) =>
          onMatrixUnits(device.capabilities, [
            ...matmul({ a, b, out, mask }, dims, target),
            ...matmul({ a, b, out: without }, dims, target),
          ]),
      });
      checkMask(got.out, got.without, mask);
    }
  });

for (const [target, products] of WAYS)
  test(`${target} ${products}: a mask of f16 is one`, async () => {
    const [m, n, k] = SIZES[0];
    const floats = { a: held(m * k, 1), b: held(k * n, 2), mask: held(m * n, 3), out: held(m * n, 4) };
    const dims = { m, n, k, transposeA: false, transposeB: false, products };
    await sameInHalves(floats, {}, Object.keys(floats), { out: m * n }, (bound, halves) =>
      matmul(bound, { ...dims, halves }, target),
    );
  });

test("stretches of a long sum end in f16 too", async () => {
  const dims = { m: 64, n: 72, k: 1064, transposeA: true, transposeB: false, products: "matrix" } as const;
  const floats = { a: held(dims.m * dims.k, 6), b: held(dims.k * dims.n, 7), out: held(dims.m * dims.n, 8) };
  const scratch = new Float32Array(matmulScratch(dims, "hardware"));
  assert.ok(scratch.length > 0);
  const outputs = { out: floats.out.length };
  await sameInHalves(floats, { scratch }, ["a", "b", "out"], outputs, ({ a, b, out, scratch }, halves) =>
    matmul({ a, b, out, scratch }, { ...dims, halves }, "hardware"),
  );
});

const ROWS = { counts: [70, 3, 0, 64], rowTile: 64, topK: 2 };
const [N, K] = [72, 40];
const rows = layOut(ROWS);
const { expertOfBlock, sourceOfRow, expertOffset, expertCount } = rows;
const others = { expertOfBlock, sourceOfRow, expertOffset, expertCount, trainableExperts: Uint32Array.from([3, 0, 2]) };

for (const [target, products] of WAYS)
  for (const gatherTopK of [ROWS.topK, undefined]) {
    const given = () => {
      const x = held((gatherTopK ? rows.tokens : rows.maxRows) * K, 1);
      if (!gatherTopK) rows.padding.forEach((r) => void x.fill(0, r * K, (r + 1) * K));
      return x;
    };
    test(`${target} ${products}: rows of experts, ${gatherTopK ? "gathered" : "sorted"}`, async () => {
      const floats = { x: given(), weight: held(ROWS.counts.length * N * K, 2), out: held(rows.maxRows * N, 3) };
      const dims = {
        ...{ maxRows: rows.maxRows, rowTile: ROWS.rowTile, n: N, k: K },
        ...{ transposeWeight: gatherTopK !== undefined, gatherTopK, relu: true, products },
      };
      await sameInHalves(
        floats,
        others,
        ["x", "weight", "out"],
        { out: rows.usedRows * N },
        ({ x, weight, out, expertOfBlock, sourceOfRow }, halves) =>
          groupedMatmul({ x, weight, out, expertOfBlock, sourceOfRow }, { ...dims, halves }, target),
      );
    });

    test(`${target} ${products}: weight gradient of ${gatherTopK ? "gathered" : "sorted"} rows`, async () => {
      const floats = { x: given(), dy: held(rows.maxRows * N, 4), out: held(3 * N * K, 5) };
      await sameInHalves(
        floats,
        others,
        ["x", "dy"],
        { out: floats.out.length },
        ({ x, dy, out, expertOffset, expertCount, trainableExperts, sourceOfRow }, halves) =>
          groupedWeightGradient(
            { x, dy, out, expertOffset, expertCount, trainableExperts, sourceOfRow },
            { slots: 3, n: N, k: K, gatherTopK, products, halves },
            target,
          ),
      );
    });
  }

for (const [target, products] of [["software", "f32"], ["hardware", "f32"], ...WAYS] as const)
  test(`${target} ${products}: rows of experts are masked by a ReLU's output`, async () => {
    const size = rows.maxRows * N;
    const mask = randomValues(size, 3);
    const dims = { maxRows: rows.maxRows, rowTile: ROWS.rowTile, n: N, k: K, transposeWeight: false, products };
    const x = randomValues(rows.maxRows * K, 1);
    rows.padding.forEach((r) => void x.fill(0, r * K, (r + 1) * K));
    const weight = randomValues(ROWS.counts.length * N * K, 2);
    const got = await runTwice({
      buffers: { x, weight, mask, expertOfBlock, out: unwritten(size, 0), without: unwritten(size, 0) },
      commands: ({ x, weight, mask, expertOfBlock, out, without }) =>
        onMatrixUnits(device.capabilities, [
          ...groupedMatmul({ x, weight, out, expertOfBlock, mask }, dims, target),
          ...groupedMatmul({ x, weight, out: without, expertOfBlock }, dims, target),
        ]),
    });
    const used = rows.usedRows * N;
    checkMask(got.out.slice(0, used), got.without.slice(0, used), mask.slice(0, used));
    if (products === "f32") return;
    const floats = { x: asHalves(x), weight: asHalves(weight), mask: asHalves(mask), out: held(size, 4) };
    await sameInHalves(floats, { expertOfBlock }, Object.keys(floats), { out: used }, (bound, halves) =>
      groupedMatmul(bound, { ...dims, halves }, target),
    );
  });

test.run();
