import { test } from "uvu";
import * as assert from "uvu/assert";
import { describeGroups, matchedTensors, resolveTrainable } from "../../src/trainer/groups.ts";
import { modelOf } from "../../src/trainer/model/open.ts";
import { InputError, PRESETS, type Selector, type TrainableSelection } from "../../src/trainer/types.ts";

const config = {
  model_type: "switch_transformers",
  vocab_size: 50,
  d_model: 16,
  d_kv: 4,
  num_heads: 4,
  d_ff: 24,
  num_layers: 12,
  num_decoder_layers: 2,
  num_sparse_encoder_layers: 6,
  num_sparse_decoder_layers: 1,
  num_experts: 4,
  tie_word_embeddings: false,
};
const { parameters } = modelOf(config);

const select = (s: Partial<TrainableSelection>): TrainableSelection => ({ add: [], remove: [], ...s });
const selector = (s: Partial<Selector>): Selector => ({ kinds: [], stacks: [], experts: [], ...s });
const names = (s: Partial<TrainableSelection>) => [...resolveTrainable(parameters, select(s)).keys()];
const kindsOf = (s: Partial<TrainableSelection>) => [
  ...new Set(matchedTensors(parameters, resolveTrainable(parameters, select(s))).map((t) => t.kind)),
];

const PRESET_TABLE: Record<(typeof PRESETS)[number], string[]> = {
  all: ["attention.cross", "attention.self", "embedding", "expert", "ffn", "head", "norm", "router"],
  non_moe: ["attention.cross", "attention.self", "embedding", "ffn", "head", "norm"],
  moe: ["expert", "router"],
  attention: ["attention.cross", "attention.self"],
  ffn: ["ffn"],
};
for (const preset of PRESETS)
  test(`preset ${preset} trains exactly its kinds`, () => {
    assert.equal(kindsOf({ preset }).sort(), PRESET_TABLE[preset]);
  });

test("non_moe and moe partition the model", () => {
  const all = names({ preset: "all" });
  assert.is(all.length, parameters.length);
  assert.equal([...names({ preset: "non_moe" }), ...names({ preset: "moe" })].sort(), all.sort());
});

test("the relative position bias is part of self-attention", () => {
  assert.is(names({ preset: "attention" }).filter((n) => n.includes("relative_attention_bias")).length, 2);
});

test("a layer range matches by structure: layer 1 is not layer 11", () => {
  const layers = { first: 1, last: 1 };
  const matched = names({ add: [selector({ stacks: ["encoder"], layers })] });
  assert.ok(matched.length > 0);
  assert.ok(matched.every((n) => n.startsWith("encoder.block.1.")));
});

test("an expert set selects entries of the expert axis and nothing else", () => {
  const set = resolveTrainable(parameters, select({ add: [selector({ experts: [2, 0, 2] })] }));
  assert.ok([...set.values()].every((entry) => entry !== true && entry.join() === "0,2"));
  const tensors = matchedTensors(parameters, set);
  assert.ok(tensors.every((t) => t.kind === "expert" && t.parameters === 2 * 16 * 24));
});

test("all experts selected one by one are the whole tensor", () => {
  const set = resolveTrainable(parameters, select({ add: [selector({ experts: [0, 1, 2, 3] })] }));
  assert.ok([...set.values()].every((entry) => entry === true));
});

test("remove comes after add, and the router switch after both", () => {
  assert.not.ok(kindsOf({ preset: "all", remove: [selector({ kinds: ["norm"] })] }).includes("norm"));
  assert.equal(kindsOf({ preset: "moe", router: false }), ["expert"]);
  assert.equal(kindsOf({ preset: "ffn", router: true }).sort(), ["ffn", "router"]);
});

test("every selector that matches nothing is named, all at once", () => {
  const selection = select({
    preset: "ffn",
    add: [selector({ layers: { first: 90, last: 99 } }), selector({ kinds: ["norm"] }), selector({ experts: [77] })],
    remove: [selector({ kinds: ["router"], experts: [0] })],
  });
  try {
    resolveTrainable(parameters, selection);
    assert.unreachable();
  } catch (error) {
    assert.instance(error, InputError);
    const fields = (error as InputError).problems.map((p) => p.field);
    assert.equal(fields, ["trainable.add[0]", "trainable.add[2]", "trainable.remove[0]"]);
  }
});

test("a selection that trains nothing is refused", () => {
  assert.throws(() => names({}), /trains nothing/);
  assert.throws(() => names({ preset: "ffn", remove: [selector({})] }), /trains nothing/);
});

test("groups count every parameter once", () => {
  const groups = describeGroups(parameters);
  const total = parameters.reduce((n, p) => n + p.shape.reduce((a, b) => a * b, 1), 0);
  assert.is(
    groups.reduce((n, g) => n + g.parameters, 0),
    total,
  );
  assert.is(
    groups.reduce((n, g) => n + g.tensors, 0),
    parameters.length,
  );
});

test.run();
