import { fileURLToPath } from "node:url";
import { test } from "uvu";
import * as assert from "uvu/assert";
import { corruptedTexts, modelConfig } from "../../scripts/pretrain.ts";
import { sentinelIdsOf } from "../../src/trainer/data/span_corruption.ts";
import { loadTokenizer } from "../../src/trainer/data/tokenizer.ts";
import { elements } from "../../src/trainer/graph/graph.ts";
import { describeModel } from "../../src/trainer/model/open.ts";
import { switchModel } from "../../src/trainer/model/switch/switch.ts";

const MODEL = fileURLToPath(new URL("../../examples/models/mini-switch", import.meta.url));
const tokenizer = (await loadTokenizer(MODEL))!;
const sentinels = new Set(sentinelIdsOf(tokenizer));

type Line = { input_ids: number[]; target_ids: number[] };
const parse = (jsonl: string): Line[] =>
  jsonl
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line));

/** The text behind a corrupted example: its ids without sentinels, sorted, since the spans' places do not matter here. */
const contentOf = ({ input_ids, target_ids }: Line): string =>
  [...input_ids, ...target_ids]
    .filter((id) => !sentinels.has(id))
    .sort((a, b) => a - b)
    .join(" ");

const texts = Array.from({ length: 45 }, (_, i) => `The dog is ${"very ".repeat(i)}tired.`);

test("every text lies in one part only, whole, under different masks", () => {
  const train = parse(corruptedTexts(texts, tokenizer, "train", 4));
  const heldOut = parse(corruptedTexts(texts, tokenizer, "held_out", 1));
  assert.is(heldOut.length, 3);
  assert.is(train.length, 42 * 4);
  const expected = texts.map((text) =>
    contentOf({ input_ids: tokenizer.encode(text, { special: false }), target_ids: [] }),
  );
  const of = (lines: readonly Line[]) => [...new Set(lines.map(contentOf))].sort();
  assert.equal(of(heldOut), expected.filter((_, i) => i % 20 === 0).sort());
  assert.equal(of(train), expected.filter((_, i) => i % 20 !== 0).sort());
  assert.ok(new Set(train.map((line) => JSON.stringify(line))).size > 42 * 2, "masks differ");
});

test("the model in examples/ is the one its script makes, at most 3 MB", async () => {
  const description = await describeModel(MODEL);
  const config = modelConfig(Math.ceil(tokenizer.vocabularySize / 64) * 64);
  for (const [field, value] of Object.entries(config)) assert.equal(description.config[field], value, field);
  const parameters = switchModel(config).parameters.reduce((n, p) => n + elements(p.shape), 0);
  assert.is(description.parameters, parameters);
  assert.ok(parameters * 4 < 3e6, `${parameters * 4} bytes`);
});

test.run();
