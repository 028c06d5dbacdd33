import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { byteTokenizer } from "../../src/trainer/data/byte_tokenizer.ts";
import { loadTokenizer } from "../../src/trainer/data/tokenizer.ts";
import { InputError } from "../../src/trainer/types.ts";

const FIXTURES = new URL("../../../shared/fixtures/tokenizers/", import.meta.url).pathname;

interface Case {
  readonly text: string;
  readonly ids: number[];
  readonly ids_plain: number[];
  readonly decoded: string;
}

const test = suite("tokenizer");

for (const kind of ["unigram", "byte-bpe"]) {
  test(`${kind}: ids and text as the reference implementation gives them`, async () => {
    const tokenizer = await loadTokenizer(join(FIXTURES, kind));
    assert.ok(tokenizer);
    const cases: Case[] = JSON.parse(await readFile(join(FIXTURES, kind, "cases.json"), "utf8"));
    for (const { text, ids, ids_plain, decoded } of cases) {
      assert.equal(tokenizer.encode(text, { special: true }), ids, text);
      assert.equal(tokenizer.encode(text, { special: false }), ids_plain, text);
      assert.is(tokenizer.decode(ids, { skipSpecial: true }), decoded);
    }
    assert.ok(cases.length > 5);
  });
}

test("special tokens and vocabulary size include what was added to the model's vocabulary", async () => {
  const tokenizer = await loadTokenizer(join(FIXTURES, "unigram"));
  assert.ok(tokenizer);
  assert.is(tokenizer.specials.get("</s>"), 1);
  assert.is(tokenizer.specials.get("<extra_id_0>"), 900);
  assert.is(tokenizer.vocabularySize, Math.max(...tokenizer.specials.values()) + 1);
  assert.is(tokenizer.decode([1], { skipSpecial: false }), "</s>");
});

const bytes = byteTokenizer({});
const byteCases: [text: string, ids: number[]][] = [
  ["", []],
  ["a\0é", [100, 3, 198, 172]],
  ["日", [233, 154, 168]],
  ["\ufeffx", [242, 190, 194, 123]], // a byte order mark is text
  ["a<extra_id_0>b<extra_id_10></s>", [100, 259, 101, 269, 1]],
  ["<extra_id_>", [63, 104, 123, 119, 117, 100, 98, 108, 103, 98, 65]],
];
for (const [text, ids] of byteCases) {
  test(`bytes: ${JSON.stringify(text)} is its UTF-8, three up, and comes back`, () => {
    assert.equal(bytes.encode(text, { special: false }), ids);
    assert.equal(bytes.encode(text, { special: true }), ids.at(-1) === 1 ? ids : [...ids, 1]);
    assert.is(bytes.decode(ids, { skipSpecial: false }), text);
    assert.is(bytes.decode([...ids, 1, 0, 400], { skipSpecial: true }), text.replaceAll(/<extra_id_\d+>|<\/s>/g, ""));
  });
}

test("bytes: every Unicode text comes back", () => {
  fc.assert(
    fc.property(fc.string({ unit: "binary" }), (text) => {
      assert.is(bytes.decode(bytes.encode(text, { special: true }), { skipSpecial: true }), text);
    }),
  );
});

test("bytes: a directory asks for them, and may list its own special tokens", async () => {
  const directory = await mkdtemp(join(tmpdir(), "thaw-tokenizer-"));
  const load = async (config: object) => {
    await writeFile(join(directory, "tokenizer_config.json"), JSON.stringify(config));
    return loadTokenizer(directory);
  };
  try {
    assert.is((await load({ tokenizer_class: "ByT5Tokenizer" }))?.vocabularySize, 384);
    assert.is((await load({ tokenizer_class: "ByT5Tokenizer", extra_ids: 0 }))?.vocabularySize, 259);
    assert.is(await load({ tokenizer_class: "T5Tokenizer" }), undefined);
    const listed = await load({
      tokenizer_class: "ByT5Tokenizer",
      added_tokens_decoder: { 1: { content: "<end>" }, 300: { content: "<extra_id_0>" } },
    });
    assert.equal(listed?.encode("<extra_id_0><end>", { special: true }), [300, 1]);
    assert.is(listed?.vocabularySize, 301);
    for (const added of [{ 65: { content: "A" } }, { x: { content: "A" } }, { 300: {} }]) {
      const error = await load({ tokenizer_class: "ByT5Tokenizer", added_tokens_decoder: added }).catch((e) => e);
      assert.instance(error, InputError);
      assert.match(error.message, /tokenizer_config\.json: added_tokens_decoder: "(65|x|300)"/);
    }
  } finally {
    await rm(directory, { recursive: true });
  }
});

test("a directory without a tokenizer has none; a broken one is the caller's mistake", async () => {
  const directory = await mkdtemp(join(tmpdir(), "thaw-tokenizer-"));
  try {
    assert.is(await loadTokenizer(directory), undefined);
    for (const [content, expected] of [
      ["{", /tokenizer\.json: is not JSON/],
      ["{}", /tokenizer\.json: /],
      [
        '{"model":{"type":"Other"},"decoder":null,"post_processor":null,"pre_tokenizer":null,"normalizer":null}',
        /Other/,
      ],
    ] as const) {
      await writeFile(join(directory, "tokenizer.json"), content);
      const error = await loadTokenizer(directory).catch((e) => e);
      assert.instance(error, InputError);
      assert.match(error.message, expected);
    }
  } finally {
    await rm(directory, { recursive: true });
  }
});

test.run();
