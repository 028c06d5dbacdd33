import { fileURLToPath } from "node:url";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { convertTask } from "../../../src/trainer/tasks/convert.ts";
import { score } from "../../../src/trainer/tasks/score.ts";
import { SUPERGLUE } from "../../../src/trainer/tasks/superglue.ts";
import type { Purpose, TaskExample } from "../../../src/trainer/tasks/task.ts";

const test = suite("SuperGLUE");

const convert = (task: string, purpose: Purpose): Promise<TaskExample[]> =>
  convertTask(SUPERGLUE[task], fileURLToPath(new URL(`superglue/${task}.jsonl`, import.meta.url)), purpose);

const PARAGRAPH = "paragraph: Sent 1: Anna has a cat and a dog. Sent 2: The dog barks.";
const PASSAGE = "entities: Max, Oslo, Zoë Smith passage: 🙂 Zoë Smith met Max in Oslo. Max left. Zoë Smith stayed";

/** Per task: what evaluation reads, without ids; predictions, and what they score. */
const TASKS: Record<
  string,
  { pairs: [input: string, target: string][]; predictions: string[]; scores: Record<string, number> }
> = {
  boolq: {
    pairs: [
      ["boolq passage: Moon -- The Moon is Earth's only natural satellite. question: is the moon a planet", "False"],
      ["boolq passage: Tide -- Tides are caused by the Moon and the Sun. question: does the moon cause tides", "True"],
    ],
    predictions: ["False", "false"],
    scores: { accuracy: 0.5 },
  },
  cb: {
    pairs: [
      [
        "cb hypothesis: the lamp is broken premise: She said the lamp might be broken. I know it is not.",
        "contradiction",
      ],
      ["cb hypothesis: the door was open premise: He noticed that the door was open.", "entailment"],
      ["cb hypothesis: the train is late premise: Do you think the train is late?", "neutral"],
      ["cb hypothesis: the shop was closed premise: He knew that the shop was closed.", "entailment"],
    ],
    // entailment: TP 1, FN 1: 2/3; contradiction: TP 1: 1; neutral, never predicted: 0
    predictions: ["contradiction", "entailment", "", "perhaps"],
    scores: { f1_macro: (2 / 3 + 1 + 0) / 3, accuracy: 0.5 },
  },
  copa: {
    pairs: [
      [
        "copa choice1: The sun came out. choice2: The wind dropped. premise: The ice melted. question: cause",
        "choice1",
      ],
      ["copa choice1: It was full. choice2: It broke. premise: The cup fell. question: effect", "choice2"],
    ],
    predictions: ["choice1", "choice2"],
    scores: { accuracy: 1 },
  },
  multirc: {
    pairs: [
      [`multirc question: Which animals has Anna? answer: A cat ${PARAGRAPH}`, "True"],
      [`multirc question: Which animals has Anna? answer: A dog ${PARAGRAPH}`, "True"],
      [`multirc question: Which animals has Anna? answer: A horse ${PARAGRAPH}`, "False"],
      [`multirc question: Who barks? answer: The dog ${PARAGRAPH}`, "True"],
      [`multirc question: Who barks? answer: The cat ${PARAGRAPH}`, "False"],
    ],
    // TP 2, FN 1, FP 0; the second question is whole
    predictions: ["True", "False", "False", "True", "False"],
    scores: { f1_binary: 4 / 5, exact_match_group: 0.5 },
  },
  record: {
    pairs: [
      [`record query: @placeholder went home. ${PASSAGE}`, "Max"],
      [`record query: They met where @placeholder lives. ${PASSAGE}`, "Max"],
    ],
    // the second: of "Max" and "Zoë Smith", the latter shares one of one and one of two words
    predictions: ["The Max.", "Smith"],
    scores: { f1_token: (1 + 2 / 3) / 2, exact_match_squad: 0.5 },
  },
  rte: {
    pairs: [
      [
        "rte hypothesis: The bridge was built in the 19th century. premise: The bridge was built in 1890.",
        "entailment",
      ],
      ["rte hypothesis: The bridge was rebuilt. premise: The bridge was built in 1890.", "not_entailment"],
    ],
    predictions: ["not_entailment", "not_entailment"],
    scores: { accuracy: 0.5 },
  },
  wic: {
    pairs: [
      ["wic sentence1: He sat on the bank. sentence2: She went to the bank for money. word: bank", "False"],
      ["wic pos: V sentence1: They run daily. sentence2: I run each morning. word: run", "True"],
    ],
    predictions: ["False", "True"],
    scores: { accuracy: 1 },
  },
  wsc: {
    pairs: [
      [
        "wsc: Mark told Pete many lies about himself, which Pete included in his book. *He* should have been more sceptical.",
        "Mark",
      ],
      ["wsc: The dog chased the cat, and the owner scolded *it*. It ran from it.", "The dog"],
    ],
    // not the candidate, which is false: right; another than the candidate, which is true: wrong
    predictions: ["Pete", "the cat"],
    scores: { accuracy_referent: 0.5 },
  },
};

