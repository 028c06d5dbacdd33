import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { type EncodingProgress, encodeDataset, encodeDatasetInSlices } from "../../src/trainer/data/dataset.ts";
import { type Example, parseJsonl } from "../../src/trainer/data/jsonl.ts";
import type { Tokenizer } from "../../src/trainer/data/tokenizer.ts";
import { InputError } from "../../src/trainer/types.ts";

const test = suite("dataset");
const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);

async function problemsOf(action: () => unknown): Promise<string[]> {
  try {
    await action();
  } catch (error) {
    if (error instanceof InputError) return error.problems.map((problem) => problem.message);
    throw error;
  }
  return [];
}

test("reads text, token ids, ids and tasks, with their lines", async () => {
  const file = [
    '\ufeff{"input": "a", "target": "é", "id": 7, "task": "t", "note": [1]}\r',
    "",
    '{"input_ids": [3, 4], "target_ids": [5]}',
    "  \t",
    '{"input": " ", "target": "b", "id": "x"}',
    '{"input": "q", "target": "b", "answers": ["b", ""], "group": 4, "label": true}',
  ].join("\n");
  assert.equal(await parseJsonl(bytes(file)), [
    { line: 1, id: "7", task: "t", input: "a", target: "é" },
    { line: 3, inputIds: [3, 4], targetIds: [5] },
    { line: 5, id: "x", input: " ", target: "b" },
    { line: 6, input: "q", target: "b", answers: ["b", ""], group: "4", label: "true" },
  ]);
});

const good = '{"input":"a","target":"b"}';
const malformed: [what: string, line: string | Uint8Array, problems: RegExp[]][] = [
  ["text that is not JSON", "{", [/is not JSON/]],
  ["two objects on a line", good + good, [/is not JSON/]],
  ["a list", "[]", [/not a JSON object/]],
  ["null", "null", [/not a JSON object/]],
  ["an empty object", "{}", [/neither/]],
  ["text and token ids", '{"input":"a","target":"b","input_ids":[1],"target_ids":[1]}', [/has both/]],
  ["a missing target", '{"input":"a"}', [/has no "target"/]],
  ["an empty input and a numeric target", '{"input":"","target":1}', [/"input" is empty/, /"target" is not a string/]],
  ["a null input", '{"input":null,"target":"b"}', [/"input" is not a string/]],
  ["no token ids", '{"input_ids":[],"target_ids":[1]}', [/"input_ids" is empty/]],
  ["a negative token id", '{"input_ids":[-1],"target_ids":[1]}', [/"input_ids" is not a list of token ids/]],
  ["a fractional token id", '{"input_ids":[1],"target_ids":[1.5]}', [/"target_ids" is not a list of token ids/]],
  ["a list for an id, a number for a task", '{"input":"a","target":"b","id":[],"task":1}', [/"id"/, /"task"/]],
  [
    "answers that are no list, a list for a group, an object for a label",
    '{"input":"a","target":"b","answers":{"text":["b"]},"group":[],"label":{}}',
    [/"answers" is not a list of texts/, /"group"/, /"label"/],
  ],
  ["no answers", '{"input":"a","target":"b","answers":[]}', [/"answers"/]],
  ["invalid UTF-8", new Uint8Array([0x22, 0xc3, 0x28, 0x22]), [/not UTF-8/]],
  ["a line over 1 MiB", JSON.stringify({ input: "a".repeat(1 << 20), target: "b" }), [/longer than 1048576 bytes/]],
];

for (const [what, line, expected] of malformed) {
  test(`reports ${what} with its line number, once`, async () => {
    const content = typeof line === "string" ? bytes(line) : line;
    const file = new Uint8Array([...bytes(`${good}\n`), ...content, ...bytes(`\n${good}\n`)]);
    const problems = await problemsOf(() => parseJsonl(file, "train.jsonl"));
    assert.is(problems.length, expected.length, problems.join("\n"));
    for (const [i, pattern] of expected.entries()) {
      assert.match(problems[i], pattern);
      assert.match(problems[i], /^train\.jsonl: line 2: /);
    }
  });
}

test("a file without examples is a problem", async () => {
  for (const content of ["", "\n\n", "\ufeff"]) {
    assert.equal(await problemsOf(() => parseJsonl(bytes(content), "x")), ["x: the file has no examples"]);
  }
});

test("reports every bad line, the first twenty in words", async () => {
  const problems = await problemsOf(() => parseJsonl(bytes(`${good}\n${"?\n".repeat(30)}`)));
  assert.is(problems.length, 21);
  assert.is(problems[19], "line 21: is not JSON");
  assert.is(problems[20], "and 10 more problems");
});

