// What freezing and thawing a group did to a run that went on.

import { barChart, responsive } from "../../../clients/charts/charts.ts";
import { bytes, count, flops, milliseconds } from "../../../clients/charts/format.ts";
import { type Html, html } from "../../../clients/charts/html.ts";
import type { Cost, FreezeChange, FreezeResult, StepRecord } from "../results.ts";
import { median } from "./measures.ts";

/** Whether a step, counted from 1, ran while something was frozen. */
function isFrozen(step: number, changes: readonly FreezeChange[]): boolean {
  const last = changes.filter((c) => c.effectiveStep < step).at(-1);
  return last?.action === "freeze";
}

/** Steps without the first of all and the first after each change: those also prepare programs. */
const settled = (steps: readonly StepRecord[], changes: readonly FreezeChange[]): StepRecord[] =>
  steps.filter(({ step }) => step > 1 && !changes.some((c) => c.effectiveStep === step - 1));

export function freezeSection({ steps, changes }: FreezeResult): Html {
  const freeze = changes.find((c) => c.action === "freeze");
  if (!freeze) return html``;
  const calm = settled(steps, changes);
  const medianOf = (frozen: boolean) =>
    median(calm.filter((s) => isFrozen(s.step, changes) === frozen).map((s) => s.seconds));
  const top = Math.max(...(calm.length > 0 ? calm : steps).map((s) => s.seconds), 0) * 1e3;
  return html`<section><h2>Freezing a group while the run goes on</h2>
<p>A separate run trained everything; on its way ${freeze.kinds.join(" and ")} were frozen and later thawed with <code>SetTrainable</code> over
the same stream that watched it. Training never stopped, and what is frozen costs nothing:</p>
<div class="scroll"><table><thead><tr><th>per step</th><th>everything trains</th><th>frozen</th><th>change</th></tr></thead><tbody>
${COST_ROWS.map(([label, show, of]) => costRow(label, show, of(freeze.before), of(freeze.after)))}
${costRow("step time, measured", milliseconds, medianOf(false), medianOf(true))}</tbody></table></div>
${
  steps.length > 0 &&
  html`<figure>${responsive((width) =>
    barChart(
      steps.map((s) => ({ x: s.step, y: s.seconds * 1e3, frozen: isFrozen(s.step, changes) })),
      top,
      { x: "optimizer step", y: "ms per step", description: "Time of each step of the steered run" },
      width,
    ),
  )}<figcaption><span class="key" style="background:var(--c0)"></span>everything trains
<span class="key" style="background:var(--c1);margin-left:1em"></span>${freeze.kinds.join(" and ")} frozen. Cut bars carry their value.</figcaption></figure>`
}
${changes.map(changeLine)}</section>`;
}

const changeLine = (c: FreezeChange): Html => {
  const state = Object.entries(c.state)
    .filter(([, tensors]) => tensors > 0)
    .map(([what, tensors]) => `${tensors} ${what}`);
  return html`<p class="note"><strong>${c.action}</strong> after step ${c.effectiveStep}: ${count(c.matchedTensors)} tensors train from then on;
optimizer state of ${state.length > 0 ? `${state.join(", ")} tensors` : "no tensor changed"}.</p>`;
};

type Show = (value: number | undefined) => string;

const COST_ROWS: readonly (readonly [string, Show, (c: Cost) => number])[] = [
  ["parameters trained", count, (c) => c.trainableParameters],
  ["gradients", bytes, (c) => c.gradientBytes],
  ["optimizer state", bytes, (c) => c.optimizerBytes],
  ["activations", bytes, (c) => c.activationBytes],
  ["peak memory, planned", bytes, (c) => c.peakBytes],
  ["backward", flops, (c) => c.backwardFlops],
  ["dispatches", count, (c) => c.dispatches],
  ["of which weight gradients", count, (c) => c.weightGradientDispatches],
];

function costRow(label: string, show: Show, before: number | undefined, after: number | undefined): Html {
  const change = before && after !== undefined ? (after - before) / before : undefined;
  const rounded = change === undefined ? undefined : Math.round(change * 100);
  const shown = rounded === undefined ? "–" : `${rounded < 0 ? "−" : rounded > 0 ? "+" : ""}${Math.abs(rounded)}%`;
  return html`<tr><th>${label}</th><td>${show(before)}</td><td>${show(after)}</td><td>${shown}</td></tr>`;
}
