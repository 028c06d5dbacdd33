// What the routers did: load per expert under each strategy against the starting model, and single tokens.

import { count, percent } from "../../../clients/charts/format.ts";
import { type Html, html } from "../../../clients/charts/html.ts";
import { EXPERT_COLOURS } from "../../../clients/charts/style.ts";
import type { ExampleLayer, LayerLoad, Results } from "../results.ts";
import { drift, sameLayer } from "./measures.ts";

/** Strongest tint of a cell; beyond it, text would lose its contrast. */
const MOST_TINT = 0.62;

export function loadSection(results: Results): Html {
  const layers = results.start.validation?.layers ?? [];
  if (layers.length === 0) return html``;
  const streamed = results.strategies.reduce((n, s) => n + s.assignments.tokens, 0);
  const lost = results.strategies.reduce((n, s) => n + s.assignments.droppedSlices, 0);
  return html`<section><h2>Which experts work</h2>
<p>Percent of the validation tokens that each router sent to each expert, before and after fine-tuning. A perfectly even router
would send ${percent(1 / layers[0].load.length)} to each. <em>Moved</em> is the least share of tokens that must have changed their expert.</p>
${layers.map((layer) => loadTable(layer, results))}
<p class="note">While the strategies trained and were scored, ${count(streamed)} single assignments (a token in a layer) were streamed to this
client${lost > 0 ? `; ${count(lost)} slices were dropped because it read too slowly` : " and none was dropped"}.</p></section>`;
}

function loadTable(start: LayerLoad, { strategies }: Results): Html {
  const most = Math.max(
    ...[start, ...strategies.flatMap((s) => sameLayer(s.scores.validation?.layers, start) ?? [])].flatMap(
      (l) => l.load,
    ),
  );
  const row = (label: string, load: readonly number[] | undefined, moved: Html | string) =>
    html`<tr><th>${label}</th>${start.load.map((_, e) => {
      const share = load?.[e];
      const tint = share === undefined || most === 0 ? 0 : (share / most) * MOST_TINT;
      return html`<td style="--a:${tint.toFixed(3)}">${share === undefined ? "–" : (share * 100).toFixed(0)}</td>`;
    })}<td>${moved}</td></tr>`;
  return html`<h3>${start.stack} layer ${start.layer}</h3><div class="scroll"><table class="heat"><thead><tr><th>expert</th>${start.load.map(
    (_, e) => html`<th>${e}</th>`,
  )}<th>moved</th></tr></thead><tbody>${row("start", start.load, "")}${strategies.map((s) => {
    const load = sameLayer(s.scores.validation?.layers, start)?.load;
    return row(s.strategy, load, percent(load && drift(load, start.load)));
  })}</tbody></table></div>`;
}

export function exampleSection({ examples, exported }: Results): Html {
  if (examples.length === 0) return html``;
  const tuned = exported?.strategy ?? "fine-tuned";
  return html`<section><h2>Where single tokens went</h2>
<p>A colour and a number for the expert that took the token; the bar under it is the gate, the router's probability for that expert and the
factor on its output: full width is 1. <em>start</em> is the model before fine-tuning, <em>${tuned}</em> after.</p>
${examples.map(
  (example) => html`<h3>${example.input}</h3>
<p class="answer note">expected <strong>${example.target}</strong>; start answers <strong>${example.before.text || "(nothing)"}</strong>, ${tuned} answers
<strong>${example.after.text || "(nothing)"}</strong></p>
${example.after.layers.map((after) => {
  const before = example.before.layers.find((l) => l.stack === after.stack && l.layer === after.layer);
  return html`${before && tokenRow(`${after.stack} ${after.layer}, start`, before)}${tokenRow(`${after.stack} ${after.layer}, ${tuned}`, after)}`;
})}`,
)}
<p class="note">Decoder rows show what the decoder read: &lt;pad&gt; starts it, then its own answer.</p></section>`;
}

const tokenRow = (label: string, { tokens }: ExampleLayer): Html =>
  html`<div class="layer"><span>${label}</span><div class="tokens">${tokens.map(
    (t) =>
      html`<span class="token e${t.expert % EXPERT_COLOURS}${!t.kept && " dropped"}" style="--g:${Math.min(1, Math.max(0, t.gate)).toFixed(3)}" title="expert ${t.expert}, gate ${t.gate.toFixed(3)}${!t.kept && ", dropped by capacity"}">${t.text}<sub>${t.expert}</sub></span>`,
  )}</div></div>`;
