import { readFileSync } from "node:fs";
import { test } from "uvu";
import * as assert from "uvu/assert";
import { adamw, adamwReference } from "../../src/kernels/adamw.ts";
import { rounded } from "../../src/kernels/elementwise.ts";
import { sliceTables } from "../../src/kernels/slices.ts";
import { openSafetensors } from "../../src/trainer/formats/safetensors.ts";
import { compareWithTolerance } from "../support/gpu.ts";
import { randomValues, runTwice, unwritten } from "./run_twice.ts";

const UNIT = 2 ** -24;

// [slices, their size, trainable slices in slot order]
const CASES: [number, number, number[]][] = [
  [1, 1, [0]],
  [1, 203, [0]],
  [4, 12, [0, 1, 2, 3]],
  [5, 24, [3, 0]],
  [3, 7, [2]],
];

test("steps the trainable slices, each with its own scalars, and no other bit", async () => {
  for (const [slices, sliceSize, trainable] of CASES) {
    const slotCount = trainable.length;
    const compact = slotCount * sliceSize;
    const settings = { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 };
    const clip = Math.fround(0.3);
    const scalarOffset = 2;
    // Numbers that f32 holds exactly, so that only the kernel's own arithmetic differs.
    const perSlot = trainable.map((_, s) => ({
      learningRate: Math.fround(0.01 * (s + 1)),
      t: 3 + 10 * s,
      weightDecay: Math.fround(0.1 / (s + 1)),
      ...settings,
    }));
    const scalars = unwritten(4 * (scalarOffset + slotCount), 8);
    perSlot.forEach(({ learningRate, t, weightDecay }, s) => {
      scalars.set([learningRate, 1 / (1 - 0.9 ** t), 1 / (1 - 0.999 ** t), weightDecay], 4 * (scalarOffset + s));
    });
    const [table] = sliceTables(
      trainable.map((slice, s) => ({
        parameter: slice * sliceSize,
        gradient: s * sliceSize,
        size: sliceSize,
        scalar: scalarOffset + s,
      })),
    );
    const padded = (values: Float32Array): Float32Array => Float32Array.of(...values, ...unwritten(0));
    const parameter = padded(randomValues(slices * sliceSize, 1));
    const gradient = padded(randomValues(compact, 2));
    const m = padded(randomValues(compact, 3).map((x) => x / 10));
    const v = padded(randomValues(compact, 4).map((x) => x * x));
    const got = await runTwice({
      buffers: {
        parameter,
        gradient,
        m,
        v,
        slices: table.words,
        scalars,
        clip: Float32Array.of(7, clip, 1),
      },
      commands: (names) => adamw(names, table, settings),
    });
    const expected = [parameter, m, v].map((array) => Float64Array.from(array));
    const tolerance = [parameter, m, v].map((array) => new Float64Array(array.length));
    trainable.forEach((slice, s) => {
      const p = expected[0].subarray(slice * sliceSize, (slice + 1) * sliceSize);
      const [mine, squares] = [1, 2].map((i) => expected[i].subarray(s * sliceSize, (s + 1) * sliceSize));
      const g = Array.from(gradient.slice(s * sliceSize, (s + 1) * sliceSize), (x) => x * clip);
      for (let i = 0; i < sliceSize; i++) {
        // Per rounding one unit of the terms: 4 in m (β, the product g, two sums), 5 in v.
        tolerance[1][s * sliceSize + i] = 4 * UNIT * (Math.abs(mine[i]) + Math.abs(g[i]));
        tolerance[2][s * sliceSize + i] = 5 * UNIT * (squares[i] + g[i] ** 2);
      }
      const terms = g.map((x, i) => 0.9 * Math.abs(mine[i]) + 0.1 * Math.abs(x));
      adamwReference(p, g, mine, squares, perSlot[s]);
      const { learningRate, t } = perSlot[s];
      for (let i = 0; i < sliceSize; i++) {
        // The step is lr·m̂/√v̂: the error of m relative to its terms (which may cancel), 16 roundings in all with
        // division and root at 2.5 ulp; then decay and difference round the parameter.
        const step = (learningRate * terms[i]) / (1 - 0.9 ** t) / Math.sqrt(squares[i] / (1 - 0.999 ** t));
        tolerance[0][slice * sliceSize + i] = UNIT * (24 * step + 4 * Math.abs(p[i]));
      }
    });
    const label = `${slices}×${sliceSize}, slices ${trainable}`;
    [got.parameter, got.m, got.v].forEach((array, a) => {
      compareWithTolerance(array, expected[a], (i) => tolerance[a][i], `${["parameter", "m", "v"][a]} of ${label}`);
    });
  }
});

