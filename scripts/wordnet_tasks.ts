// Two classification tasks from WordNet 3.0 (Debian's package wordnet-base; its licence allows use and change): which
// lexicographer file a definition belongs to (lexnames(5WN)).
//
//   npx tsx scripts/wordnet_tasks.ts --wordnet /usr/share/wordnet --out .data/tasks
//
//   noun_category   "noun: a tool used to hold …" → artifact     25 classes, 16 000 training examples
//   verb_category   "verb: move up and down …" → motion         15 classes, 600 training examples: a small task
//
// A definition that occurs twice, or under two categories, is left out, so that no split knows another's. The same WordNet
// gives the same files.

import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { argv, stdout } from "node:process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { randomPermutation } from "../src/trainer/data/random.ts";

/**
 * Categories by the number that data files give, from lexnames(5WN). `Tops` is left out: it holds the other nouns' roots.
 */
const CATEGORIES: Readonly<Record<string, string>> = Object.fromEntries(
  (
    "04 act 05 animal 06 artifact 07 attribute 08 body 09 cognition 10 communication 11 event 12 feeling 13 food 14 group " +
    "15 location 16 motive 17 object 18 person 19 phenomenon 20 plant 21 possession 22 process 23 quantity 24 relation " +
    "25 shape 26 state 27 substance 28 time 29 body 30 change 31 cognition 32 communication 33 competition " +
    "34 consumption 35 contact 36 creation 37 emotion 38 motion 39 perception 40 possession 41 social 42 stative 43 weather"
  )
    .match(/\d\d \w+/g)!
    .map((pair) => pair.split(" ")),
);

interface Example {
  readonly input: string;
  readonly target: string;
}

/** What a task's splits hold; validation and test come first, so that they stay when the training split grows. */
const TASKS = [
  { name: "noun_category", part: "noun", splits: { validation: 1000, test: 2000, train: 16000 } },
  { name: "verb_category", part: "verb", splits: { validation: 1000, test: 2000, train: 600 } },
] as const;

/** The examples in a data file of WordNet (wndb(5WN)), in its order. */
export function definitions(part: string, data: string): Example[] {
  const categories = new Map<string, Set<string>>();
  const times = new Map<string, number>();
  for (const line of data.split("\n")) {
    const [fields, gloss] = line.split(" | ");
    if (line.startsWith("  ") || gloss === undefined) continue; // the licence stands above the data
    const category = CATEGORIES[fields.split(" ")[1]];
    // A gloss is definitions, then examples in quotation marks.
    const definition = gloss.split(/; "|"/)[0].trim();
    if (category === undefined || definition === "") continue;
    const input = `${part}: ${definition}`;
    categories.set(input, (categories.get(input) ?? new Set()).add(category));
    times.set(input, (times.get(input) ?? 0) + 1);
  }
  return [...categories].flatMap(([input, [target]]) => (times.get(input) === 1 ? [{ input, target }] : []));
}

/** `examples` in a random order, dealt to the splits one after another. */
export function dealt<Split extends string>(
  examples: readonly Example[],
  splits: Readonly<Record<Split, number>>,
): Record<Split, Example[]> {
  const order = Array.from(randomPermutation(examples.length, 0, 0), (i) => examples[i]);
  const sizes = Object.entries<number>(splits);
  const needed = sizes.reduce((n, [, size]) => n + size, 0);
  if (needed > order.length) throw new Error(`${needed} definitions are wanted, there are ${order.length}`);
  return Object.fromEntries(sizes.map(([split, size]) => [split, order.splice(0, size)])) as Record<Split, Example[]>;
}

if (argv[1] === fileURLToPath(import.meta.url)) {
  const { values } = parseArgs({
    options: {
      wordnet: { type: "string", default: "/usr/share/wordnet" },
      out: { type: "string", default: ".data/tasks" },
    },
  });
  for (const { name, part, splits } of TASKS) {
    const examples = definitions(part, await readFile(join(values.wordnet, `data.${part}`), "utf8"));
    await mkdir(join(values.out, name), { recursive: true });
    for (const [split, chosen] of Object.entries(dealt(examples, splits))) {
      const lines = chosen.map((example) => `${JSON.stringify(example)}\n`).join("");
      await writeFile(join(values.out, name, `${split}.jsonl`), lines);
      stdout.write(`${name}/${split}.jsonl: ${chosen.length} of ${examples.length} definitions\n`);
    }
  }
}