test("a file on disk reads as its bytes do, lines across read boundaries included", async () => {
  const lines = Array.from({ length: 3000 }, (_, i) => JSON.stringify({ input: "é".repeat(i % 101) + i, target: "b" }));
  const directory = await mkdtemp(join(tmpdir(), "thaw-dataset-"));
  try {
    const path = join(directory, "train.jsonl");
    await writeFile(path, lines.join("\n"));
    const examples = await parseJsonl(path);
    assert.is(examples.length, lines.length);
    assert.equal(examples, await parseJsonl(bytes(lines.join("\n"))));
  } finally {
    await rm(directory, { recursive: true });
  }
});

/** One token per character, its code point; `appendsEos` as a T5 tokenizer does. */
const characters = (appendsEos: boolean): Tokenizer => ({
  encode: (text, { special }) => [...text].map((c) => c.codePointAt(0)!).concat(special && appendsEos ? [1] : []),
  decode: (ids) => String.fromCodePoint(...ids),
  vocabularySize: 128,
  specials: new Map([["</s>", 1]]),
});

const options = { maxInputTokens: 4, maxTargetTokens: 3, vocabularySize: 128, eosTokenId: 1 };
const [a, b, c, d] = [97, 98, 99, 100];

for (const appendsEos of [true, false]) {
  test(`ends every sequence in one eos (tokenizer ${appendsEos ? "appends" : "does not append"} it)`, () => {
    const examples: Example[] = [
      { line: 1, input: "abc", target: "d", task: "t" }, // fits exactly
      { line: 2, input: "abcd", target: "abc" }, // one too many each
      { line: 3, inputIds: [a, b, c, d, 1], targetIds: [a, b, 1] },
    ];
    const dataset = encodeDataset(examples, characters(appendsEos), options);
    assert.equal(
      dataset.examples.map((e) => [[...e.inputIds], [...e.labels]]),
      [
        [
          [a, b, c, 1],
          [d, 1],
        ],
        [
          [a, b, c, 1],
          [a, b, 1],
        ],
        [
          [a, b, c, 1],
          [a, b, 1],
        ],
      ],
    );
    assert.is(dataset.truncatedInputs, 2);
    assert.is(dataset.truncatedTargets, 1);
    assert.is(dataset.inputTokens, 12);
    assert.is(dataset.targetTokens, 8);
    assert.equal([dataset.examples[0].task, dataset.examples[0].target], ["t", "d"]);
    assert.is(dataset.examples[2].input, undefined);
  });
}

test("token ids outside the vocabulary are listed by line, from text and from ids", async () => {
  const examples: Example[] = [
    { line: 1, inputIds: [127], targetIds: [128] },
    { line: 4, input: "é", target: "a" },
  ];
  assert.equal(await problemsOf(() => encodeDataset(examples, characters(true), options)), [
    "line 1: target has token id 128; the model's vocabulary has 128",
    "line 4: input has token id 233; the model's vocabulary has 128",
  ]);
});

test("text needs a tokenizer, token ids do not", async () => {
  const ids: Example = { line: 1, inputIds: [a], targetIds: [b] };
  assert.is(encodeDataset([ids], undefined, options).examples.length, 1);
  const problems = await problemsOf(() =>
    encodeDataset([ids, { line: 2, input: "a", target: "b" }], undefined, options),
  );
  assert.is(problems.length, 1);
  assert.match(problems[0], /line 2: .*no tokenizer/);
});

test("encoding in slices gives the same, lets the event loop run and reports how far it is", async () => {
  const examples: Example[] = Array.from({ length: 300 }, (_, i) => ({
    line: i + 1,
    input: "a".repeat(i % 6),
    target: "b",
  }));
  const slow: Tokenizer = {
    ...characters(true),
    encode(text, encoding) {
      for (const end = performance.now() + 0.1; performance.now() < end; );
      return characters(true).encode(text, encoding);
    },
  };
  const seen: EncodingProgress[] = [];
  let turns = 0;
  const timer = setInterval(() => turns++, 1);
  const encoded = await encodeDatasetInSlices(examples, slow, options, (progress) => seen.push(progress));
  clearInterval(timer);
  assert.equal(encoded, encodeDataset(examples, characters(true), options));
  assert.ok(seen.length > 1 && turns > 0, `${seen.length} slices, ${turns} turns`); // 300 · 2 · 0.1 ms = 60 ms
  seen.slice(1).forEach((progress, i) => {
    assert.ok(progress.encoded > seen[i].encoded);
  });
  assert.equal(seen.at(-1), { encoded: 300, total: 300, truncatedInputs: 100, truncatedTargets: 0 });
  const bad: Example[] = [{ line: 3, inputIds: [128], targetIds: [1] }];
  assert.equal(await problemsOf(() => encodeDatasetInSlices(bad, undefined, options)), [
    "line 3: input has token id 128; the model's vocabulary has 128",
  ]);
});

test.run();
