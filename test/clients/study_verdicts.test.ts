// What decides a claim: its rule, what it compares, and what it does when cells are missing.

import { test } from "uvu";
import * as assert from "uvu/assert";
import { type CLAIM_IDS, expertCount } from "../../clients/study/claims.ts";
import type { CellResult, CellSettings } from "../../clients/study/results.ts";
import { RULES, type Verdict } from "../../clients/study/rules.ts";
import { cellsOf } from "../../clients/study/statistics.ts";
import { judge } from "../../clients/study/verdicts.ts";
import { allOf, cellResult, planOf } from "./support/study_results.ts";

/** A cell per seed, of one score each. */
const cells = (settings: Partial<CellSettings>, scores: readonly number[], result: Partial<CellResult> = {}) =>
  scores.map((score, seed) => cellResult({ ...settings, seed }, { ...result, score }));

test("each rule at, within and beyond its bounds", () => {
  const margin = 0.02;
  const table: readonly (readonly [keyof typeof RULES, number, number, Verdict])[] = [
    ["equal", -0.01, 0.01, "supported"],
    ["equal", 0.005, 0.01, "supported"],
    ["equal", -0.03, 0.01, "undecided"],
    ["equal", -0.03, -0.02, "not supported"],
    ["equal", 0.02, 0.05, "not supported"],
    ["slightlyWorse", -0.015, -0.005, "supported"],
    ["slightlyWorse", -0.015, 0.001, "undecided"],
    ["slightlyWorse", -0.03, -0.005, "undecided"],
    ["slightlyWorse", -0.05, -0.02, "not supported"],
    ["slightlyWorse", 0, 0.05, "not supported"],
    ["clearlyWorse", -0.05, -0.021, "supported"],
    ["clearlyWorse", -0.05, -0.02, "undecided"],
    ["clearlyWorse", -0.019, 0.01, "not supported"],
    ["better", 0.001, 0.1, "supported"],
    ["better", 0, 0.1, "undecided"],
    ["better", -0.01, 0.019, "not supported"],
    ["better", -0.1, -0.05, "not supported"],
    ["greater", 0.001, 0.1, "supported"],
    ["greater", 0, 0.1, "undecided"],
    ["greater", -0.1, 0, "not supported"],
  ];
  for (const [rule, low, high, expected] of table)
    assert.is(RULES[rule].decide({ low, high }, margin), expected, `${rule} [${low}, ${high}]`);
});

const SCORES = [0.5, 0.55, 0.6];
const shifted = (by: number) => SCORES.map((s) => s + by);
const DENSE: Partial<CellResult> = { routing: [] };
/** Ends on this validation loss, its training loss being 1. */
const endsAt = (validationLoss: number): Partial<CellResult> => ({
  curve: [{ step: 100, trainLoss: 1, validationLoss, validationScore: 0.5 }],
});

interface Case {
  /** The cells of a study where the difference of the claim is this, the same with every seed. */
  readonly study: (difference: number) => CellResult[];
  /** Supports the claim. */
  readonly difference: number;
}

/** Two values of a setting, one of them better by the difference. */
const pair =
  (value: Partial<CellSettings>, reference: Partial<CellSettings>): Case["study"] =>
  (d) => [...cells(value, shifted(d)), ...cells(reference, SCORES)];

/** What the sparse model gains from the value, the dense one does not. */
const twins =
  (value: Partial<CellSettings>, reference: Partial<CellSettings>): Case["study"] =>
  (d) => [
    ...pair(value, reference)(d + 0.01),
    ...cells({ ...value, model: "dense" }, shifted(0.01), DENSE),
    ...cells({ ...reference, model: "dense" }, SCORES, DENSE),
  ];

