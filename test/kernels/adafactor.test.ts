import { readFileSync } from "node:fs";
import { test } from "uvu";
import * as assert from "uvu/assert";
import { type AdafactorSlice, adafactorReference } from "../../src/kernels/adafactor.reference.ts";
import { adafactor, adafactorFactored } from "../../src/kernels/adafactor.ts";
import { adafactorTable } from "../../src/kernels/adafactor_slices.ts";
import { openSafetensors } from "../../src/trainer/formats/safetensors.ts";
import { compareWithTolerance } from "../support/gpu.ts";
import { randomValues, runTwice, unwritten } from "./run_twice.ts";

const UNIT = 2 ** -24;
const SETTINGS = { decayRate: 0.8, clipThreshold: 1, epsilon: 1e-30, minParameterScale: 1e-3 };

interface Case {
  slices: number;
  rows: number;
  columns: number;
  /** Trainable slices in slot order. */
  trainable: number[];
  /** 0 leaves the parameter smaller than minParameterScale. */
  scale: number;
  factored: boolean;
}
const CASES: Case[] = [
  { slices: 1, rows: 1, columns: 1, trainable: [0], scale: 1, factored: false },
  { slices: 1, rows: 1, columns: 9001, trainable: [0], scale: 1e-5, factored: false },
  { slices: 5, rows: 1, columns: 24, trainable: [3, 0], scale: 1, factored: false },
  { slices: 1, rows: 1, columns: 5, trainable: [0], scale: 1, factored: true },
  { slices: 1, rows: 131, columns: 67, trainable: [0], scale: 1e-5, factored: true },
  { slices: 4, rows: 64, columns: 65, trainable: [1, 2, 3], scale: 1, factored: true },
  { slices: 3, rows: 3, columns: 130, trainable: [2, 0], scale: 1, factored: true },
];

/** Arrays of a case as a kernel sees them, guarded. */
function arrays({ slices, rows, columns, trainable, scale, factored }: Case, clip: number[]) {
  const table = adafactorTable([
    trainable.map((slice, s) => ({
      parameter: slice * rows * columns,
      gradient: s * rows * columns,
      rows,
      columns,
      row: s * (factored ? rows : columns),
      column: s * columns,
      scalar: 2 + s,
    })),
  ]);
  const slots = trainable.length;
  const size = rows * columns;
  const guarded = (values: Float32Array): Float32Array => Float32Array.of(...values, ...unwritten(0));
  const squares = (count: number, seed: number) => guarded(randomValues(count, seed).map((x) => 0.01 + x * x));
  const { scratch } = table;
  const common = {
    parameter: guarded(randomValues(slices * size, 1).map((x) => x * scale)),
    gradient: guarded(randomValues(slots * size, 2)),
    slices: table.slices,
    tensors: table.tensors,
    clip: Float32Array.from(clip),
    partials: unwritten(scratch.partials),
    steps: unwritten(scratch.steps),
  };
  const row = squares(slots * rows, 3);
  const column = squares(slots * columns, 4);
  const v = squares(slots * size, 5);
  const factors = { row, column, rowMean: unwritten(scratch.rowMean), columnSums: unwritten(scratch.columnSums) };
  return { table, common, state: factored ? factors : { v } };
}

