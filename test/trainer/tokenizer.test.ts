import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
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
