import { suite } from "uvu";
import * as assert from "uvu/assert";
import { byteTokenizer } from "../../src/trainer/data/byte_tokenizer.ts";
import type { EncodedExample, EncodingProgress } from "../../src/trainer/data/dataset.ts";
import {
  corruptedExamples,
  corruptionOf,
  encodeWindows,
  readDocuments,
  windowTokens,
} from "../../src/trainer/data/plain_text.ts";
import { InputError } from "../../src/trainer/types.ts";

const test = suite("plain text");
const tokenizer = byteTokenizer({});
const corruption = corruptionOf(tokenizer);
const { sentinelIds } = corruption;
const EOS = 1;
const TEXT = "\ufeffThe first document,\nover two lines.\n\n\nx\n\nThe last one é ends without a newline";

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);
const windowsOf = (text: string, window = 16) => encodeWindows(bytes(text), tokenizer, window);
const examplesOf = (windows: readonly Uint32Array[], changes: { seed?: number; variants?: number } = {}) =>
  corruptedExamples(windows, { corruption, eosTokenId: EOS, seed: 1, variants: 1, ...changes });

/** The window's tokens: the target's spans in place of the input's sentinels. */
function restore({ inputIds, labels }: EncodedExample): number[] {
  const [input, target] = [[...inputIds], [...labels]];
  assert.equal([input.pop(), target.pop()], [EOS, EOS]);
  return input.flatMap((id) => {
    if (!sentinelIds.includes(id)) return [id];
    const rest = target.slice(target.indexOf(id) + 1);
    return rest.slice(
      0,
      rest.findIndex((other) => sentinelIds.includes(other)),
    );
  });
}
const decode = (ids: readonly number[]): string => tokenizer.decode(ids, { skipSpecial: true });

test("windows hold every document's text in order and none of the next; a single token is left out", async () => {
  const windows = await windowsOf(TEXT);
  assert.equal(
    windows.map(({ length }) => length),
    [16, 16, 3, 16, 16, 6],
  );
  const textOf = (some: readonly Uint32Array[]) => decode(some.flatMap((window) => [...window]));
  assert.is(textOf(windows.slice(0, 3)), "The first document, over two lines.");
  assert.is(textOf(windows.slice(3)), "The last one é ends without a newline");
});

test("an example is a window with spans cut out, other ones in each variant and under another seed", async () => {
  const windows = await windowsOf(TEXT);
  const ids = windows.map((window) => [...window]);
  const examples = examplesOf(windows, { variants: 2 });
  assert.equal(examples.map(restore), [...ids, ...ids]);
  const parts = examples.map(({ inputIds, labels }) => `${inputIds} ${labels}`);
  const [first, second] = [parts.slice(0, ids.length), parts.slice(ids.length)];
  assert.not.equal(first, second);
  assert.equal(
    examplesOf(windows).map(({ inputIds, labels }) => `${inputIds} ${labels}`),
    first,
  );
  assert.not.equal(
    examplesOf(windows, { seed: 2 }).map(({ inputIds, labels }) => `${inputIds} ${labels}`),
    first,
  );
});

test("a window is as long as the limits allow, and nothing of it is ever over them", async () => {
  for (const limits of [
    { input: 128, target: 32 },
    { input: 32, target: 128 },
    { input: 5, target: 6 },
  ]) {
    const window = windowTokens(limits, corruption);
    const text = "a".repeat(40 * window);
    const examples = examplesOf(await windowsOf(text, window));
    const longest = (lengths: number[]) => Math.max(...lengths);
    const input = longest(examples.map(({ inputIds }) => inputIds.length));
    const target = longest(examples.map(({ labels }) => labels.length));
    assert.ok(input <= limits.input && target <= limits.target, `${input} ${target}`);
    // Rolling rarely leaves a span whole: one of forty windows is as long as can be.
    assert.ok(input === limits.input || target === limits.target, `${input} ${target}`);
  }
  assert.throws(() => windowTokens({ input: 4, target: 3 }, corruption), /no room for a window/);
  assert.throws(() => corruptionOf(byteTokenizer({ extra_ids: 2 })), /needs a tokenizer with <extra_id_0>/);
});

test("a document without an end is cut, and a line that is no text is an error with its number", async () => {
  const long = bytes(`${"a".repeat(1000)}\n`.repeat(80));
  const lines: number[] = [];
  for await (const { line } of readDocuments(long)) lines.push(line);
  assert.equal(lines, [1, 67]); // 66 lines of 1000 characters are the first over 65536
  const broken = new Uint8Array([0x61, 0x62, 0x0a, 0xff, 0x0a]);
  const errorOf = (source: Uint8Array) => encodeWindows(source, tokenizer, 16).catch((e) => e);
  assert.instance(await errorOf(broken), InputError);
  assert.is((await errorOf(broken)).message, "line 2: is not UTF-8");
  assert.is((await errorOf(bytes("\n\nx\n"))).message, "the file has no text");
});

test("a long file lets the event loop run and says how far it is", async () => {
  const seen: EncodingProgress[] = [];
  let turns = 0;
  const timer = setInterval(() => turns++, 1);
  const slow = {
    ...tokenizer,
    encode: (text: string, options: { special: boolean }) => {
      for (const end = performance.now() + 1; performance.now() < end; );
      return tokenizer.encode(text, options);
    },
  };
  await encodeWindows(bytes("some words\n\n".repeat(80)), slow, 16, (progress) => seen.push(progress));
  clearInterval(timer);
  assert.ok(seen.length > 1 && turns > 0, `${seen.length} slices, ${turns} turns`); // 80 ms in slices of 20
  assert.equal(seen.at(-1), { encoded: 80, total: 80, truncatedInputs: 0, truncatedTargets: 0 });
});

test.run();
