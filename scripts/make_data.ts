// Writes examples/data: three text-to-text tasks with their splits, and plain text for pre-training.
//
//   npx tsx scripts/make_data.ts
//
// Everything follows from SEED and the grammars in scripts/example_data: the same script writes the same bytes on any
// machine. What the splits promise: no input occurs twice; what an example is about (see `splitOf`) belongs to one split;
// every split has as many examples of one label as of the other.

import { mkdir, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { argv, stdout } from "node:process";
import { fileURLToPath } from "node:url";
import { acceptability } from "./example_data/acceptability.ts";
import { type Draw, drawFrom, type Generated, SPLITS, type Split, splitOf } from "./example_data/draw.ts";
import { entailment } from "./example_data/entailment.ts";
import { pretrainingDocument } from "./example_data/pretraining.ts";
import { reading } from "./example_data/reading.ts";

const SEED = 20220217;
const PRETRAINING_DOCUMENTS = 6500;

interface Task {
  readonly generate: (draw: Draw) => Generated[];
  readonly labels: readonly string[];
  readonly sizes: Readonly<Record<Split, number>>;
}

export const TASKS: Readonly<Record<string, Task>> = {
  entailment: { generate: entailment, labels: ["yes", "no"], sizes: { train: 400, validation: 200, test: 200 } },
  reading: { generate: reading, labels: ["yes", "no"], sizes: { train: 2000, validation: 300, test: 300 } },
  acceptability: {
    generate: acceptability,
    labels: ["acceptable", "unacceptable"],
    sizes: { train: 2000, validation: 300, test: 300 },
  },
};

/** Draws until every split has its share of every label. */
function splitsOf(task: Task, draw: Draw): Record<Split, Generated[]> {
  const splits: Record<Split, Generated[]> = { train: [], validation: [], test: [] };
  const seen = new Set<string>();
  const count = new Map<string, number>();
  const full = (split: Split): boolean => splits[split].length === task.sizes[split];
  while (!SPLITS.every(full)) {
    for (const example of task.generate(draw)) {
      const split = splitOf(example.key);
      const share = `${split} ${example.target}`;
      const have = count.get(share) ?? 0;
      if (have === task.sizes[split] / task.labels.length || seen.has(example.input)) continue;
      seen.add(example.input);
      count.set(share, have + 1);
      splits[split].push(example);
    }
  }
  return splits;
}

/** Contents of every file, by path below examples/data. */
export function makeData(): Map<string, string> {
  const files = new Map<string, string>();
  Object.entries(TASKS).forEach(([name, task], stream) => {
    for (const [split, examples] of Object.entries(splitsOf(task, drawFrom(SEED, stream)))) {
      const lines = examples.map(({ input, target }, i) =>
        JSON.stringify({ id: `${name}-${split}-${i}`, task: name, input, target }),
      );
      files.set(`${name}/${split}.jsonl`, `${lines.join("\n")}\n`);
    }
  });
  const draw = drawFrom(SEED, Object.keys(TASKS).length);
  const documents = Array.from({ length: PRETRAINING_DOCUMENTS }, () => pretrainingDocument(draw));
  files.set("pretraining.txt", `${documents.join("\n")}\n`);
  return files;
}

if (argv[1] === fileURLToPath(import.meta.url)) {
  const directory = fileURLToPath(new URL("../examples/data", import.meta.url));
  for (const [path, content] of makeData()) {
    await mkdir(dirname(join(directory, path)), { recursive: true });
    await writeFile(join(directory, path), content);
    stdout.write(`examples/data/${path}: ${content.length} bytes\n`);
  }
}
