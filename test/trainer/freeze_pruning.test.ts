// What is frozen costs nothing: shown on the lowered graph, dispatch by dispatch, without a device.

import { test } from "uvu";
import * as assert from "uvu/assert";
import { tensorBytes, wholes } from "../../src/trainer/graph/graph.ts";
import type { LoweredGraph } from "../../src/trainer/graph/lowered.ts";
import { lowerGraph } from "../../src/trainer/graph/lowered.ts";
import { resolveTrainable, type TrainableSet } from "../../src/trainer/groups.ts";
import type { TrainingGraph } from "../../src/trainer/model/family.ts";
import { modelOf } from "../../src/trainer/model/open.ts";
import { type OptimizerAlgorithm, PRESETS, type Selector, type TrainableSelection } from "../../src/trainer/types.ts";
import { TINY_CONFIG } from "../support/tiny_model.ts";

const model = modelOf(TINY_CONFIG);
const options = {
  batch: 3,
  inputLength: 8,
  targetLength: 4,
  train: true,
  dropout: 0.1,
  expertDropout: 0.1,
  routing: {
    trainCapacity: { rule: "factor", factor: 1.25 },
    evalCapacity: { rule: "dropless" },
    group: "batch",
    routePadding: false,
    jitter: 0.01,
  },
  losses: { balanceCoefficient: 1e-2, zCoefficient: 1e-3 },
  lossGradient: true,
  packed: false,
  sumGradients: false,
  arenaBytes: 2 ** 27,
} as const;

const ADAMW = { kind: "adamw", beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0.01 } as const;

interface Built {
  trainable: TrainableSet;
  training: TrainingGraph;
  lowered: LoweredGraph;
}

function build(
  selection: Partial<TrainableSelection>,
  changes: Partial<typeof options> = {},
  algorithm: OptimizerAlgorithm = ADAMW,
): Built {
  const trainable = resolveTrainable(model.parameters, { add: [], remove: [], ...selection });
  const training = model.trainingGraph("software", trainable, { ...options, ...changes }, algorithm);
  return { trainable, training, lowered: lowerGraph(training.graph, 256) };
}

const selector = (s: Partial<Selector>): Selector => ({ kinds: [], stacks: [], experts: [], ...s });
/** Optimizer state of parameters; its arenas have none. */
const stateOf = ({ graph }: TrainingGraph) => graph.tensors.filter((t) => t.role === "optimizer" && t.parameter);
const bytesOf = ({ lowered }: Built) => lowered.memory.slotBytes.reduce((n, b) => n + b, 0);
const backwardWrites = ({ training }: Built) =>
  training.graph.nodes.filter((n) => n.phase === "backward").flatMap((n) => n.writes.map((t) => t.name));

for (const preset of PRESETS) {
  test(`${preset}: weight-gradient dispatches exist for trainable tensors and for no other`, () => {
    const { trainable, lowered } = build({ preset });
    assert.equal([...lowered.weightGradientDispatches.keys()].sort(), [...trainable.keys()].sort());
  });

  test(`${preset}: optimizer state exists for trainable tensors and for no other`, () => {
    const { trainable, training, lowered } = build({ preset });
    const state = stateOf(training);
    assert.equal([...new Set(state.map((t) => t.parameter!.name))].sort(), [...trainable.keys()].sort());
    const trained = model.parameters.filter((p) => trainable.has(p.name));
    const parameters = trained.reduce((n, p) => n + p.shape.reduce((a, b) => a * b, 1), 0);
    const updated = training.graph.nodes.filter((n) => n.phase === "optimizer" && n.name === "adamw");
    const flops = updated.reduce((n, node) => n + node.flops, 0);
    assert.is(flops, 12 * parameters, "what is updated");
    // Members of an arena begin at multiples of 256 bytes; an empty one is 16.
    const { optimizer, gradient } = lowered.memory.bytes;
    assert.ok(optimizer >= 8 * parameters && optimizer < 8 * parameters + 512 * trainable.size + 32);
    assert.ok(gradient >= 4 * parameters && gradient < 4 * parameters + 256 * trainable.size + 16);
  });
}

test("training less never costs more: dispatches, FLOPs, activation bytes", () => {
  const all = build({ preset: "all" });
  for (const preset of PRESETS.filter((p) => p !== "all")) {
    const some = build({ preset });
    assert.ok(some.lowered.dispatches < all.lowered.dispatches, preset);
    assert.ok(some.lowered.flops.backward < all.lowered.flops.backward, preset);
    assert.ok(bytesOf(some) <= bytesOf(all), preset);
  }
});

test("backward stops at the lowest trainable layer", () => {
  const encoderTop = build({ add: [selector({ kinds: ["ffn"], stacks: ["encoder"], layers: { first: 2, last: 3 } })] });
  const below = backwardWrites(encoderTop).filter((name) =>
    /^d_encoder\.block\.[01]\.|^d_encoder_embedding/.test(name),
  );
  assert.equal(below, []);
  // Layer 2's attention lies below its feed-forward, whose wi is the lowest trainable tensor.
  assert.equal(
    backwardWrites(encoderTop).filter((name) => name.startsWith("d_encoder.block.2.layer.0")),
    [],
  );
});

