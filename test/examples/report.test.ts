import { test } from "uvu";
import * as assert from "uvu/assert";
import { spread, ticks } from "../../clients/charts/charts.ts";
import { bytes, flops, points } from "../../clients/charts/format.ts";
import { renderReport } from "../../examples/demo/report/report.ts";
import type { Results } from "../../examples/demo/results.ts";
import { fixture, HOSTILE } from "./report_fixture.ts";

const page = renderReport(fixture);

test("text from data and models cannot become markup", () => {
  const hostile: Results = {
    ...fixture,
    command: HOSTILE,
    adapter: HOSTILE,
    model: { ...fixture.model, name: HOSTILE, groups: [{ kind: HOSTILE, parameters: 1 }] },
    task: { ...fixture.task, name: HOSTILE },
    strategies: fixture.strategies.map((s) => ({ ...s, strategy: HOSTILE, state: HOSTILE })),
    exported: { model: HOSTILE, strategy: HOSTILE },
  };
  for (const text of [page, renderReport(hostile)]) {
    assert.not.match(text, "<script");
    assert.ok(text.includes("&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt; &amp; &#39;quotes&#39;"));
  }
});

test("the page loads nothing", () => {
  assert.not.match(page, /https?:|<link|<img|@import|url\(/);
});

test("every strategy has its row, its curve and its load, with the figures of the results", () => {
  for (const { strategy, scores, cost } of fixture.strategies) {
    assert.ok(page.includes(`<title>${strategy}</title>`), `curve of ${strategy}`);
    const row = page.match(new RegExp(`<tr class="s\\d"><th>${strategy}</th>[^]*?</tr>`))?.[0] ?? "";
    for (const text of [
      `${(scores.validation.accuracy * 100).toFixed(1)}%`,
      cost!.trainableParameters.toLocaleString("en-US"),
      bytes(cost!.peakBytes),
    ])
      assert.ok(row.includes(text), `${strategy}: ${text} in ${row}`);
    assert.is(page.split(`<tr><th>${strategy}</th>`).length - 1, 3, `${strategy} in three load tables`);
  }
});

test("tokens carry expert and gate, dropped ones say so", () => {
  const token = fixture.examples[0].after.layers[0].tokens[5];
  assert.not.ok(token.kept);
  assert.ok(
    page.includes(`title="expert ${token.expert}, gate ${token.gate.toFixed(3)}, dropped by capacity"> the<sub>`),
  );
});

test("a run that ended badly leaves dashes, never NaN", () => {
  const strategies = fixture.strategies.map((s, i) =>
    i === 2 ? { ...s, state: "FAILED", steps: [], cost: undefined, scores: {} } : s,
  );
  const text = renderReport({ ...fixture, strategies });
  assert.not.match(text, /NaN|undefined|Infinity|null/);
  assert.ok(text.includes('<th>moe <span class="note">(failed)</span></th>'));
  const nothing = renderReport({
    ...fixture,
    start: {},
    strategies: strategies.map((s) => ({ ...s, steps: [], cost: undefined, scores: {} })),
    freeze: undefined,
    examples: [],
    exported: undefined,
  });
  assert.not.match(nothing, /NaN|undefined|Infinity|null/);
});

test("a difference inside the sampling error ranks nothing", () => {
  const withScore = (accuracy: number) => ({ validation: { ...fixture.start.validation, accuracy, examples: 100 } });
  const of = (first: number, second: number) =>
    renderReport({
      ...fixture,
      strategies: [first, second].map((a, i) => ({ ...fixture.strategies[i], scores: withScore(a) })),
    });
  // One standard error of a difference at 0.7 on 100 examples is √2 · √(0.21 / 100) = 6.5 points.
  assert.match(of(0.7, 0.6), "nothing here ranks them");
  assert.not.match(of(0.7, 0.5), "nothing here ranks them");
});

const formats: readonly [string, string][] = [
  [bytes(999), "999 B"],
  [bytes(5_120_000), "5.12 MB"],
  [bytes(undefined), "–"],
  [flops(412e6), "412 MFLOP"],
  [points(-0.0312), "−3.1"],
  [points(0.0001), "0.0"],
];
for (const [actual, expected] of formats) test(`shows ${expected}`, () => assert.is(actual, expected));

test("ticks are round and cover the range", () => {
  assert.equal(ticks(0.61, 2.9, 5), [0.5, 1, 1.5, 2, 2.5, 3]);
  assert.equal(ticks(3, 3, 5), [3]);
});

test("labels are moved apart and stay inside", () => {
  const placed = spread([10, 11, 12, 99], 10, 0, 100);
  assert.equal(placed, [10, 20, 30, 99]);
  assert.equal(spread([95, 96], 10, 0, 100), [90, 100]);
});

test.run();