const CASES: Record<(typeof CLAIM_IDS)[number], Case> = {
  all_equals_non_moe: { study: pair({ strategy: "non_moe" }, { strategy: "all" }), difference: 0 },
  attention_slightly_worse: { study: pair({ strategy: "attention" }, { strategy: "all" }), difference: -0.01 },
  moe_clearly_worse: { study: pair({ strategy: "moe" }, { strategy: "all" }), difference: -0.1 },
  ffn_better: { study: pair({ strategy: "ffn" }, { strategy: "all" }), difference: 0.03 },
  fewer_experts_better: { study: pair({ model: "st-moe-4" }, { model: "st-moe-16" }), difference: 0.03 },
  smaller_batch_better: { study: pair({ batchSize: 8 }, { batchSize: 64 }), difference: 0.03 },
  higher_lr_better: { study: pair({ learningRate: 1e-2 }, { learningRate: 9e-4 }), difference: 0.03 },
  sparse_overfits_more: {
    study: (d) => [
      ...cells({}, SCORES, endsAt(1.5 + d)),
      ...cells({ model: "dense" }, SCORES, { ...endsAt(1.5), ...DENSE }),
    ],
    difference: 0.03,
  },
  smaller_batch_for_sparse: { study: twins({ batchSize: 8 }, { batchSize: 64 }), difference: 0.03 },
  higher_lr_for_sparse: { study: twins({ learningRate: 1e-2 }, { learningRate: 9e-4 }), difference: 0.03 },
};

for (const [id, { study, difference }] of Object.entries(CASES))
  test(`${id} is decided by what it compares`, () => {
    const judgement = judge(id, allOf(study(difference)), 0.02);
    assert.is(judgement.verdict, "supported");
    assert.ok(Math.abs(judgement.estimate!.mean - difference) < 1e-12);
    // The opposite, beyond the margin, supports none of them; 0.05 instead of 0 is no equality.
    assert.is(judge(id, allOf(study(-difference || 0.05)), 0.02).verdict, "not supported");

    const results = study(difference);
    const lacksOne = cellsOf(planOf(results), results.slice(1));
    const few = judge(id, lacksOne, 0.02);
    assert.equal([few.verdict, few.reason], ["undecided", "2 of at least 3 seeds have every cell it needs"]);
    assert.is(few.estimate?.plannedSeeds, 3);
    const none = judge(id, allOf(cells({ strategy: "all" }, SCORES)), 0.02);
    assert.is(none.verdict, "undecided");
    assert.match(none.reason!, /^(no cells? of|it takes results of)/);
  });

test("a dense model changes no claim on sparse ones", () => {
  const sparse = CASES.ffn_better.study(0.03);
  const dense = [
    ...cells({ strategy: "ffn", model: "dense" }, shifted(-0.2), DENSE),
    ...cells({ strategy: "all", model: "dense" }, SCORES, DENSE),
  ];
  assert.equal(judge("ffn_better", allOf([...sparse, ...dense]), 0.02), judge("ffn_better", allOf(sparse), 0.02));
});

test("overfitting is looked at on the smallest task, with everything trained", () => {
  const study = (task: string, trainExamples: number, gap: number, strategy = "all") => [
    ...cells({ task, strategy }, SCORES, { ...endsAt(1 + gap), trainExamples }),
    ...cells({ task, strategy, model: "dense" }, SCORES, { ...endsAt(1), ...DENSE, trainExamples }),
  ];
  const results = [...study("large", 2000, -9), ...study("small", 400, 0.25), ...study("small", 400, -9, "ffn")];
  const judgement = judge("sparse_overfits_more", allOf(results), 0.02);
  assert.equal([judgement.verdict, judgement.estimate?.mean, judgement.unit], ["supported", 0.25, "nats"]);
  assert.match(judgement.difference, /\(mini-switch − dense on small\)$/);
  // Without results of the small task the large one would be the smallest.
  const failed = cellsOf(
    planOf(results),
    results.filter((r) => r.settings.task === "large"),
  );
  const unknown = judge("sparse_overfits_more", failed, 0.02);
  assert.equal(
    [unknown.verdict, unknown.reason],
    ["undecided", "it takes results of every task; there are none of small"],
  );
});

test("a loss that was no number leaves its seed out", () => {
  const results = CASES.sparse_overfits_more.study(0.1);
  const [first, ...others] = results;
  // JSON turns NaN into null.
  const broken: CellResult = JSON.parse(JSON.stringify({ ...first, ...endsAt(Number.NaN) }));
  assert.is(judge("sparse_overfits_more", allOf([broken, ...others]), 0.02).estimate?.seeds, 2);
});

test("an unknown claim is refused by name", () => {
  assert.throws(() => judge("toString", allOf([]), 0.02), /no claim is called toString; there are all_equals_non_moe/);
});

test("a model's experts are the last number of its name", () => {
  assert.equal(["switch-base-8", "top2-e16", "e4-tiny", "dense"].map(expertCount), [8, 16, 4, NaN]);
});

test.run();