test("training only the decoder sends no gradient into the encoder, and keeps nothing of it", () => {
  const decoder = build({ add: [selector({ kinds: ["ffn"], stacks: ["decoder"] })] });
  assert.equal(
    backwardWrites(decoder).filter((name) => name.includes("encoder.") || name.includes("encoder_output")),
    [],
  );
  const { nodes } = decoder.training.graph;
  const firstBackward = nodes.findIndex((n) => n.phase === "backward");
  const read = nodes.slice(firstBackward).flatMap((n) => n.reads.map((t) => t.name));
  assert.equal(
    read.filter((name) => name.startsWith("encoder")),
    [],
  );
});

test("training the head alone has no backward dispatch but the head's own", () => {
  const untied = modelOf({ ...TINY_CONFIG, tie_word_embeddings: false });
  const trainable = resolveTrainable(untied.parameters, { add: [selector({ kinds: ["head"] })], remove: [] });
  const built = untied.trainingGraph("software", trainable, options, ADAMW);
  assert.is(built.graph.nodes.filter((n) => n.phase === "backward").length, 0);
  assert.equal([...lowerGraph(built.graph, 256).weightGradientDispatches.keys()], ["lm_head.weight"]);
});

test("a frozen router still passes the router losses into the layers below, unless they are off", () => {
  const nodes = (lossGradient: boolean) =>
    build({ preset: "ffn" }, { lossGradient } as Partial<typeof options>).training.graph.nodes.map((n) => n.name);
  assert.ok(nodes(true).includes("router_gradient"));
  // The gates still depend on the layers below, so the router's input gradient stays; its weight gradient never exists.
  assert.not.ok(
    [...build({ preset: "ffn" }).lowered.weightGradientDispatches.keys()].some((n) => n.includes("router")),
  );
});

test("an expert's gradient and state are compact over the trainable experts", () => {
  const some = build({ add: [selector({ kinds: ["expert"], experts: [1, 3] })] });
  for (const { gradient, state, slots } of some.training.optimizer.entries) {
    assert.equal(slots, [1, 3]);
    for (const t of [gradient, ...state.map((s) => s.tensor)]) assert.is(t.shape[0], 2);
  }
  const whole = build({ add: [selector({ kinds: ["expert"] })] });
  const bytes = (built: Built) => stateOf(built.training).reduce((n, t) => n + tensorBytes(t), 0);
  assert.is(bytes(some) * 2, bytes(whole));
  assert.ok(some.lowered.memory.bytes.optimizer - bytes(some) < 256 * stateOf(some.training).length);
});

test("each optimizer remembers what it needs of trainable entries, and no more", () => {
  const adafactor = {
    kind: "adafactor",
    decayRate: 0.8,
    clipThreshold: 1,
    epsilon: 1e-30,
    minParameterScale: 1e-3,
    minDimensionToFactor: 12,
    weightDecay: 0,
  } as const;
  // wi of two experts is [2, 20, 12], the router [4, 12].
  const wi = "encoder.block.1.layer.1.mlp.experts.wi.weight";
  const router = "encoder.block.1.layer.1.mlp.router.classifier.weight";
  const moments = { [wi]: [2, 20, 12], [router]: [1, 4, 12] };
  const cases: [OptimizerAlgorithm, Record<string, readonly number[]>][] = [
    [ADAMW, Object.fromEntries(Object.entries(moments).flatMap(([n, d]) => ["m", "v"].map((k) => [`${k}.${n}`, d])))],
    [adafactor, { [`row.${wi}`]: [2, 20], [`column.${wi}`]: [2, 12], [`v.${router}`]: [1, 4, 12] }],
    [
      { kind: "sgd", momentum: 0.9, weightDecay: 0 },
      { [`m.${wi}`]: [2, 20, 12], [`m.${router}`]: [1, 4, 12] },
    ],
    [{ kind: "sgd", momentum: 0, weightDecay: 0 }, {}],
  ];
  const add = [selector({ kinds: ["expert"], experts: [1, 3] }), selector({ kinds: ["router"] })];
  for (const [algorithm, expected] of cases) {
    const { training, lowered } = build({ add }, {}, algorithm);
    const state = stateOf(training);
    const here = state.filter((t) => t.parameter!.name === wi || t.parameter!.name === router);
    assert.equal(Object.fromEntries(here.map((t) => [t.name, t.shape])), expected, algorithm.kind);
    const arenas = wholes(state);
    assert.is(
      lowered.memory.bytes.optimizer,
      [...arenas].reduce((n, t) => n + tensorBytes(t), 0),
    );
    // Nothing lies in an arena but state, each member where the one before has ended.
    for (const arena of arenas) {
      let end = 0;
      for (const t of state.filter((member) => member.part?.of === arena)) {
        assert.is(t.part?.offset, Math.ceil(end / 256) * 256);
        end = t.part!.offset + tensorBytes(t);
      }
      assert.is(Math.ceil(end / 16) * 16, tensorBytes(arena));
    }
  }
});

test("tensors alive at the same time never share a slot", () => {
  const { training, lowered } = build({ preset: "all" });
  const spans = new Map<number, { name: string; slot: number; first: number; last: number }>();
  training.graph.nodes.forEach((node, i) => {
    for (const t of [...node.reads, ...node.writes, ...node.scratch]) {
      if (t.role !== "activation") continue;
      const slot = lowered.memory.slotOf.get(t)!;
      const span = spans.get(t.id) ?? { name: t.name, slot, first: i, last: i };
      spans.set(t.id, { ...span, last: t.kept ? training.graph.nodes.length : i });
    }
  });
  const list = [...spans.values()];
  for (const a of list)
    for (const b of list)
      if (a !== b && a.slot === b.slot) assert.ok(a.last < b.first || b.last < a.first, `${a.name} and ${b.name}`);
});

test.run();
