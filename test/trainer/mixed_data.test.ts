// What a run of several files trains on: examples of all of them in one order, text and tokens alike.

import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { openModelDirectory } from "../../src/trainer/model/open.ts";
import { openTrainingData } from "../../src/trainer/run/data.ts";
import { InputError } from "../../src/trainer/types.ts";
import { tinyByteModel, tinyData, tinyRun } from "../support/tiny_model.ts";

const test = suite("mixed data");

test("each batch of a round's size holds every file's share; a resumed run goes on where it was", async () => {
  const folder = await mkdtemp(join(tmpdir(), "thaw-mixed-"));
  const model = await tinyByteModel();
  try {
    const text = join(folder, "train.txt");
    await writeFile(text, "abcdefg".repeat(12));
    const trainFiles = [await tinyData(24), await tinyData(3), text];
    const config = { ...tinyRun(model, ""), trainFiles, mixingCap: 4, batchSize: 11, steps: 20 };
    const source = await openModelDirectory(model);
    await source.checkpoint.close();
    const { training } = await openTrainingData(source, config);
    const windows = training.data.examples - 24 - 3;
    assert.ok(windows >= 4, `${windows} windows`);
    const idsAt = (batch: number) => [...training.batches.batchAt(batch).exampleIds];
    const sourceOf = (id: number) => (id < 24 ? 0 : id < 27 ? 1 : 2);
    for (let batch = 0; batch < 20; batch++) {
      const drawn = idsAt(batch).map(sourceOf);
      assert.equal(
        [0, 1, 2].map((s) => drawn.filter((other) => other === s).length),
        [4, 3, 4],
        `batch ${batch}`,
      );
    }
    const again = await openTrainingData(source, config);
    assert.equal([...again.training.batches.batchAt(13).inputIds], [...training.batches.batchAt(13).inputIds]);
  } finally {
    await rm(folder, { recursive: true });
    await rm(model, { recursive: true });
  }
});

test("what is wrong with a file is said with its name", async () => {
  const folder = await mkdtemp(join(tmpdir(), "thaw-mixed-"));
  const model = await tinyByteModel();
  try {
    await mkdir(join(folder, "b"));
    const bad = join(folder, "b", "validation.jsonl");
    await writeFile(bad, '{"input": "a", "target": "b"}\n{"input_ids": [400], "target_ids": [272]}\n');
    const config = { ...tinyRun(model, await tinyData()), evaluationFiles: [bad] };
    const source = await openModelDirectory(model);
    await source.checkpoint.close();
    const error = await openTrainingData(source, config).catch((e) => e);
    assert.instance(error, InputError);
    assert.equal(error.message.split("\n"), [
      "b/validation: line 2: input has token id 400; the model's vocabulary has 272",
      "b/validation: line 2: target has token id 272; the model's vocabulary has 272",
    ]);
  } finally {
    await rm(folder, { recursive: true });
    await rm(model, { recursive: true });
  }
});

test.run();
