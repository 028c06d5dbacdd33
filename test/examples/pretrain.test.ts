import { fileURLToPath } from "node:url";
import { test } from "uvu";
import * as assert from "uvu/assert";
import { documentsOf } from "../../scripts/pretraining/corpus.ts";
import { lineExamples, windows } from "../../scripts/pretraining/examples.ts";
import { recipeOf } from "../../scripts/pretraining/recipe.ts";
import type { EncodedExample } from "../../src/trainer/data/dataset.ts";
import { sentinelIdsOf } from "../../src/trainer/data/span_corruption.ts";
import { loadTokenizer } from "../../src/trainer/data/tokenizer.ts";
import { elements } from "../../src/trainer/graph/graph.ts";
import { describeModel } from "../../src/trainer/model/open.ts";
import { switchModel } from "../../src/trainer/model/switch/switch.ts";

const MODEL = fileURLToPath(new URL("../../examples/models/mini-switch", import.meta.url));
const tokenizer = (await loadTokenizer(MODEL))!;
const EOS = 1;
const sentinels = new Set(sentinelIdsOf(tokenizer));

/**
 * The text behind a corrupted example: its ids without sentinels and end, sorted, since the spans' places do not matter
 * here.
 */
const contentOf = ({ inputIds, labels }: EncodedExample): string =>
  [...inputIds, ...labels]
    .filter((id) => !sentinels.has(id) && id !== EOS)
    .sort((a, b) => a - b)
    .join(" ");

const texts = Array.from({ length: 45 }, (_, i) => `The dog is ${"very ".repeat(i)}tired.`);

test("every line lies in one part only, whole, under different masks", () => {
  const { train, heldOut } = lineExamples(texts, tokenizer, EOS);
  assert.is(heldOut.length, 3);
  assert.is(train.length, 42 * 20);
  const expected = texts.map((text) =>
    tokenizer
      .encode(text, { special: false })
      .sort((a, b) => a - b)
      .join(" "),
  );
  const of = (examples: readonly EncodedExample[]) => [...new Set(examples.map(contentOf))].sort();
  assert.equal(of(heldOut), expected.filter((_, i) => i % 20 === 0).sort());
  assert.equal(of(train), expected.filter((_, i) => i % 20 !== 0).sort());
  assert.ok(new Set(train.map(({ inputIds }) => inputIds.join(" "))).size > 42 * 10, "masks differ");
});

test("windows hold every token once, documents closed by end of sequence", () => {
  const documents = [Uint32Array.of(5, 6, 7), Uint32Array.of(8), Uint32Array.of(9, 10, 11, 12)];
  assert.equal(
    windows(documents, 4, EOS).map((w) => [...w]),
    [
      [5, 6, 7, EOS],
      [8, EOS, 9, 10],
    ],
  );
});

test("of Python only docstrings are text, of documentation all, white space folded, short ones left out", () => {
  const long = "A sentence of forty characters, this one. ".repeat(6).trim();
  const source = `"""${long}\n   and more"""\nx = 1\ndef f():\n  '''${long}'''\n  """short"""\n`;
  assert.equal(documentsOf("a.py", source), [`${long} and more`, long]);
  assert.equal(documentsOf("a.md", `# ${long}\n\n${long}`), [`# ${long} ${long}`]);
  assert.equal(documentsOf("a.txt", "short"), []);
});

test("a command line lists all its mistakes", () => {
  const mistakes = recipeOf(["--batch-size", "0", "--optimizer", "sgd", "--learning-rate", "x"]);
  assert.type(mistakes, "string");
  assert.equal(
    (mistakes as string).split("\n").map((line) => line.split(" ")[0]),
    ["--optimizer", "give", "--batch-size", "--learning-rate"],
  );
});

test("the model in examples/ is what its configuration says, at most 3 MB", async () => {
  const { config, parameters } = await describeModel(MODEL);
  assert.is(config.vocab_size, Math.ceil(tokenizer.vocabularySize / 64) * 64);
  assert.is(
    parameters,
    switchModel(config).parameters.reduce((n, p) => n + elements(p.shape), 0),
  );
  assert.ok(parameters * 4 < 3e6, `${parameters * 4} bytes`);
});

test.run();
