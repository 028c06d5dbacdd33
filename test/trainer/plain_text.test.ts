import { suite } from "uvu";
import * as assert from "uvu/assert";
import { byteTokenizer } from "../../src/trainer/data/byte_tokenizer.ts";
import type { TokenExample } from "../../src/trainer/data/jsonl.ts";
import { type PlainTextOptions, plainTextExamples } from "../../src/trainer/data/plain_text.ts";
import { sentinelIdsOf } from "../../src/trainer/data/span_corruption.ts";
import { InputError } from "../../src/trainer/types.ts";

const test = suite("plain text");
const tokenizer = byteTokenizer({});
const sentinelIds = sentinelIdsOf(tokenizer);
const options: PlainTextOptions = {
  windowTokens: 16,
  corruption: { noiseDensity: 0.15, meanSpanLength: 3, sentinelIds },
  seed: 1,
  epoch: 0,
};
const TEXT = "\ufeffThe first document,\nover two lines.\n\n\nx\n\nThe last one é ends without a newline";

async function read(text: string, changes: Partial<PlainTextOptions> = {}): Promise<TokenExample[]> {
  const examples: TokenExample[] = [];
  const source = new TextEncoder().encode(text);
  for await (const example of plainTextExamples(source, tokenizer, { ...options, ...changes })) examples.push(example);
  return examples;
}

/** The window's tokens: the target's spans in place of the input's sentinels. */
function restore({ inputIds, targetIds }: TokenExample): number[] {
  return inputIds.flatMap((id) => {
    if (!sentinelIds.includes(id)) return [id];
    const rest = targetIds.slice(targetIds.indexOf(id) + 1);
    return rest.slice(
      0,
      rest.findIndex((other) => sentinelIds.includes(other)),
    );
  });
}

test("windows hold every document's text in order and none of the next; a single token is left out", async () => {
  const examples = await read(TEXT);
  const documents = new Map<number, number[]>();
  for (const example of examples) {
    const tokens = restore(example);
    assert.ok(tokens.length <= 16);
    documents.set(example.line, [...(documents.get(example.line) ?? []), ...tokens]);
  }
  assert.equal(
    [...documents].map(([line, tokens]) => [line, tokenizer.decode(tokens, { skipSpecial: true })]),
    [
      [1, "The first document, over two lines."],
      [7, "The last one é ends without a newline"],
    ],
  );
});

test("reading again from any example gives the same; another epoch masks the same windows differently", async () => {
  const all = await read(TEXT);
  for (const skip of [1, 3, all.length]) assert.equal(await read(TEXT, { skip }), all.slice(skip));
  const next = await read(TEXT, { epoch: 1 });
  assert.equal(next.map(restore), all.map(restore));
  assert.not.equal(next, all);
});

test("a document without an end is cut, and a line that is no text is an error with its number", async () => {
  const long = `${"a".repeat(1000)}\n`.repeat(80);
  const lines = new Set((await read(long, { windowTokens: 512 })).map((example) => example.line));
  assert.equal([...lines], [1, 67]); // 66 lines of 1000 characters are the first over 65536
  const bytes = new Uint8Array([0x61, 0x62, 0x0a, 0xff, 0x0a]);
  const error = await plainTextExamples(bytes, tokenizer, options, "text.txt")
    .next()
    .catch((e) => e);
  assert.instance(error, InputError);
  assert.is(error.message, "text.txt: line 2: is not UTF-8");
});

test.run();
