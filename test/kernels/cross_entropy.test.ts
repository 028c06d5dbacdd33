import { suite } from "uvu";
import * as assert from "uvu/assert";
import { argmaxRows, crossEntropy, crossEntropyReference, IGNORED_LABEL } from "../../src/kernels/cross_entropy.ts";
import { packStepScalars } from "../../src/kernels/step_scalars.ts";
import {
  EPSILON,
  floatOutput,
  INTEGER_SENTINEL,
  integerOutput,
  randomNumbers,
  SENTINEL,
  uniform,
  withGuard,
} from "../support/arrays.ts";
import { compareWithTolerance } from "../support/gpu.ts";
import { asHalves, fromHalves } from "../support/halves.ts";
import { runTwice } from "./run_twice.ts";

const test = suite("cross_entropy");

const LOSS_SCALE = 4;
const INVERSE_TARGETS = 1 / 8;
const step = new Float32Array(
  packStepScalars({ step: 0, seed: 0, lossScale: LOSS_SCALE, inverseTargetCount: INVERSE_TARGETS, maxGradientNorm: 0 })
    .buffer,
);

const cases = [
  { what: "one row, one token", rows: 1, vocabulary: 1, rowOffset: 0 },
  { what: "fewer tokens than lanes", rows: 3, vocabulary: 37, rowOffset: 2 },
  { what: "exactly the lanes", rows: 2, vocabulary: 64, rowOffset: 0 },
  { what: "odd vocabulary", rows: 5, vocabulary: 901, rowOffset: 4 },
  { what: "every row ignored", rows: 3, vocabulary: 65, rowOffset: 0, ignored: 1 },
  { what: "large logits", rows: 4, vocabulary: 130, rowOffset: 1, range: 80 },
  { what: "four at a time", rows: 3, vocabulary: 1028, rowOffset: 1 },
];

for (const { what, rows, vocabulary, rowOffset, ignored = 0.3, range = 6 } of cases)
  for (const gradient of [false, true]) {
    test(`losses, hits and gradients agree with float64: ${what}${gradient ? ", gradient" : ""}`, async () => {
      const random = randomNumbers(rows * 1000 + vocabulary);
      const logits = uniform(rows * vocabulary, range, random);
      const total = rowOffset + rows;
      const labels = Int32Array.from({ length: total }, () =>
        random() < ignored ? IGNORED_LABEL : Math.floor(random() * vocabulary),
      );
      // The first row of the chunk predicts its label.
      if (ignored < 1) {
        labels[rowOffset] = vocabulary >> 1;
        logits[vocabulary >> 1] = range + 1;
      }
      const out = await runTwice({
        buffers: {
          logits: Float32Array.from(withGuard(logits, floatOutput(logits.length))),
          labels,
          step,
          rowLoss: floatOutput(total),
          rowCorrect: integerOutput(total),
          argmax: integerOutput(total),
        },
        commands: (b) => [
          ...argmaxRows({ logits: b.logits, out: b.argmax }, { rows, vocabulary, rowOffset }),
          ...crossEntropy(b, { rows, vocabulary, rowOffset, gradient }),
        ],
      });
      const scale = LOSS_SCALE * INVERSE_TARGETS;
      const expected = crossEntropyReference(logits, labels.subarray(rowOffset), { rows, vocabulary, scale });

      const before = <X>(x: X) => Array.from({ length: rowOffset }, () => x);
      assert.equal(
        Array.from(out.argmax),
        withGuard([...before(INTEGER_SENTINEL), ...expected.argmax], out.argmax),
        "argmax",
      );
      assert.equal(
        Array.from(out.rowCorrect),
        withGuard([...before(INTEGER_SENTINEL), ...expected.rowCorrect], out.rowCorrect),
        "rowCorrect",
      );
      // exp: 3 + 2|x| units for |x| up to 2 · range, whose own rounding is range · EPSILON; a sum of equal signs over
      // vocabulary / 64 terms and 64 lanes; log 3 units or 2^-21.
      const exp = EPSILON * (2 * (3 + 4 * range) + 2 * range);
      const relative = 2 * exp + EPSILON * (vocabulary / 64 + 64 + 8);
      const losses = [...before(Math.fround(SENTINEL)), ...expected.rowLoss];
      compareWithTolerance(
        out.rowLoss,
        withGuard(losses, out.rowLoss),
        (i) =>
          i < rowOffset || i >= total || labels[i] === IGNORED_LABEL
            ? 0
            : relative + 2 ** -21 + 16 * EPSILON * (range + Math.log(vocabulary)),
        "rowLoss",
      );
      compareWithTolerance(
        out.logits,
        withGuard(gradient ? expected.dLogits : logits, out.logits),
        (i) => {
          if (!gradient || i >= logits.length || labels[rowOffset + Math.floor(i / vocabulary)] === IGNORED_LABEL)
            return 0;
          const isLabel = labels[rowOffset + Math.floor(i / vocabulary)] === i % vocabulary;
          const p = expected.dLogits[i] / scale + Number(isLabel);
          // Anything below 2^-126 may be flushed to zero.
          return scale * (relative * p + 4 * EPSILON * Number(isLabel)) + 2 ** -126;
        },
        "logits",
      );
    });
  }

