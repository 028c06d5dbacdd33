// Kernels that can read and write f16: whatever they compute, from values that f16 holds they give what they give in f32,
// rounded to f16, bit for bit. That their f32 is right is the other tests' business.

import { test } from "uvu";
import { dropout, residualDropout } from "../../src/kernels/dropout.ts";
import { add, addInto, reluGradient } from "../../src/kernels/elementwise.ts";
import { embeddingForward } from "../../src/kernels/embedding.ts";
import { expertScale, expertScaleGradient } from "../../src/kernels/expert_scale.ts";
import { gatedGelu, gatedGeluGateGradient, gatedGeluUpGradient } from "../../src/kernels/gated_gelu.ts";
import { jitter } from "../../src/kernels/jitter.ts";
import type { Command } from "../../src/kernels/kernel.ts";
import { moeCombine, moeCombineGatesGradient, moeCombineRowsGradient } from "../../src/kernels/moe_combine.ts";
import { packStepScalars } from "../../src/kernels/step_scalars.ts";
import type { Halves } from "../../src/kernels/storage.ts";
import type { TestArray } from "../support/gpu.ts";
import { held, sameInHalves } from "./in_halves.ts";

// Four experts in blocks of 4 rows, two assignments of each of 10 tokens; one is dropped.
const WIDTH = 24;
const TOKENS = 10;
const MAX_ROWS = 28;
const COUNTS = [6, 0, 9, 4];
const OFFSETS = [0, 8, 8, 20, 24];
const sourceOfRow = new Uint32Array(MAX_ROWS).fill(0xffffffff);
const rowOfAssignment = new Uint32Array(2 * TOKENS).fill(0xffffffff);
COUNTS.flatMap((count, e) => Array.from({ length: count }, (_, r) => OFFSETS[e] + r)).forEach((row, assignment) => {
  sourceOfRow[row] = assignment;
  rowOfAssignment[assignment] = row;
});
const GIVEN: Record<string, TestArray> = {
  sourceOfRow,
  rowOfAssignment,
  expertOfBlock: Uint32Array.from([0, 0, 2, 2, 2, 3, 4]),
  expertOffset: Uint32Array.from(OFFSETS),
  expertCount: Uint32Array.from(COUNTS),
  trainableExperts: Uint32Array.from([2, 0]),
  ids: Uint32Array.from({ length: TOKENS }, (_, i) => (5 * i) % 7),
  step: new Uint32Array(
    packStepScalars({ seed: 3, step: 2, lossScale: 1, inverseTargetCount: 1, maxGradientNorm: 0 }).buffer,
  ),
};
const moe = { tokens: TOKENS, topK: 2, width: WIDTH, maxRows: MAX_ROWS, rowTile: 4, experts: 4 };
const [rows, tokens, scales] = [MAX_ROWS * WIDTH, TOKENS * WIDTH, 4 * WIDTH];
const random = { count: tokens, use: 1 };

type Names = Readonly<Record<string, string>>;
type Case = readonly [
  name: string,
  /** Sizes of what is read and written as f16. */
  reads: Readonly<Record<string, number>>,
  writes: Readonly<Record<string, number>>,
  /** Sizes of what stays f32. */
  floats: Readonly<Record<string, number>>,
  commands: (b: Names, halves: Halves) => Command<string>[],
];
/** What a case writes is under one of these names. */
const OUTPUTS = ["out", "dRows", "dGates"];

