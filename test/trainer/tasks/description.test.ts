import { Buffer } from "node:buffer";
import { mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { parseJsonl } from "../../../src/trainer/data/jsonl.ts";
import { convertTask } from "../../../src/trainer/tasks/convert.ts";
import { readTask, taskFromDescription } from "../../../src/trainer/tasks/description.ts";
import { score } from "../../../src/trainer/tasks/score.ts";
import type { TaskExample } from "../../../src/trainer/tasks/task.ts";

const TASKS = fileURLToPath(new URL("../../../examples/tasks/", import.meta.url));
const bytesOf = (...lines: unknown[]): Uint8Array =>
  new TextEncoder().encode(lines.map((line) => JSON.stringify(line)).join("\n"));

async function messages(work: () => Promise<unknown>): Promise<string[]> {
  try {
    await work();
  } catch (error) {
    assert.is((error as Error).name, "InputError");
    return (error as Error).message.split("\n");
  }
  throw new Error("nothing was refused");
}

const test = suite("task descriptions");

test("the example task files convert lines of their data sets", async () => {
  const cases: Record<string, { line: unknown; example: TaskExample }> = {
    "cola.json": {
      line: { sentence: "They sleeps.", label: 0, idx: 3 },
      example: { task: "cola", id: "cola-3", input: "cola sentence: They sleeps.", target: "unacceptable" },
    },
    "mrpc.json": {
      line: { sentence1: "A.", sentence2: "B.", label: 1, idx: 0 },
      example: { task: "mrpc", id: "mrpc-0", input: "mrpc sentence1: A. sentence2: B.", target: "equivalent" },
    },
    "squad.json": {
      line: {
        id: "5f",
        question: "Who?",
        context: "Max did.",
        answers: { text: ["Max", "Max did"], answer_start: [0, 0] },
      },
      example: {
        task: "squad",
        id: "5f",
        input: "question: Who? context: Max did.",
        target: "Max",
        answers: ["Max", "Max did"],
      },
    },
  };
  const files = (await readdir(TASKS)).filter((name) => name.endsWith(".json"));
  assert.equal(files.sort(), Object.keys(cases));
  for (const [file, { line, example }] of Object.entries(cases)) {
    const definition = await readTask(`${TASKS}${file}`);
    const examples = await convertTask(definition, bytesOf(line), "training");
    assert.equal(examples, [example]);
    for (const value of Object.values(score(definition, [example.target], examples))) {
      assert.ok(value === 1 || file === "cola.json"); // one example has no correlation
    }
  }
});

test("templates reach nested fields, keep braces, and take numbers and booleans as written", async () => {
  const definition = taskFromDescription({
    name: "nested",
    input: "{{{a.b}}} {n} {yes} {{x}}",
    target: "{a.c-d}!",
    group: "g{n}",
    metrics: ["exact_match_group"],
  });
  const examples = await convertTask(
    definition,
    bytesOf({ a: { b: "$&", "c-d": "t" }, n: 1.5, yes: true }),
    "training",
  );
  assert.equal(examples, [{ task: "nested", input: "{$&} 1.5 true {x}", target: "t!", group: "g1.5", id: "nested-1" }]);
});

test("converted examples are lines that thaw reads", async () => {
  const definition = await readTask(`${TASKS}squad.json`);
  const line = { id: "1", question: "Who?", context: "Max did.", answers: { text: ["Max"] } };
  const examples = await convertTask(definition, bytesOf(line), "evaluation");
  assert.equal(examples[0].answers, ["Max"]);
  assert.equal(await parseJsonl(bytesOf(...examples)), [{ line: 1, ...examples[0] }]);
});

test("a file on disk reads as its bytes do, across the chunks it is read in", async () => {
  const definition = taskFromDescription({ name: "n", input: "{text}", target: "t", metrics: ["exact_match"] });
  // Three bytes a character: a chunk of 2^16 ends inside one.
  const lines = [1, 20_000, 30_000, 70_000, 1].map((length) => ({ text: "语".repeat(length) }));
  const directory = await mkdtemp(join(tmpdir(), "thaw-task-"));
  try {
    const path = join(directory, "lines.jsonl");
    await writeFile(path, Buffer.concat([Buffer.from("\ufeff"), bytesOf(...lines), Buffer.from("\n\n")]));
    const examples = await convertTask(definition, path, "training");
    assert.ok(examples.every(({ input }, i) => input === lines[i].text));
    assert.is(examples.length, lines.length);
    await writeFile(path, "{}");
    assert.equal(await messages(() => convertTask(definition, path, "training", "lines.jsonl")), [
      'lines.jsonl: line 1: has no "text"',
    ]);
  } finally {
    await rm(directory, { recursive: true });
  }
});

test("everything wrong with a description is listed at once", async () => {
  const cases: [description: unknown, problems: string[]][] = [
    [[], ["t.json: is not an object"]],
    [
      {},
      ['has no "name"', 'has no "input"', 'has no "metrics"', 'has neither "target" nor "answers"'].map(
        (problem) => `t.json: ${problem}`,
      ),
    ],
    [
      {
        name: "",
        input: "{a} {b c} } {",
        target: "it is {label}",
        labels: { 0: "no", 1: 1 },
        positive: "yes",
        prompt: "x",
        metrics: ["f1_binary", "bleu", "exact_match_group"],
      },
      [
        't.json: has an unknown "prompt"; known are name, input, target, answers, group, id, labels, positive, metrics',
        't.json: "name" is not a text',
        't.json: "input" has {b c}, which is not the name of a field',
        't.json: "input" has a single }; write }}',
        't.json: "input" has a single {; write {{',
        't.json: "labels.1" is not a text',
        't.json: "metrics" has "bleu"; known are accuracy, exact_match, exact_match_group, exact_match_squad, f1_binary, f1_macro, f1_token, matthews',
        't.json: "positive" is none of the labels: yes',
        't.json: "metrics" has f1_binary, which needs two "labels"',
        't.json: "metrics" has exact_match_group, which needs "group"',
        't.json: "target" is not one field, which "labels" are for',
      ],
    ],
    [
      { name: "n", input: "{a}", answers: "a[]", labels: [], metrics: [] },
      [
        't.json: "answers" is not the name of a field: a[]',
        't.json: "labels" is not a map from values of the file to texts',
        't.json: "metrics" is not a list of metrics',
      ],
    ],
  ];
  for (const [description, problems] of cases) {
    assert.equal(await messages(async () => taskFromDescription(description, "t.json")), problems);
  }
});

test("a data file's mistakes are listed at once, by line and field", async () => {
  const definition = taskFromDescription({
    name: "n",
    input: "{text.body}",
    target: "{label}",
    labels: { no: "no", yes: "yes" },
    answers: "all",
    metrics: ["accuracy"],
  });
  const good = { text: { body: "b" }, label: "no", all: ["no"] };
  const lines = [
    JSON.stringify(good),
    "",
    JSON.stringify({ ...good, text: {} }),
    JSON.stringify({ ...good, text: "b", label: "perhaps" }),
    "{",
    JSON.stringify({ ...good, text: { body: null }, all: ["no", 1] }),
    JSON.stringify({ ...good, text: { body: [] }, label: "toString" }),
    JSON.stringify({ ...good, all: [] }),
    JSON.stringify({ ...good, text: { body: " " } }),
  ];
  const problems = await messages(() =>
    convertTask(definition, new TextEncoder().encode(lines.join("\r\n")), "training"),
  );
  assert.equal(problems, [
    'line 3: has no "text.body"',
    'line 4: "text" is not an object',
    'line 4: "label" is "perhaps", not one of no, yes',
    "line 5: is not JSON",
    'line 6: has no "text.body"',
    'line 6: "all[1]" is not a string',
    'line 7: "text.body" is not a string, number or boolean',
    'line 7: "label" is "toString", not one of no, yes',
    'line 8: "all" is empty',
    "line 9: makes an empty input",
  ]);
  assert.equal(await messages(() => convertTask(definition, new Uint8Array(), "training")), [
    "the file has no examples",
  ]);
  const broken = Uint8Array.from([0x22, 0xff, 0x22, 0x0a]);
  assert.equal(await messages(() => convertTask(definition, broken, "training")), ["line 1: is not UTF-8"]);
});

test.run();