const terms = [
  { labelSmoothing: 0.1, vocabularyZ: 0 },
  { labelSmoothing: 0, vocabularyZ: 1e-2 },
  { labelSmoothing: 0.3, vocabularyZ: 1e-4 },
];
for (const { labelSmoothing, vocabularyZ } of terms)
  for (const gradient of [false, true])
    test(`label smoothing ${labelSmoothing}, z-loss ${vocabularyZ}${gradient ? ", gradient" : ""}: agree with float64`, async () => {
      const [rows, vocabulary, rowOffset, range] = [5, 131, 2, 6];
      const total = rowOffset + rows;
      const random = randomNumbers(vocabulary);
      const logits = uniform(rows * vocabulary, range, random);
      const labels = Int32Array.from({ length: total }, (_, r) => (r === 4 ? IGNORED_LABEL : (r * 29) % vocabulary));
      const out = await runTwice({
        buffers: {
          logits: Float32Array.from(withGuard(logits, floatOutput(logits.length))),
          labels,
          step,
          rowLoss: floatOutput(total),
          rowCorrect: integerOutput(total),
          rowTerms: floatOutput(2 * total),
        },
        commands: (b) => crossEntropy(b, { rows, vocabulary, rowOffset, gradient, labelSmoothing, vocabularyZ }),
      });
      const scale = LOSS_SCALE * INVERSE_TARGETS;
      const dims = { rows, vocabulary, scale, labelSmoothing, vocabularyZ };
      const expected = crossEntropyReference(logits, labels.subarray(rowOffset), dims);
      const exp = EPSILON * (2 * (3 + 4 * range) + 2 * range);
      const relative = 2 * exp + EPSILON * (vocabulary / 64 + 64 + 8);
      const logSumExp = relative + 2 ** -21 + 16 * EPSILON * (range + Math.log(vocabulary));
      // What is reported as the loss stays the plain cross-entropy.
      const before = (n: number) => Array.from({ length: n }, () => Math.fround(SENTINEL));
      compareWithTolerance(
        out.rowLoss,
        withGuard([...before(rowOffset), ...expected.rowLoss], out.rowLoss),
        (i) => (i < rowOffset || i >= total || labels[i] === IGNORED_LABEL ? 0 : logSumExp),
        "rowLoss",
      );
      // The surplus: a mean of numbers up to 2 · range in 64 + vocabulary / 64 roundings. The square: twice the
      // logarithm's error times itself, at most range + log(vocabulary).
      const largest = range + Math.log(vocabulary);
      compareWithTolerance(
        out.rowTerms,
        withGuard([...before(2 * rowOffset), ...expected.rowTerms], out.rowTerms),
        (i) => {
          if (i < 2 * rowOffset || i >= 2 * total || labels[i >> 1] === IGNORED_LABEL) return 0;
          return i % 2 === 0
            ? labelSmoothing * 2 * range * EPSILON * (vocabulary / 64 + 64 + 8)
            : 2 * largest * logSumExp + EPSILON * largest ** 2;
        },
        "rowTerms",
      );
      compareWithTolerance(
        out.logits,
        withGuard(gradient ? expected.dLogits : logits, out.logits),
        (i) => {
          const row = rowOffset + Math.floor(i / vocabulary);
          if (!gradient || i >= logits.length || labels[row] === IGNORED_LABEL) return 0;
          const target = (1 - labelSmoothing) * Number(labels[row] === i % vocabulary) + labelSmoothing / vocabulary;
          const softmax = Math.abs(expected.dLogits[i] / scale + target);
          return scale * ((relative + 2 * vocabularyZ * logSumExp + 4 * EPSILON) * softmax + 6 * EPSILON * target);
        },
        "logits",
      );
    });

for (const labelSmoothing of [0, 0.1])
  test(`the gradient in a buffer of its own is the one in the logits' place, rounded to f16, smoothing ${labelSmoothing}`, async () => {
    const [rows, vocabulary] = [3, 1028];
    const logits = uniform(rows * vocabulary, 6, randomNumbers(1));
    const labels = Int32Array.of(5, IGNORED_LABEL, 1027);
    const d_logits = new Uint32Array((rows * vocabulary) / 2 + 1).fill(INTEGER_SENTINEL);
    const buffers = { labels, step, rowLoss: floatOutput(rows), rowCorrect: integerOutput(rows) };
    const own = await runTwice({
      buffers: { ...buffers, logits, dLogits: d_logits, rowTerms: floatOutput(2 * rows) },
      commands: (b) => crossEntropy(b, { rows, vocabulary, rowOffset: 0, gradient: true, labelSmoothing }),
    });
    const inPlace = await runTwice({
      buffers: { ...buffers, logits, rowTerms: floatOutput(2 * rows) },
      commands: (b) => crossEntropy(b, { rows, vocabulary, rowOffset: 0, gradient: true, labelSmoothing }),
    });
    assert.equal(own.logits, logits, "logits are left");
    assert.equal(own.rowLoss, inPlace.rowLoss);
    assert.equal(fromHalves(own.dLogits.slice(0, -1)), asHalves(inPlace.logits));
    assert.is(own.dLogits.at(-1), INTEGER_SENTINEL, "nothing is written behind");
  });

test("the lowest index wins among equal logits, within a lane and across lanes", async () => {
  const vocabulary = 200;
  const highest = [
    [0],
    [199, 7],
    [130, 66, 2],
    [70, 69],
    [65, 1, 129],
    Array.from({ length: vocabulary }, (_, c) => c),
  ];
  const logits = new Float32Array(highest.length * vocabulary).fill(-5);
  highest.forEach((columns, row) => {
    for (const c of columns) logits[row * vocabulary + c] = -1;
  });
  const out = await runTwice({
    buffers: { logits, out: integerOutput(highest.length) },
    commands: (b) => argmaxRows(b, { rows: highest.length, vocabulary, rowOffset: 0 }),
  });
  const lowest = highest.map((columns) => Math.min(...columns));
  assert.equal(Array.from(out.out), withGuard(lowest, out.out));
});

test.run();