for (const c of CASES) {
  const { slices, rows, columns, trainable, factored } = c;
  const label = `${slices}×${rows}×${columns}, slices ${trainable}, ${factored ? "factored" : "not factored"}`;
  const size = rows * columns;
  // A row of scalars per slot: each has a rate, a step count and a decay of its own.
  const perSlot = trainable.map((_, s) => ({
    learningRate: Math.fround(0.01 * (s + 1)),
    t: 3 + 10 * s,
    weightDecay: Math.fround(0.01 / (s + 1)),
  }));
  const scalars = unwritten(4 * (2 + trainable.length), 8);
  perSlot.forEach(({ learningRate, t, weightDecay }, s) => {
    scalars.set([learningRate, 1 - t ** -0.8, t ** -0.8, weightDecay], 4 * (2 + s));
  });
  const run = (clip: number[]) => {
    const { table, common, state } = arrays(c, clip);
    if ("v" in state) {
      const buffers = { ...common, ...state, scalars };
      return runTwice({ buffers, commands: (names) => adafactor(names, table, SETTINGS) });
    }
    const buffers = { ...common, ...state, scalars };
    return runTwice({ buffers, commands: (names) => adafactorFactored(names, table, SETTINGS) });
  };

  test(`${label}: steps the trainable slices, and no other bit`, async () => {
    const clip = Math.fround(0.3);
    const got: Record<string, ArrayLike<number>> = await run([7, clip, 1]);
    const { common, state } = arrays(c, [7, clip, 1]);
    const before = common.parameter;
    const expected = Float64Array.from(before);
    const moments: Record<string, Float64Array> = Object.fromEntries(
      Object.entries("v" in state ? { v: state.v } : { row: state.row, column: state.column }).map(([name, x]) => [
        name,
        Float64Array.from(x),
      ]),
    );
    const tolerance = new Float64Array(expected.length);
    // Terms a mean passes through, all positive: 64 per lane or block, then the lanes or blocks.
    const additions = 64 + 64 + Math.ceil(Math.max(rows, columns) / 64);
    const relative = (Math.sqrt(additions) + 16) * UNIT;
    const parts = trainable.map((slice, s): AdafactorSlice => {
      const slot = (x: Float64Array, n: number) => x.subarray(s * n, (s + 1) * n);
      return {
        ...perSlot[s],
        parameter: expected.subarray(slice * size, (slice + 1) * size),
        gradient: Array.from(common.gradient.slice(s * size, (s + 1) * size), (g) => g * clip),
        moments: factored
          ? { row: slot(moments.row, rows), column: slot(moments.column, columns) }
          : { v: slot(moments.v, size) },
      };
    });
    adafactorReference(parts, SETTINGS);
    trainable.forEach((slice, s) => {
      for (let i = slice * size; i < (slice + 1) * size; i++) {
        // The step carries the errors of two moments, of both root mean squares and of 16 roundings, 2.5 units each;
        // then decay and difference round the parameter.
        const step = Math.abs(expected[i] - before[i] * (1 - perSlot[s].weightDecay));
        tolerance[i] = (4 * relative + 40 * UNIT) * step + 4 * UNIT * Math.abs(before[i]);
      }
    });
    compareWithTolerance(got.parameter, expected, (i) => tolerance[i], "parameter");
    for (const [name, moment] of Object.entries(moments))
      compareWithTolerance(got[name], moment, (i) => relative * moment[i], name);
  });

  test(`${label}: a gradient that is not finite changes nothing`, async () => {
    const got: Record<string, ArrayLike<number>> = await run([Number.NaN, 0, 0]);
    const { common, state } = arrays(c, [Number.NaN, 0, 0]);
    for (const [name, x] of Object.entries({ ...common, ...state, scalars }))
      if (name !== "clip") assert.equal(got[name], x, name);
  });
}

