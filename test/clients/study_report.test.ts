import { test } from "uvu";
import * as assert from "uvu/assert";
import { CLAIM_IDS } from "../../clients/study/claims.ts";
import { renderStudyReport } from "../../clients/study/report.ts";
import type { CellResult, StudyDescription } from "../../clients/study/results.ts";
import { cellResult, planOf } from "./support/study_results.ts";

const STRATEGIES = ["all", "non_moe", "moe", "attention", "ffn"];
const OFFSETS = [0, 0.004, -0.08, -0.01, 0.03];
const HOSTILE = `<script>alert("1")</script> & 'quotes'`;

const study: Omit<StudyDescription, "cells"> = {
  name: "freezing",
  question: "Which parameters should be trained?",
  axis: "strategy",
  baseline: "all",
  claims: [...CLAIM_IDS],
  equivalenceMargin: 0.02,
  settings: { name: "freezing" },
};

/** Two tasks, five strategies, four seeds. */
const results: CellResult[] = ["easy", "hard"].flatMap((task, t) =>
  STRATEGIES.flatMap((strategy, s) =>
    [0, 1, 2, 3].map((seed) => {
      const score = 0.8 - 0.2 * t + OFFSETS[s] + 0.01 * seed + 0.002 * ((seed * (s + 1)) % 3);
      return cellResult({ task, strategy, seed }, { score, trainableParameters: 1000 * (s + 1) });
    }),
  ),
);
/** The page of a study that planned just these cells. */
const pageOf = (results: readonly CellResult[], described = study): string =>
  renderStudyReport({ ...described, cells: planOf(results) }, results, []);
const page = pageOf(results);

/** The first row of a table that holds the text. */
const row = (text: string, of: string): string =>
  [...of.matchAll(/<tr[ >].*?<\/tr>/gs)].map(([r]) => r).find((r) => r.includes(text)) ?? "";
const section = (heading: string): string => page.split("<section>").find((s) => s.startsWith(`<h2>${heading}`)) ?? "";

test("rules come before verdicts, and verdicts before what they rest on", () => {
  const headings = [...page.matchAll(/<h2>(.*?)<\/h2>/g)].map((m) => m[1]);
  assert.equal(headings, [
    "Rules, fixed before the results",
    "Verdicts",
    "Scores",
    "Differences from all",
    "Overfitting: validation loss minus training loss",
    "Cost",
    "Routing by layer",
    "Settings",
  ]);
  for (const id of CLAIM_IDS) assert.ok(section("Verdicts").includes(`<code>${id}</code>`), id);
});

test("each claim has the verdict that its numbers give it", () => {
  const expected = {
    all_equals_non_moe: "supported",
    attention_slightly_worse: "supported",
    moe_clearly_worse: "supported",
    ffn_better: "supported",
    fewer_experts_better: "undecided",
    smaller_batch_better: "undecided",
    higher_lr_better: "undecided",
    sparse_overfits_more: "undecided",
    smaller_batch_for_sparse: "undecided",
    higher_lr_for_sparse: "undecided",
  };
  for (const [id, verdict] of Object.entries(expected))
    assert.ok(row(id, section("Verdicts")).includes(`<strong>${verdict}</strong>`), id);
  assert.ok(row("higher_lr_better", section("Verdicts")).includes("no cells of two different learning rates"));
});

test("a task has a chart of its own, with a dot for each seed", () => {
  const scores = section("Scores");
  for (const task of ["easy", "hard"]) assert.ok(scores.includes(`<h3>task ${task}</h3>`));
  // Two tasks, five strategies, four seeds; each chart is there for wide and for narrow pages.
  assert.is(scores.split('class="point"').length - 1, 2 * 5 * 4 * 2);
  const differences = section("Differences from all");
  assert.ok(differences.includes("<h3>averaged over its settings</h3>"));
  assert.is(differences.split('class="band"').length - 1, 3 * 2);
  assert.not.match(differences, /<th>all<\/th>/);
});

test("figures are those of the results", () => {
  assert.ok(row("<th>ffn</th>", section("Cost")).includes("<td>5,000</td>"));
  assert.ok(row("<th>ffn</th>", section("Overfitting")).includes("<td>0.600</td><td>1.300</td><td>0.700</td>"));
  assert.ok(row("<th>ffn</th>", section("Routing")).includes("<td>12.5%</td>"));
});

test("cost and routing are told for each model, layers for those that have them", () => {
  const dense = results.map((r) => ({
    ...cellResult({ ...r.settings, model: "dense" }, { totalParameters: 2000 }),
    routing: [],
  }));
  const text = pageOf([...results, ...dense]);
  for (const model of ["mini-switch", "dense"]) assert.ok(text.includes(`<h3>model ${model}</h3>`), model);
  assert.ok(text.includes("<h3>model mini-switch, drift"));
  assert.not.ok(text.includes("<h3>model dense, drift"));
  // A dense model's differences are no part of a sparse one's average.
  for (const model of ["mini-switch", "dense"])
    assert.ok(text.includes(`<h3>model ${model}, averaged over its settings</h3>`), model);
  assert.not.ok(text.includes("<h3>averaged over its settings</h3>"));
});

