import { test } from "uvu";
import * as assert from "uvu/assert";
import { randomIntegers } from "../../clients/study/random.ts";
import type { CellResult, CellSettings } from "../../clients/study/results.ts";
import {
  axisValues,
  cellsOf,
  estimate,
  minus,
  paired,
  quantile,
  seedDifferences,
} from "../../clients/study/statistics.ts";
import { allOf, cellResult, planOf } from "./support/study_results.ts";

/** A cell per seed, of one score each. */
const cells = (settings: Partial<CellSettings>, scores: readonly number[]): CellResult[] =>
  scores.map((score, seed) => cellResult({ ...settings, seed }, { score }));

test("quantiles interpolate as numpy's", () => {
  for (const [share, expected] of [
    [0, 1],
    [0.025, 1.1],
    [0.5, 3],
    [0.975, 8.6],
    [1, 9],
  ])
    assert.ok(Math.abs(quantile([1, 2, 3, 5, 9], share) - expected) < 1e-12, `${share}`);
});

test("random integers are uniform, a function of their seed, and not those of the seed beside it", () => {
  const drawn = (seed: number, n: number) => {
    const draw = randomIntegers(seed);
    return Array.from({ length: n }, () => draw(7));
  };
  const counts = Array.from({ length: 7 }, () => 0);
  for (const n of drawn(0, 70_000)) counts[n]++;
  // Chi-square with 6 degrees of freedom exceeds 22.5 once in a thousand seeds; this seed is fixed.
  assert.ok(counts.reduce((sum, n) => sum + (n - 10_000) ** 2 / 10_000, 0) < 22.5, `${counts}`);
  assert.equal(drawn(3, 50), drawn(3, 50));
  assert.not.equal(drawn(3, 50), drawn(4, 50));
});

test("an interval of many values agrees with the normal one, and is the same every time", () => {
  // 100 values −49.5 … 49.5: standard error of the mean (n denominator) 28.866 / 10 = 2.887, so ± 5.66. The quantile's
  // own error with 10 000 resamples: sqrt(.025 · .975 / 10000) / density, .0016 / (.058 / 2.887) = .08; three of it.
  const values = Array.from({ length: 100 }, (_, i) => i - 49.5);
  const { mean, low, high } = estimate(values);
  assert.is(mean, 0);
  assert.ok(Math.abs(low + 5.66) < 0.25 && Math.abs(high - 5.66) < 0.25, `${low} … ${high}`);
  assert.equal(estimate(values), estimate(values));
});

test("one value has no width, none has no interval", () => {
  assert.equal(estimate([0.5]), { mean: 0.5, low: 0.5, high: 0.5, values: [0.5] });
  assert.ok(Object.values(estimate([])).every((v) => typeof v === "object" || Number.isNaN(v)));
});

test("differences pair cells alike in all else, one number per seed", () => {
  const results = ["easy", "hard"].flatMap((task, t) => [
    ...cells({ task, strategy: "all" }, [0.5, 0.6, 0.7]),
    ...cells({ task, strategy: "moe" }, [0.5 - 0.125 * (t + 1), 0.6, 0.7]),
  ]);
  const { values, seeds, plannedSeeds } = paired(seedDifferences(allOf(results), "strategy", "moe", "all"));
  assert.equal({ values, seeds, plannedSeeds }, { values: [-0.1875, 0, 0], seeds: 3, plannedSeeds: 3 });
});

test("a seed that lacks a planned cell is left out, and a learning rate is never paired with another", () => {
  const planned = [
    ...cells({ task: "easy", strategy: "all" }, [0.5, 0.5, 0.5]),
    ...cells({ task: "easy", strategy: "ffn" }, [0.75, 0.75, 0.75]),
    ...cells({ task: "hard", strategy: "all" }, [0.5, 0.5, 0.5]),
    ...cells({ task: "hard", strategy: "ffn" }, [0.25, 0.25, 0.25]),
    ...cells({ task: "easy", strategy: "ffn", learningRate: 1 }, [1, 1, 1]),
  ];
  const without = (lacks: (settings: CellSettings) => boolean) => {
    const results = planned.filter(({ settings }) => !lacks(settings));
    const differences = seedDifferences(cellsOf(planOf(planned), results), "strategy", "ffn", "all");
    const { values, seeds, plannedSeeds } = paired(differences);
    return { values, seeds, plannedSeeds };
  };
  const hard = ({ task, strategy }: CellSettings) => task === "hard" && strategy === "all";
  assert.equal(
    without((s) => hard(s) && s.seed === 2),
    { values: [0, 0], seeds: 2, plannedSeeds: 3 },
  );
  // A cell that failed with every seed: the easy task alone would be another comparison.
  assert.equal(without(hard), { values: [], seeds: 0, plannedSeeds: 3 });
});

test("a difference of a difference needs both", () => {
  const one = new Map([
    [1, 0.5],
    [2, undefined],
    [3, 0.25],
  ]);
  const other = new Map([
    [1, 0.25],
    [2, 0.5],
  ]);
  assert.equal([...minus(one, other).values()], [0.25, undefined, undefined]);
});

test("a cell's last line counts, and a line of no planned cell does not", () => {
  const [cell, other] = cells({}, [0.5, 0.6]);
  assert.equal(
    cellsOf(planOf([cell]), [cell, other, { ...cell, score: 0.75 }]).results.map((r) => r.score),
    [0.75],
  );
});

test("values of an axis are in order of size", () => {
  const settings = [64, 8, undefined, 16].map((capacityFactor) => cellResult({ capacityFactor }, {}).settings);
  assert.equal(axisValues(settings, "capacityFactor"), ["8", "16", "64", "default"]);
});

test.run();
