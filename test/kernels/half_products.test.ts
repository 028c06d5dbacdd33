// Products that read and write f16: from operands that f16 holds they give what they give from f32, rounded to f16, bit for
// bit. That products of f32 are right is matrix_products.test.ts's business.

import { test } from "uvu";
import * as assert from "uvu/assert";
import { groupedMatmul, groupedWeightGradient } from "../../src/kernels/grouped_matmul.ts";
import type { Command } from "../../src/kernels/kernel.ts";
import { type MatmulDims, matmul, matmulScratch } from "../../src/kernels/matmul.ts";
import type { Halves } from "../../src/kernels/storage.ts";
import { runCommands, type TestArray, testDevice } from "../support/gpu.ts";
import { asHalves, fromHalves, toHalves } from "../support/halves.ts";
import { onMatrixUnits } from "../support/matrix_units.ts";
import { layOut } from "./grouped_rows.ts";
import { randomValues } from "./run_twice.ts";

const device = await testDevice();
const WAYS = [
  ["software", "f16"],
  ["hardware", "f16"],
  ["hardware", "matrix"],
] as const;

/** Runs `commands` with all of `floats` as f32, then with those in `halves` as f16, and compares what `out` holds. */
async function compare(
  floats: Readonly<Record<string, Float32Array>>,
  others: Readonly<Record<string, TestArray>>,
  halves: Halves,
  commands: (names: Readonly<Record<string, string>>, halves: Halves) => Command<string>[],
  used = floats.out.length,
): Promise<void> {
  const run = (stored: Halves) => {
    const held = Object.entries(floats).map(([name, values]) => [
      name,
      stored.includes(name) ? toHalves(values) : values,
    ]);
    const buffers: Record<string, TestArray> = { ...others, ...Object.fromEntries(held) };
    return runCommands(device, {
      buffers,
      commands: (names) => onMatrixUnits(device.capabilities, commands(names, stored)),
    });
  };
  const [whole, half] = [(await run([])).out as Float32Array, (await run(halves)).out];
  const got = half instanceof Uint32Array ? fromHalves(half) : half;
  const expected = half instanceof Uint32Array ? asHalves(whole) : whole;
  assert.ok(
    whole.slice(0, used).some((x, i) => x !== floats.out[i]),
    "something is written",
  );
  assert.equal(got.slice(0, used), expected.slice(0, used));
  assert.equal(got.slice(used), floats.out.slice(used), "the rest is left");
}

const held = (count: number, seed: number): Float32Array => asHalves(randomValues(count, seed));

// [m, n, k]: a part of a tile; several tiles with edges; a sum whose length is no multiple of 4, as a router's.
const SIZES = [
  [24, 40, 16],
  [72, 72, 40],
  [24, 16, 6],
] as const;

for (const [target, products] of WAYS)
  for (const transposeA of [false, true])
    for (const transposeB of [false, true])
      test(`${target} ${products}: a ${transposeA ? "transposed" : "as is"}, b ${transposeB ? "transposed" : "as is"}`, async () => {
        for (const [index, [m, n, k]] of SIZES.entries()) {
          const offsets = index === 1 ? { aOffset: 8, bOffset: 16, outOffset: 8, accumulate: true, alpha: -0.5 } : {};
          const dims: MatmulDims = { m, n, k, transposeA, transposeB, products, relu: index === 0, ...offsets };
          const { aOffset = 0, bOffset = 0, outOffset = 0 } = dims;
          const floats = {
            a: held(m * k + aOffset, 1),
            b: held(k * n + bOffset, 2),
            out: held(m * n + outOffset + 8, 3),
          };
          // What a graph keeps as f16 has rows of whole eights.
          const rows = { a: transposeA ? m : k, b: transposeB ? k : n, out: n };
          const halves = Object.entries(rows).flatMap(([name, width]) => (width % 8 === 0 ? [name] : []));
          await compare(
            floats,
            {},
            halves,
            ({ a, b, out }, halves) => matmul({ a, b, out }, { ...dims, halves }, target),
            m * n + outOffset,
          );
        }
      });

test("stretches of a long sum end in f16 too", async () => {
  const dims = { m: 64, n: 72, k: 1064, transposeA: true, transposeB: false, products: "matrix" } as const;
  const floats = { a: held(dims.m * dims.k, 6), b: held(dims.k * dims.n, 7), out: held(dims.m * dims.n, 8) };
  const scratch = new Float32Array(matmulScratch(dims, "hardware"));
  assert.ok(scratch.length > 0);
  await compare(floats, { scratch }, ["a", "b", "out"], ({ a, b, out, scratch }, halves) =>
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
      await compare(
        floats,
        others,
        ["x", "weight", "out"],
        ({ x, weight, out, expertOfBlock, sourceOfRow }, halves) =>
          groupedMatmul({ x, weight, out, expertOfBlock, sourceOfRow }, { ...dims, halves }, target),
        rows.usedRows * N,
      );
    });

    test(`${target} ${products}: weight gradient of ${gatherTopK ? "gathered" : "sorted"} rows`, async () => {
      const floats = { x: given(), dy: held(rows.maxRows * N, 4), out: held(3 * N * K, 5) };
      await compare(
        floats,
        others,
        ["x", "dy"],
        ({ x, dy, out, expertOffset, expertCount, trainableExperts, sourceOfRow }, halves) =>
          groupedWeightGradient(
            { x, dy, out, expertOffset, expertCount, trainableExperts, sourceOfRow },
            { slots: 3, n: N, k: K, gatherTopK, products, halves },
            target,
          ),
      );
    });
  }

test.run();