test("the eight tasks are there", () => {
  assert.equal(Object.keys(SUPERGLUE).sort(), Object.keys(TASKS).sort());
});

for (const [name, { pairs, predictions, scores }] of Object.entries(TASKS)) {
  test(`${name}: T5's prompt, target and score; the right predictions score 1`, async () => {
    const examples = await convert(name, "evaluation");
    assert.equal(
      examples.map(({ input, target }) => [input, target]),
      pairs,
    );
    assert.ok(examples.every(({ task }) => task === name));
    assert.is(new Set(examples.map(({ id }) => id)).size, examples.length);
    const scored = score(SUPERGLUE[name], predictions, examples);
    assert.equal(Object.keys(scored), Object.keys(scores));
    for (const [metric, expected] of Object.entries(scores)) {
      const actual = scored[metric as keyof typeof scored];
      assert.ok(Math.abs(actual! - expected) < 1e-14, `${metric}: ${actual}, expected ${expected}`);
    }
    const right = examples.map(({ target, label }) => (label === "False" ? "someone else" : target));
    for (const [metric, value] of Object.entries(score(SUPERGLUE[name], right, examples))) assert.is(value, 1, metric);
  });
}

test("ReCoRD trains on every accepted answer and is scored once per query", async () => {
  const examples = await convert("record", "training");
  assert.equal(
    examples.map(({ id, target, group, answers }) => [id, target, group, answers]),
    [
      ["record-3-5-0", "Max", "record-3-5", ["Max"]],
      ["record-3-6-0", "Max", "record-3-6", ["Max", "Zoë Smith"]],
      ["record-3-6-1", "Zoë Smith", "record-3-6", ["Max", "Zoë Smith"]],
    ],
  );
  assert.equal(score(SUPERGLUE.record, ["Max", "Zoë Smith", "nobody"], examples), {
    f1_token: 1,
    exact_match_squad: 1,
  });
});

test("WSC trains on true referents only", async () => {
  assert.equal(
    (await convert("wsc", "training")).map(({ id, target }) => [id, target]),
    [["wsc-1", "The dog"]],
  );
});

test("a file's mistakes are listed at once, by line and field, and a test file's missing labels are among them", async () => {
  const cases: [task: string, lines: unknown[], problems: string[]][] = [
    [
      "copa",
      [{ premise: 1, choice1: "a", choice2: "b", question: "cause", label: 2, idx: "0" }, [], { label: 0, idx: 1 }],
      [
        'line 1: "premise" is not a string',
        'line 1: "label" is 2, not one of 0, 1',
        'line 1: "idx" is not an integer',
        "line 2: is not a JSON object",
        'line 3: has no "choice1"',
        'line 3: has no "choice2"',
        'line 3: has no "premise"',
        'line 3: has no "question"',
      ],
    ],
    [
      "multirc",
      [{ idx: 0, passage: { text: "t", questions: [{ question: "q", idx: 0, answers: [{ text: "a", idx: 0 }] }, 3] } }],
      ['line 1: "passage.questions[1]" is not an object', 'line 1: has no "passage.questions[0].answers[0].label"'],
    ],
    [
      "record",
      [{ idx: 0, passage: { text: "t", entities: {} }, qas: [{ query: "q", idx: 0 }] }],
      ['line 1: "passage.entities" is not a list', 'line 1: has no "qas[0].answers"'],
    ],
    [
      "record",
      [{ idx: 0, passage: { text: "t", entities: [] }, qas: [{ query: "q", idx: 0, answers: [] }] }],
      ['line 1: "qas[0].answers" is empty'],
    ],
    [
      "wsc",
      [{ idx: 0, text: "A b.", label: true, target: { span1_text: "A", span2_text: "it", span2_index: 1 } }],
      ['line 1: "text" has no word "it"'],
    ],
  ];
  for (const [task, lines, problems] of cases) {
    const bytes = new TextEncoder().encode(lines.map((line) => JSON.stringify(line)).join("\n"));
    const error = await convertTask(SUPERGLUE[task], bytes, "evaluation").then(
      () => assert.unreachable(`${task}: accepted`),
      (thrown) => thrown,
    );
    assert.equal(error.message.split("\n").sort(), problems.sort());
  }
});

test.run();