test("a claim is judged on each task alone besides, the small ones apart from the large", () => {
  const [, after] = section("Verdicts").split("<code>moe_clearly_worse</code>");
  const lines = after.split("</tr>").slice(1, 3);
  assert.match(lines[0], /task easy alone.*<td>supported<\/td>.*points<\/td><td data-label="seeds">4<\/td>/s);
  assert.match(lines[1], /task hard alone/);
  const one = pageOf(results.filter((r) => r.settings.task === "easy"));
  assert.not.match(one, /easy alone/);
});

test("cells without a result are named with the reason, and every mean says what it rests on", () => {
  const lacks = (r: CellResult) =>
    r.settings.task === "hard" && r.settings.strategy === "ffn" && r.settings.seed !== 1 && r.settings.seed !== 2;
  const [failed, unfinished] = results.filter(lacks);
  const failure = { cell: failed.cell, run: failed.run, error: "FAILED: diverged", failedAt: failed.finishedAt };
  const rest = results.filter((r) => !lacks(r));
  const text = renderStudyReport({ ...study, cells: planOf(results) }, rest, [failure]);
  const part = (heading: string) => text.split("<section>").find((s) => s.startsWith(`<h2>${heading}`)) ?? "";
  assert.ok(text.includes("<dd>38 of 40,"));
  const missing = part("Cells without a result").replaceAll("&quot;", '"');
  assert.ok(row(failed.cell, missing).includes("<td>FAILED: diverged</td>"));
  assert.ok(row(failed.cell, missing).includes("<td>task hard, strategy ffn, seed 0 <code>"));
  assert.ok(row(unfinished.cell, missing).includes("<td>has not ended</td>"));
  assert.not.ok(page.includes("<h2>Cells without a result"));
  // Seeds of a comparison, pairs of seeds, and cells of both tasks.
  for (const [heading, figure] of [
    ["Scores", "2 of 4"],
    ["Differences from all", "2 of 4"],
    ["Overfitting", "2 of 4"],
    ["Cost", "6 of 8"],
    ["Routing", "6 of 8"],
  ])
    assert.ok(part(heading).includes(`<td>${figure}</td>`), heading);
  const verdict = row("ffn_better", part("Verdicts"));
  assert.match(verdict, /<strong>undecided<\/strong>.*2 of at least 3 seeds have every cell/);
  assert.ok(row("all_equals_non_moe", part("Verdicts")).includes("<strong>supported</strong>"));
});

test("text from studies cannot become markup, and the page loads nothing", () => {
  const hostile = renderStudyReport(
    {
      ...{ ...study, name: HOSTILE, question: HOSTILE, baseline: HOSTILE, settings: { [HOSTILE]: HOSTILE } },
      cells: [...planOf(results), { cell: HOSTILE, settings: results[0].settings }],
    },
    results.map((r) => ({ ...r, metric: HOSTILE, settings: { ...r.settings, task: HOSTILE, strategy: HOSTILE } })),
    [{ cell: HOSTILE, run: HOSTILE, error: HOSTILE, failedAt: HOSTILE }],
  );
  assert.not.match(hostile, "<script");
  assert.ok(hostile.includes("&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt; &amp; &#39;quotes&#39;"));
  assert.not.match(page, /https?:|<link|<img|@import|url\(/);
});

test("an unfinished study, equal scores and missing numbers leave no NaN", () => {
  const odd: readonly (readonly [string, CellResult[]])[] = [
    ["no cell", []],
    ["one cell, with nothing measured", [cellResult({}, { curve: [], routing: [], stepSeconds: Number.NaN })]],
    ["no baseline", [cellResult({ strategy: "moe" }, {})]],
    [
      "losses that are no numbers",
      JSON.parse(
        JSON.stringify([
          cellResult(
            {},
            {
              curve: [
                { step: 1, trainLoss: Number.NaN, validationLoss: 1, validationScore: 0 },
                { step: 2, trainLoss: 1, validationLoss: Number.NaN, validationScore: 0 },
              ],
            },
          ),
        ]),
      ),
    ],
    ["equal scores", STRATEGIES.flatMap((strategy) => [0, 1, 2].map((seed) => cellResult({ strategy, seed }, {})))],
  ];
  for (const [what, cells] of odd) assert.not.match(pageOf(cells), /NaN|undefined|Infinity|null/, what);
  const nothing = renderStudyReport({ ...study, cells: planOf(results) }, [], []);
  assert.not.match(nothing, /NaN|undefined|Infinity|null/, "nothing of what was planned");
});

test("the same results make the same page, a repeated line included", () => {
  assert.is(renderStudyReport({ ...study, cells: planOf(results) }, [...results, results[0]], []), page);
});

test.run();
