import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { SPLITS, type Split } from "../../scripts/example_data/draw.ts";
import { makeData, TASKS } from "../../scripts/make_data.ts";
import { makeTokenizer, tokenizerTexts } from "../../scripts/make_tokenizer.ts";
import { parseJsonl, type TextExample } from "../../src/trainer/data/jsonl.ts";
import { sentinelIdsOf } from "../../src/trainer/data/span_corruption.ts";
import { loadTokenizer } from "../../src/trainer/data/tokenizer.ts";

const EXAMPLES = fileURLToPath(new URL("../../examples/", import.meta.url));
const MODEL = `${EXAMPLES}models/mini-switch`;

const readSplit = async (task: string, split: Split): Promise<TextExample[]> =>
  (await parseJsonl(`${EXAMPLES}data/${task}/${split}.jsonl`)) as TextExample[];

const tokenizer = await loadTokenizer(MODEL);
assert.ok(tokenizer, "examples/models/mini-switch has a tokenizer");

const test = suite("example data");

test("the committed data is what the script writes, to the byte", async () => {
  for (const [path, content] of makeData()) {
    assert.ok((await readFile(`${EXAMPLES}data/${path}`, "utf8")) === content, `${path} differs: run make_data.ts`);
  }
});

test("the committed tokenizer is what the script learns from the committed data, to the byte", async () => {
  for (const [name, content] of makeTokenizer(await tokenizerTexts(`${EXAMPLES}data`))) {
    assert.ok((await readFile(`${MODEL}/${name}`, "utf8")) === content, `${name} differs: run make_tokenizer.ts`);
  }
});

for (const [name, task] of Object.entries(TASKS)) {
  test(`${name}: sizes as declared, labels balanced in every split, no input twice`, async () => {
    const inputs = new Set<string>();
    for (const split of SPLITS) {
      const examples = await readSplit(name, split);
      assert.is(examples.length, task.sizes[split]);
      for (const label of task.labels) {
        assert.is(examples.filter(({ target }) => target === label).length, examples.length / task.labels.length);
      }
      for (const { input } of examples) inputs.add(input);
    }
    const total = SPLITS.reduce((sum, split) => sum + task.sizes[split], 0);
    assert.is(inputs.size, total);
  });

  test(`${name}: neither the words nor the length of an input tell its label`, async () => {
    const cues: [what: string, of: (input: string) => string[], most: number][] = [
      ["words", (input) => [...new Set(input.split(" "))], 0.6],
      ["length in words", (input) => [String(input.split(" ").length)], 0.6],
      ["length in letters", (input) => [String(Math.round(input.length / 3))], 0.6],
    ];
    const [train, held] = [await readSplit(name, "train"), await readSplit(name, "test")];
    for (const [what, of, most] of cues) {
      const accuracy = naiveBayesAccuracy(train, held, of);
      assert.ok(accuracy < most, `${what}: ${accuracy}`);
    }
  });

  test(`${name}: fits the tokens a CPU trains on; every target is one token and end of sequence`, async () => {
    const most = name === "reading" ? 48 : 40;
    for (const split of SPLITS) {
      for (const { input, target } of await readSplit(name, split)) {
        assert.ok(tokenizer.encode(input, { special: true }).length <= most, input);
        assert.is(tokenizer.encode(target, { special: true }).length, 2, target);
      }
    }
  });
}

/** Accuracy on `held` of a two-class naive Bayes classifier (add-one smoothing) trained on `train`. */
function naiveBayesAccuracy(train: TextExample[], held: TextExample[], cuesOf: (input: string) => string[]): number {
  const positive = train[0].target;
  const counts = new Map<string, [yes: number, no: number]>();
  for (const { input, target } of train) {
    for (const cue of cuesOf(input)) {
      const count = counts.get(cue) ?? [1, 1];
      count[target === positive ? 0 : 1]++;
      counts.set(cue, count);
    }
  }
  const right = held.filter(({ input, target }) => {
    const evidence = cuesOf(input).reduce((sum, cue) => {
      const [yes, no] = counts.get(cue) ?? [1, 1];
      return sum + Math.log(yes / no);
    }, 0);
    return evidence > 0 === (target === positive);
  });
  return right.length / held.length;
}

test("what the test split asks or states was never asked or stated in training", async () => {
  const parts = {
    reading: (input: string) => input.split("question: ")[1],
    acceptability: (input: string) => input,
    entailment: (input: string) => input,
  };
  for (const [name, part] of Object.entries(parts)) {
    const seen = new Set((await readSplit(name, "train")).map(({ input }) => part(input)));
    for (const { input } of await readSplit(name, "test")) assert.not.ok(seen.has(part(input)), input);
  }
});

test("the pre-training text is small and holds no sentence of an acceptability test", async () => {
  const text = await readFile(`${EXAMPLES}data/pretraining.txt`, "utf8");
  assert.ok(text.length <= 600_000);
  for (const split of ["validation", "test"] as const) {
    for (const { input } of await readSplit("acceptability", split)) {
      assert.not.ok(text.includes(input.replace("acceptability sentence: ", "")), input);
    }
  }
});

test("the tokenizer gives T5's ids to special tokens and one token to nearly every word of the world", async () => {
  assert.is(tokenizer.vocabularySize, 960);
  for (const [content, id] of [
    ["<pad>", 0],
    ["</s>", 1],
    ["<unk>", 2],
  ] as const) {
    assert.is(tokenizer.specials.get(content), id);
  }
  assert.equal(
    sentinelIdsOf(tokenizer),
    Array.from({ length: 16 }, (_, i) => 944 + i),
  );
  const words = new Set<string>();
  for (const name of Object.keys(TASKS)) {
    for (const { input } of await readSplit(name, "test"))
      for (const [word] of input.matchAll(/\p{L}+/gu)) words.add(word);
  }
  const whole = [...words].filter((word) => tokenizer.encode(word, { special: false }).length === 1);
  assert.ok(words.size > 250 && whole.length > 0.95 * words.size, `${whole.length} of ${words.size} words`);
});

test("any text comes back from its ids unchanged", () => {
  for (const text of [
    "",
    " ",
    "  two  spaces ",
    "naïve — “quotes”",
    "日本語 🙂\n\ttab\r\n",
    "don't 12,345.67",
    "\u0000\u00ad",
  ]) {
    const ids = tokenizer.encode(text, { special: true });
    assert.is(ids.at(-1), 1);
    assert.not.ok(ids.includes(2));
    assert.is(tokenizer.decode(ids, { skipSpecial: true }), text);
  }
});

test.run();