test("tensors that are stepped together get the bits that each gets alone", async () => {
  const clip = Float32Array.of(7, 0.5, 1);
  const scalars = Float32Array.from({ length: 4 * 4 }, (_, i) => [0.01 * (i + 1), 0.6, 0.4, 0.001][i % 4]);
  for (const factored of [true, false]) {
    // Every tensor's slices, gradients and moments lie 5 elements behind those of the one before.
    const cases = CASES.filter((c) => c.factored === factored);
    const places = { parameter: 0, gradient: 0, row: 0, column: 0 };
    const tensors = cases.map(({ slices, rows, columns, trainable }) => {
      const perSlice = factored ? rows : rows * columns;
      const members = trainable.map((slice, s) => ({
        parameter: places.parameter + slice * rows * columns,
        gradient: places.gradient + s * rows * columns,
        rows,
        columns,
        row: places.row + s * perSlice,
        column: places.column + s * columns,
        scalar: 1 + (s % 3),
      }));
      places.parameter += slices * rows * columns + 5;
      places.gradient += trainable.length * rows * columns + 5;
      places.row += trainable.length * perSlice + 5;
      places.column += trainable.length * columns + 5;
      return members;
    });
    const moments = (count: number, seed: number) => randomValues(count, seed).map((x) => 0.01 + x * x);
    const parameter = randomValues(places.parameter, 1);
    const [row, column] = [moments(places.row, 3), moments(places.column, 4)];
    const step = (wanted: typeof tensors) => {
      const table = adafactorTable(wanted);
      const common = {
        parameter,
        gradient: randomValues(places.gradient, 2),
        slices: table.slices,
        tensors: table.tensors,
        scalars,
        clip,
        partials: unwritten(table.scratch.partials),
        steps: unwritten(table.scratch.steps),
      };
      if (!factored) {
        const buffers = { ...common, v: row };
        return runTwice({ buffers, commands: (names) => adafactor(names, table, SETTINGS) });
      }
      const rowMean = unwritten(table.scratch.rowMean);
      const columnSums = unwritten(table.scratch.columnSums);
      const buffers = { ...common, row, column, rowMean, columnSums };
      return runTwice({ buffers, commands: (names) => adafactorFactored(names, table, SETTINGS) });
    };
    const together: Record<string, ArrayLike<number>> = await step(tensors);
    const untouched: Record<string, Float32Array> = { parameter, row, column, v: row };
    const alone: Record<string, ArrayLike<number>>[] = [];
    for (const tensor of tensors) alone.push(await step([tensor]));
    for (const name of ["parameter", ...(factored ? ["row", "column"] : ["v"])]) {
      // Each element is as the one call left it that moved it, or as it was.
      const expected = Array.from(untouched[name], (x, i) => {
        const moved = alone.filter((outcome) => outcome[name][i] !== x);
        assert.ok(moved.length <= 1, `${name} ${i} belongs to one tensor`);
        return moved.length > 0 ? moved[0][name][i] : x;
      });
      assert.equal(Array.from(together[name]), expected, name);
      assert.not.equal(expected, Array.from(untouched[name]), `${name} moved`);
    }
  }
});

test("the definition is optax's: the fixture's trajectory from its own gradients", async () => {
  const folder = new URL("../../../shared/fixtures/optimizers/adafactor/", import.meta.url);
  const settings = JSON.parse(readFileSync(new URL("case.json", folder), "utf8"));
  const file = await openSafetensors(new URL("trajectory.safetensors", folder).pathname);
  const read = async (name: string) => (await file.read(name)) as Float32Array;
  const shapes: [string, number[]][] = Object.entries(settings.shapes);
  for (const [name, shape] of shapes) {
    const p = Float64Array.from(await read(`param/0/${name}`));
    const experts = shape.length === 3 ? shape[0] : 1;
    const size = p.length / experts;
    const [rows, columns] = shape.slice(-2);
    const factored = shape.length > 1 && Math.min(rows, columns) >= settings.min_dim_size_to_factor;
    const moments = Array.from({ length: experts }, () =>
      factored ? { row: new Float64Array(rows), column: new Float64Array(columns) } : { v: new Float64Array(size) },
    );
    for (let t = 1; t <= settings.steps; t++) {
      const gradient = await read(`grad/${t}/${name}`);
      const slices = moments.map((moment, e) => ({
        parameter: p.subarray(e * size, (e + 1) * size),
        gradient: gradient.subarray(e * size, (e + 1) * size),
        moments: moment,
        learningRate: settings.learning_rate,
        weightDecay: settings.weight_decay,
        t,
      }));
      adafactorReference(slices, {
        decayRate: settings.decay_rate,
        clipThreshold: settings.clipping_threshold,
        epsilon: settings.eps,
        minParameterScale: settings.min_parameter_scale,
      });
      const expected = await read(`param/${t}/${name}`);
      // Start, gradients and result are rounded to f32 in the file.
      compareWithTolerance(p, expected, (i) => 4 * UNIT * Math.abs(expected[i]) + 1e-8, `${name} after step ${t}`);
    }
  }
  await file.close();
});

test.run();
