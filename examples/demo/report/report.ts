// results.json as a page: self-contained, no script, no network. A pure function of the results.

import { count, duration, percent } from "../../../clients/charts/format.ts";
import { html, render, trusted } from "../../../clients/charts/html.ts";
import { STYLE } from "../../../clients/charts/style.ts";
import type { Results } from "../results.ts";
import { freezeSection } from "./freeze_section.ts";
import { exampleSection, loadSection } from "./routing_section.ts";
import { lossSection, scoreSection } from "./score_section.ts";

const MEANINGS: Readonly<Record<string, string>> = {
  all: "everything",
  non_moe: "everything but experts and routers",
  moe: "experts and routers",
  attention: "self-attention and encoder-decoder attention",
  ffn: "the dense feed-forward layers",
};

export function renderReport(results: Results): string {
  const { model, task, training } = results;
  const title = `Five ways to fine-tune ${model.name} on ${task.name}`;
  const splits = Object.entries(task.splits).map(([name, examples]) => `${count(examples)} ${name}`);
  const groups = model.groups.map((g) => `${g.kind} ${percent(g.parameters / model.parameters, 0)}`);
  const page = html`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>${title}</title><style>${trusted(STYLE)}</style></head><body>
<h1>${title}</h1>
<p>A small sparse Mixture-of-Experts model was fine-tuned five times from the same checkpoint, with the same seed and the same batches.
Only what was trained differs: ${results.strategies.map((s, i) => html`${i > 0 && ", "}<strong>${s.strategy}</strong> ${MEANINGS[s.strategy] && `(${MEANINGS[s.strategy]})`}`)}.</p>
<p><strong>What this shows, and what not.</strong> That the five strategies run, what each costs, and that what is frozen costs nothing. It does not
show which strategy is best: the model is tiny, ${count(training.steps)} steps are few, all share one learning rate, one seed is one draw, and most differences in
score are of the size of noise.</p>
<dl><dt>model</dt><dd>${model.name}, ${model.modelType}, ${count(model.parameters)} parameters (${groups.join(", ")})</dd>
<dt>task</dt><dd>${task.name}: ${splits.join(", ")} examples</dd>
<dt>training</dt><dd>${count(training.steps)} steps of ${training.batchSize} examples, AdamW, learning rate ${training.learningRate}, dropout ${training.dropout}, seed ${training.seed}</dd>
<dt>adapter</dt><dd>${results.adapter}</dd>
<dt>made</dt><dd>${results.date.slice(0, 16).replace("T", " ")} UTC by thaw ${results.thawVersion} in ${duration(results.seconds)}: <code>${results.command}</code></dd></dl>
${scoreSection(results)}${lossSection(results)}${loadSection(results)}${exampleSection(results)}${results.freeze && freezeSection(results.freeze)}
<section><h2>Go on from here</h2>
<p>${results.exported && html`The <strong>${results.exported.strategy}</strong> model was exported to <code>${results.exported.model}</code> as a Hugging Face directory. `}All
numbers on this page are in <code>results.json</code>.</p></section>
</body></html>
`;
  return render(page);
}
