import { test } from "uvu";
import * as assert from "uvu/assert";
import { gradientNorm, gradientNormReference, partialsOfCount, sumOfSquares } from "../../src/kernels/reduce.ts";
import { packStepScalars } from "../../src/kernels/step_scalars.ts";
import { compareWithTolerance, runCommands, testDevice } from "../support/gpu.ts";
import { randomValues, runTwice, unwritten } from "./run_twice.ts";

const UNIT = 2 ** -24;

/** Additions an element passes through: its lane's chunk, the lanes, the partials, their lanes. */
const depth = (count: number): number => 64 + 64 + Math.ceil(partialsOfCount(count) / 64) + 64;

test("the global norm and the clip factor of several gradients", async () => {
  for (const [lossScale, maxGradientNorm] of [
    [1, 0],
    [1, 5],
    [1, 1e6],
    [1024, 5],
    [1024, 0],
  ]) {
    const gradients = [4, 4100, 300_000].map((count, seed) => randomValues(count, seed).map((v) => v * lossScale));
    const counts = gradients.map((g) => partialsOfCount(g.length));
    const partialCount = counts.reduce((a, b) => a + b);
    const step = new Uint32Array(
      packStepScalars({ seed: 0, step: 0, lossScale, inverseTargetCount: 1, maxGradientNorm }).buffer,
    );
    const [g0, g1, g2] = gradients;
    const got = await runTwice({
      buffers: { g0, g1, g2, step, partials: unwritten(partialCount), out: unwritten(3) },
      commands: ({ g0, g1, g2, step, partials, out }) => [
        ...[g0, g1, g2].flatMap((x, i) => {
          const partialOffset = counts.slice(0, i).reduce((a, b) => a + b, 0);
          return sumOfSquares({ x, partials }, { count: gradients[i].length, partialOffset });
        }),
        ...gradientNorm({ partials, step, out }, { partialCount }),
      ],
    });
    const [norm, factor, finite] = gradientNormReference(gradients, { lossScale, maxGradientNorm });
    // All terms are positive: the relative error of the sum is that of its roundings; the root halves it, then
    // square root and divisions, 2.5 ulp each.
    const relative = (Math.sqrt(depth(300_000)) + 15) * UNIT;
    const expected = [norm, factor, finite, ...unwritten(0)];
    const label = `loss scale ${lossScale}, clip at ${maxGradientNorm}`;
    compareWithTolerance(got.out, expected, (i) => (i < 2 ? relative * expected[i] : 0), label);
    assert.equal([...got.partials.slice(-5)], [...unwritten(0)]);
  }
});

test("one gradient that is NaN or infinite, or too large to be squared, makes the norm not finite", async () => {
  for (const bad of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, 1e20]) {
    const x = randomValues(5000, 1);
    x[4999] = bad;
    const step = new Uint32Array(
      packStepScalars({ seed: 0, step: 0, lossScale: 1, inverseTargetCount: 1, maxGradientNorm: 1 }).buffer,
    );
    const { out } = await runTwice({
      buffers: { x, step, partials: unwritten(2), out: unwritten(3) },
      commands: ({ x, step, partials, out }) => [
        ...sumOfSquares({ x, partials }, { count: 5000, partialOffset: 0 }),
        ...gradientNorm({ partials, step, out }, { partialCount: 2 }),
      ],
    });
    assert.not.ok(Number.isFinite(out[0]), `norm with ${bad}`);
    assert.equal([...out.slice(1)], [0, 0, ...unwritten(0)], `factor and flag with ${bad}`);
  }
});

test("a long array leaves no more partials than one workgroup sums quickly", async () => {
  const count = 4096 * 4096 + 4;
  const x = new Float32Array(count).fill(1);
  x[count - 1] = 3;
  const partialCount = partialsOfCount(count);
  assert.is(partialCount, 2049);
  const { partials } = await runCommands(await testDevice(), {
    buffers: { x, partials: unwritten(partialCount) },
    commands: (names) => sumOfSquares(names, { count, partialOffset: 0 }),
  });
  // Integers: exact.
  assert.equal(partials, Float32Array.of(...new Float32Array(2048).fill(8192), 12, ...unwritten(0)));
});

test("elements that are no whole vec4f are refused", () => {
  assert.throws(() => sumOfSquares({ x: 0, partials: 1 }, { count: 5, partialOffset: 0 }), /5 elements/);
});

test.run();