const CASES: readonly Case[] = [
  [
    "add",
    { a: tokens, b: tokens },
    { out: tokens },
    {},
    ({ a, b, out }, halves) => add({ a, b, out }, { count: tokens, halves }),
  ],
  [
    "addInto",
    { x: tokens },
    { out: tokens },
    {},
    ({ x, out }, halves) => addInto({ x, out }, { count: tokens, halves }),
  ],
  [
    "reluGradient",
    { y: tokens, dOut: tokens },
    { out: tokens },
    {},
    ({ y, dOut, out }, halves) => reluGradient({ y, dOut, out }, { count: tokens, halves }),
  ],
  [
    "gatedGelu",
    { gate: tokens, up: tokens },
    { out: tokens },
    {},
    ({ gate, up, out }, halves) => gatedGelu({ gate, up, out }, { count: tokens, halves }),
  ],
  [
    "gatedGeluGateGradient",
    { gate: tokens, up: tokens, dOut: tokens },
    { out: tokens },
    {},
    ({ gate, up, dOut, out }, halves) => gatedGeluGateGradient({ gate, up, dOut, out }, { count: tokens, halves }),
  ],
  [
    "gatedGeluUpGradient",
    { gate: tokens, dOut: tokens },
    { out: tokens },
    {},
    ({ gate, dOut, out }, halves) => gatedGeluUpGradient({ gate, dOut, out }, { count: tokens, halves }),
  ],
  [
    "dropout",
    { x: tokens },
    { out: tokens },
    {},
    ({ x, step, out }, halves) => dropout({ x, step, out }, { ...random, rate: 0.3, halves }),
  ],
  [
    "residualDropout",
    { x: tokens },
    {},
    { residual: tokens, out: tokens },
    ({ x, step, residual, out }, halves) =>
      residualDropout({ x, step, residual, out }, { ...random, rate: 0.3, halves }),
  ],
  [
    "jitter",
    { x: tokens },
    { out: tokens },
    {},
    ({ x, step, out }, halves) => jitter({ x, step, out }, { ...random, epsilon: 0.1, halves }),
  ],
  [
    "embeddingForward",
    { table: 7 * WIDTH },
    {},
    { out: tokens },
    ({ table, ids, out }, halves) =>
      embeddingForward({ table, ids, out }, { tokens: TOKENS, width: WIDTH, vocabulary: 7, halves }),
  ],
  [
    "expertScale",
    { x: rows },
    { out: rows },
    { scale: scales },
    ({ x, scale, expertOfBlock, out }, halves) => expertScale({ x, scale, expertOfBlock, out }, { ...moe, halves }),
  ],
  [
    "expertScaleGradient",
    { x: rows, dOut: rows },
    {},
    { out: 2 * WIDTH },
    ({ x, dOut, expertOffset, expertCount, trainableExperts, out }, halves) =>
      expertScaleGradient(
        { x, dOut, expertOffset, expertCount, trainableExperts, out },
        { slots: 2, width: WIDTH, halves },
      ),
  ],
  [
    "moeCombine",
    { rows },
    { out: tokens },
    { gates: 2 * TOKENS },
    ({ rows, gates, rowOfAssignment, out }, halves) =>
      moeCombine({ rows, gates, rowOfAssignment, out }, { ...moe, halves }),
  ],
  [
    "moeCombineRowsGradient",
    { dOut: tokens },
    { dRows: rows },
    { gates: 2 * TOKENS },
    ({ dOut, gates, sourceOfRow, dRows }, halves) =>
      moeCombineRowsGradient({ dOut, gates, sourceOfRow, dRows }, { ...moe, halves }),
  ],
  [
    "moeCombineGatesGradient",
    { dOut: tokens, rows },
    {},
    { dGates: 2 * TOKENS },
    ({ dOut, rows, rowOfAssignment, dGates }, halves) =>
      moeCombineGatesGradient({ dOut, rows, rowOfAssignment, dGates }, { ...moe, halves }),
  ],
];

for (const [name, reads, writes, floats, commands] of CASES)
  test(name, async () => {
    const sizes = Object.entries({ ...reads, ...writes, ...floats });
    const values = Object.fromEntries(sizes.map(([buffer, size], i) => [buffer, held(size, i + 1)]));
    const outputs = Object.fromEntries(sizes.filter(([buffer]) => OUTPUTS.includes(buffer)));
    const halves = [...Object.keys(reads), ...Object.keys(writes)];
    await sameInHalves<string, string>(values, GIVEN, halves, outputs, commands);
  });

test.run();
