// A small results object such as the demo writes, with text that wants out of its place.

import type { Cost, ExamplePass, LayerLoad, Results, Scores, StepRecord } from "../../examples/demo/results.ts";

export const HOSTILE = `<script>alert("1")</script> & 'quotes'`;

const EXPERTS = 8;
const LAYERS = [
  { stack: "encoder", layer: 1 },
  { stack: "encoder", layer: 3 },
  { stack: "decoder", layer: 1 },
];

/** A load that leans on a few experts, the same for equal arguments. */
const load = (shift: number): number[] => {
  const weights = Array.from({ length: EXPERTS }, (_, e) => 1 + ((e * 5 + shift * 3) % 7));
  const total = weights.reduce((n, w) => n + w, 0);
  return weights.map((w) => w / total);
};

const layers = (shift: number): LayerLoad[] => LAYERS.map((l, i) => ({ ...l, load: load(shift + i) }));

const scores = (accuracy: number, shift: number): Scores =>
  Object.fromEntries(
    ["train", "validation", "test"].map((split, i) => [
      split,
      {
        examples: 128,
        loss: 0.9 - accuracy / 2,
        accuracy: accuracy - 0.02 * i,
        exactMatch: accuracy - 0.02 * i,
        layers: layers(shift),
      },
    ]),
  );

const cost = (share: number): Cost => ({
  trainableParameters: Math.round(640_000 * share),
  totalParameters: 640_000,
  gradientBytes: Math.round(2_560_000 * share),
  optimizerBytes: Math.round(5_120_000 * share),
  activationBytes: 3_000_000,
  peakBytes: Math.round(6_000_000 + 7_680_000 * share),
  forwardFlops: 60e6,
  backwardFlops: 120e6 * share + 20e6,
  dispatches: Math.round(300 + 300 * share),
  weightGradientDispatches: Math.round(60 * share),
});

const steps = (count: number, fall: number, seconds: number): StepRecord[] =>
  Array.from({ length: count }, (_, i) => ({
    step: i + 1,
    loss: 0.6 + 2.4 * Math.exp(-i * fall) + 0.1 * Math.sin(i * 2.7 + fall * 40),
    seconds: i === 0 ? seconds * 6 : seconds * (1 + 0.1 * Math.sin(i)),
    tokens: 200 + (i % 7),
  }));

const STRATEGIES = [
  ["all", 1, 0.711, 0.2],
  ["non_moe", 0.38, 0.695, 0.18],
  ["moe", 0.62, 0.602, 0.09],
  ["attention", 0.21, 0.68, 0.14],
  ["ffn", 0.08, 0.688, 0.1],
] as const;

const pass = (text: string, shift: number): ExamplePass => ({
  text,
  layers: LAYERS.map((l, i) => ({
    ...l,
    experts: EXPERTS,
    tokens: (l.stack === "encoder"
      ? ["The", " dirty", " stone", " is", " near", " the", " field", ".", HOSTILE]
      : ["<pad>", " no"]
    ).map((token, t) => ({
      text: token,
      expert: (t * 3 + shift + i) % EXPERTS,
      gate: 0.2 + ((t * 37 + shift) % 70) / 100,
      kept: t !== 5,
    })),
  })),
});

export const fixture: Results = {
  format: 1,
  date: "2026-01-31T12:34:56.000Z",
  command: "npm run demo",
  seconds: 187,
  thawVersion: "0.1.0",
  adapter: "software adapter google swiftshader (SwiftShader Device) through dawn: f32 only; no GPU device in /dev",
  model: {
    name: "mini-switch",
    modelType: "switch_transformers",
    parameters: 640_000,
    groups: [
      { kind: "embedding", parameters: 61_440 },
      { kind: "attention.self", parameters: 98_432 },
      { kind: "expert", parameters: 393_216 },
    ],
  },
  task: { name: "entailment", splits: { train: 400, validation: 200, test: 200 }, distinctTargets: 2 },
  training: { steps: 40, batchSize: 16, learningRate: 0.002, dropout: 0.1, seed: 1, evaluatedExamples: 128 },
  start: scores(0.12, 0),
  strategies: STRATEGIES.map(([strategy, share, accuracy, fall], i) => ({
    strategy,
    state: "SUCCEEDED",
    steps: steps(40, fall, 0.2 + 0.2 * share),
    cost: cost(share),
    scores: scores(accuracy, i + 1),
    assignments: { tokens: 21_300, slices: 120, droppedSlices: 0 },
  })),
  freeze: {
    steps: steps(24, 0.2, 0.4).map((s) => (s.step > 8 && s.step <= 16 ? { ...s, seconds: s.seconds * 0.7 } : s)),
    changes: [
      {
        action: "freeze",
        kinds: ["expert", "router"],
        effectiveStep: 8,
        before: cost(1),
        after: cost(0.38),
        matchedTensors: 44,
        state: { restored: 0, fresh: 0, kept: 9, dropped: 0 },
      },
      {
        action: "thaw",
        kinds: ["expert", "router"],
        effectiveStep: 16,
        before: cost(0.38),
        after: cost(1),
        matchedTensors: 53,
        state: { restored: 9, fresh: 0, kept: 0, dropped: 0 },
      },
    ],
  },
  examples: [
    { input: `entailment premise: ${HOSTILE}`, target: "no", before: pass("extra stone", 1), after: pass("no", 2) },
    {
      input: "entailment premise: The clean stone is near the field.",
      target: "yes",
      before: pass("", 3),
      after: pass("yes", 3),
    },
  ],
  exported: { model: "models/demo-best", strategy: "all" },
};
