// A report's looks: one column, system fonts, light and dark by the reader's setting, and paper. Hues were picked to
// stay apart under the common colour blindnesses; wherever colour says something, a number or a name says it too.

/** Colours of experts 0 … 7 as `r g b`; more experts start over, their numbers tell them apart. */
const EXPERTS = [
  "42 120 214",
  "235 104 52",
  "27 175 122",
  "237 161 0",
  "232 123 164",
  "0 131 0",
  "120 92 210",
  "200 60 60",
];

export const EXPERT_COLOURS = EXPERTS.length;

/** Colours of what is compared; more start over. */
export const SERIES_COLOURS = 8;
const SERIES = Array.from({ length: SERIES_COLOURS }, (_, i) => i);
const COLOURED = SERIES.map((i) => `.s${i}`).join(", ");

export const STYLE = `
:root { color-scheme: light dark; --paper: #fcfcfb; --ink: #0b0b0b; --soft: #52514e; --rule: #dddcd8; --grid: #e8e7e3; --tint: .26;
  --c0: #2a78d6; --c1: #d5531c; --c2: #128a5f; --c3: #a87300; --c4: #6a4fc9; --c5: #b8336a; --c6: #4b7a1d; --c7: #52708f; --heat: 42 120 214; }
@media (prefers-color-scheme: dark) { :root { --paper: #1a1a19; --ink: #f4f4f2; --soft: #c3c2b7; --rule: #43423f; --grid: #30302d; --tint: .38;
  --c0: #5b9cec; --c1: #ef7d4b; --c2: #2fb685; --c3: #d59a1c; --c4: #a595f2; --c5: #ee7fac; --c6: #96c95f; --c7: #9db8d2; --heat: 70 140 230; } }
@media print { :root { color-scheme: light; } body { font-size: 10.5px; max-width: none; padding: 0; } section, figure, tr, .layer { break-inside: avoid; } h2 { break-after: avoid; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 920px; padding: 28px 24px 56px; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
h1 { font-size: 1.65em; line-height: 1.2; margin: 0 0 .5em; text-wrap: balance; }
h2 { font-size: 1.2em; margin: 2.4em 0 .5em; }
h3 { font-size: 1em; margin: 1.6em 0 .4em; }
p { max-width: 46em; margin: .5em 0; }
.note, figcaption, dt { color: var(--soft); font-size: .87em; }
code { font: .92em ui-monospace, monospace; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15em 1em; margin: 1em 0; }
dd { margin: 0; font-size: .93em; overflow-wrap: anywhere; }
figure { margin: 1em 0; }
svg { display: block; max-width: 100%; height: auto; font: 12px system-ui, sans-serif; }
svg text { fill: var(--ink); }
svg .tick, svg .axis-name { fill: var(--soft); font-variant-numeric: tabular-nums; }
.grid { stroke: var(--grid); } .chance { stroke: var(--soft); stroke-dasharray: 3 3; }
.line { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; } .leader { fill: none; stroke: var(--c); opacity: .6; }
${SERIES.map((i) => `.s${i} { --c: var(--c${i}); }`).join(" ")} .s-start { --c: var(--soft); }
svg :is(${COLOURED}) .label { fill: var(--c); font-weight: 600; }
.dot { fill: var(--c); } .ring { fill: var(--paper); stroke: var(--c); stroke-width: 2; } .score-tick { stroke: var(--c); stroke-width: 2; } .error { stroke: var(--c); opacity: .45; stroke-width: 2; }
.point { fill: var(--c); fill-opacity: .3; stroke: var(--c); } .interval { stroke: var(--c); stroke-width: 3; } .mean { stroke: var(--c); stroke-width: 3; }
.band { fill: var(--grid); opacity: .6; } .zero { stroke: var(--soft); }
.bar { fill: var(--c0); } .bar-frozen { fill: var(--c1); }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .3em; }
.scroll { overflow-x: auto; margin: .8em 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .87em; }
th, td { padding: .32em .6em; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { font-weight: 500; color: var(--soft); vertical-align: bottom; }
thead th { white-space: normal; min-width: 4.6em; line-height: 1.25; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
tbody th { color: var(--ink); }
tbody tr:is(${COLOURED}) th { color: var(--c); font-weight: 600; }
.prose th, .prose td { white-space: normal; text-align: left; vertical-align: top; } .prose td:nth-child(n + 2) { min-width: 9em; } .verdicts td:nth-child(n + 3) { white-space: nowrap; min-width: 0; }
tr.note { font-size: 1em; }
details pre { overflow-x: auto; font: .8em/1.45 ui-monospace, monospace; }
.best { font-weight: 700; }
.heat thead th:not(:first-child):not(:last-child) { text-align: center; }
.heat thead th { min-width: 0; }
.heat td { padding: .3em 0; width: 3.4em; text-align: center; border: 1px solid var(--paper); background: rgb(var(--heat) / var(--a, 0)); }
.heat td:last-child { background: none; }
.layer { display: grid; grid-template-columns: 9.5em 1fr; gap: .1em .8em; align-items: baseline; margin: .3em 0; }
.layer > span { font-size: .87em; color: var(--soft); }
.tokens { display: flex; flex-wrap: wrap; gap: 4px 3px; }
.token { position: relative; display: inline-block; padding: 1px 5px 4px; border-radius: 4px; line-height: 1.35; font-size: .9em; background: rgb(var(--e) / var(--tint)); white-space: pre; }
.token sub { font-size: .72em; margin-left: 2px; color: var(--soft); vertical-align: baseline; position: relative; top: 2px; }
.token::after { content: ""; position: absolute; left: 0; bottom: 0; height: 3px; width: calc(var(--g) * 100%); background: rgb(var(--e)); border-radius: 0 0 0 4px; }
.dropped { text-decoration: line-through; background: none; outline: 1px dashed var(--soft); outline-offset: -1px; }
${EXPERTS.map((colour, i) => `.e${i} { --e: ${colour}; }`).join(" ")}
.answer { margin: .2em 0 .6em; }
.narrow { display: none; }
@media (max-width: 600px) { body { padding: 18px 14px 40px; font-size: 14px; } .wide { display: none; } .narrow { display: block; } .layer { grid-template-columns: 1fr; } dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .4em; } .heat td { width: 2em; } .heat th { padding: .3em .3em .3em 0; }
  .prose thead { display: none; } .prose tr { display: block; padding: .4em 0; border-bottom: 1px solid var(--rule); } .prose td { display: block; padding: .1em 0; border: 0; min-width: 0; }
  .prose td[data-label]::before { content: attr(data-label) ": "; color: var(--soft); } }
`;