test("a gradient that is not finite changes nothing", async () => {
  const parameter = randomValues(24, 1);
  const m = randomValues(24, 2);
  const v = randomValues(24, 3).map((x) => x * x);
  const [table] = sliceTables([{ parameter: 0, gradient: 0, size: 24, scalar: 0 }]);
  const got = await runTwice({
    buffers: {
      parameter,
      gradient: new Float32Array(24).fill(Number.NaN),
      m,
      v,
      slices: table.words,
      scalars: Float32Array.of(0.1, 1, 1, 0.1),
      clip: Float32Array.of(Number.NaN, 0, 0),
    },
    commands: (names) => adamw(names, table, { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 }),
  });
  for (const [name, x] of Object.entries({ parameter, m, v })) assert.equal(got[name as "m"], x, name);
});

test("a copy gets what rounding the parameters would make of them, and only where slices are", async () => {
  const [slices, sliceSize, trainable] = [3, 8, [2, 0]];
  const [table] = sliceTables(
    trainable.map((slice, s) => ({
      parameter: slice * sliceSize,
      gradient: s * sliceSize,
      size: sliceSize,
      scalar: 0,
    })),
  );
  const compact = trainable.length * sliceSize;
  const buffers = {
    parameter: randomValues(slices * sliceSize, 1),
    gradient: randomValues(compact, 2),
    m: randomValues(compact, 3),
    v: randomValues(compact, 4).map((x) => x * x),
    slices: table.words,
    scalars: Float32Array.of(0.1, 1, 1, 0.1),
  };
  const settings = { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 };
  const copy = new Uint32Array((slices * sliceSize) / 2).fill(0x12345678);
  const step = (finite: number) =>
    runTwice({
      buffers: { ...buffers, clip: Float32Array.of(7, 0.3, finite), copy },
      commands: (names) => adamw(names, table, settings),
    });
  const got = await step(1);
  const { copy: _, ...withoutCopy } = { ...buffers, clip: Float32Array.of(7, 0.3, 1), copy };
  const plain = await runTwice({ buffers: withoutCopy, commands: (names) => adamw(names, table, settings) });
  assert.equal(got.parameter, plain.parameter);
  const { out } = await runTwice({
    buffers: { x: got.parameter as Float32Array<ArrayBuffer>, out: copy },
    commands: (names) => rounded(names, { count: slices * sliceSize, halves: ["out"] }),
  });
  const untouched = [sliceSize / 2, sliceSize] as const; // words of slice 1
  const expected = Uint32Array.from(out as Uint32Array);
  expected.fill(0x12345678, ...untouched);
  assert.equal(got.copy, expected);
  assert.equal((await step(0)).copy, copy, "nothing where the gradient is not finite");
  const [odd] = sliceTables([{ parameter: 0, gradient: 0, size: 3, scalar: 0 }]);
  assert.throws(() => adamw({ ...buffers, clip: copy, copy } as never, odd, settings), /whole vec4f/);
});

test("the definition is optax's: the fixture's trajectory from its own gradients", async () => {
  const folder = new URL("../../../shared/fixtures/optimizers/adamw/", import.meta.url);
  const settings = JSON.parse(readFileSync(new URL("case.json", folder), "utf8"));
  const file = await openSafetensors(new URL("trajectory.safetensors", folder).pathname);
  for (const name of Object.keys(settings.shapes)) {
    const p = Float64Array.from((await file.read(`param/0/${name}`)) as Float32Array);
    const m = new Float64Array(p.length);
    const v = new Float64Array(p.length);
    for (let t = 1; t <= settings.steps; t++) {
      const gradient = (await file.read(`grad/${t}/${name}`)) as Float32Array;
      adamwReference(p, gradient, m, v, {
        learningRate: settings.learning_rate,
        t,
        weightDecay: settings.weight_decay,
        beta1: settings.b1,
        beta2: settings.b2,
        epsilon: settings.eps,
      });
      const expected = (await file.read(`param/${t}/${name}`)) as Float32Array;
      // Start, gradients and result are rounded to f32 in the file.
      compareWithTolerance(p, expected, (i) => 4 * UNIT * Math.abs(expected[i]) + 1e-8, `${name} after step ${t}`);
    }
  }
});

test.run();
