// Files that somebody, or a disk, has changed: each either opens or gives one InputError, soon, whatever was changed.

import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { parseJsonl } from "../../src/trainer/data/jsonl.ts";
import { loadTokenizer } from "../../src/trainer/data/tokenizer.ts";
import { openSafetensors } from "../../src/trainer/formats/safetensors.ts";
import { writeSafetensors } from "../../src/trainer/formats/safetensors_writer.ts";
import { InputError } from "../../src/trainer/types.ts";
import { type Random, random, SEEDS } from "./support/random.ts";

/** A file of a kilobyte takes a millisecond; a busy machine has its pauses. */
const MOST_MS = 5000;

const test = suite("mutations");
let folder = "";
test.before(async () => {
  folder = await mkdtemp(join(tmpdir(), "thaw-mutations-"));
});
test.after(() => rm(folder, { recursive: true }));

/** One to four changes: bytes flipped, replaced, cut out or repeated, or the end cut off. */
function mutate(original: Uint8Array, chance: Random): Uint8Array {
  let bytes = Buffer.from(original);
  for (let changes = 1 + chance.below(4); changes > 0; changes--) {
    const at = chance.below(bytes.length + 1);
    const to = at + chance.below(9);
    const kind = chance.below(5);
    if (kind === 0 && at < bytes.length) bytes[at] ^= 1 << chance.below(8);
    else if (kind === 1 && at < bytes.length) bytes[at] = '"{}[]:,0-9e\\\0'.charCodeAt(chance.below(13));
    else if (kind === 2) bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(to)]);
    else if (kind === 3) bytes = Buffer.concat([bytes.subarray(0, to), bytes.subarray(at)]);
    else if (kind === 4) bytes = Buffer.from(bytes.subarray(0, at));
  }
  return bytes;
}

interface Kind {
  readonly name: string;
  /** Files of each seed; 50 seeds make 10 000 of the three kinds. */
  readonly files: number;
  original(): Promise<Uint8Array>;
  open(path: string): Promise<unknown>;
}

const KINDS: readonly Kind[] = [
  {
    name: "mutated.safetensors",
    files: 100,
    async original() {
      const path = join(folder, "original.safetensors");
      await writeSafetensors(path, [
        { name: "a", dtype: "F32", shape: [2, 3], data: new Float32Array(6) },
        { name: "b", dtype: "F16", shape: [5], data: new Uint16Array(5) },
        { name: "c", dtype: "I64", shape: [1], data: new BigInt64Array(1) },
      ]);
      return readFile(path);
    },
    async open(path) {
      const file = await openSafetensors(path);
      try {
        for (const name of file.tensors.keys()) await file.read(name);
      } finally {
        await file.close();
      }
    },
  },
  {
    name: "mutated.jsonl",
    files: 80,
    async original() {
      const lines = ['{"input":"a \\u00e9","target":"b"}', '{"input_ids":[1,2,3],"target_ids":[4]}'];
      return Buffer.from(`${lines.join("\n")}\n`.repeat(3));
    },
    open: (path) => parseJsonl(path, "mutated.jsonl"),
  },
  {
    name: "tokenizer.json",
    files: 20,
    original: () => readFile(new URL("../../examples/models/mini-switch/tokenizer.json", import.meta.url)),
    open: () => loadTokenizer(folder),
  },
];

for (const seed of SEEDS) {
  for (const { name, files, original, open } of KINDS) {
    test(`${files} of ${name}, seed ${seed}`, async () => {
      const chance = random(seed);
      const bytes = await original();
      await writeFile(join(folder, name), bytes);
      await open(join(folder, name));
      let refused = 0;
      for (let i = 0; i < files; i++) {
        await writeFile(join(folder, name), mutate(bytes, chance));
        const started = performance.now();
        try {
          await open(join(folder, name));
        } catch (error) {
          assert.instance(error, InputError, `file ${i}: ${(error as Error).stack}`);
          refused++;
        }
        assert.ok(performance.now() - started < MOST_MS, `file ${i} takes too long`);
      }
      assert.ok(refused > files / 4, `${refused} of ${files} are refused: most changes show`);
    });
  }
}

test.run();
