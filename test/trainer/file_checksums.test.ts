// A checkpoint's files besides its tensors: one byte changed, or a file gone, in any of them shows before a run goes on.

import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { openRun } from "../../src/trainer/engine.ts";
import { writeSafetensors } from "../../src/trainer/formats/safetensors_writer.ts";
import { verifyCheckpoint } from "../../src/trainer/run/verify_checkpoint.ts";
import { testDevice } from "../support/gpu.ts";
import { tinyByteModel, tinyData, tinyRun } from "../support/tiny_model.ts";

const test = suite("file checksums");
const directory = await mkdtemp(join(tmpdir(), "thaw-checksums-"));
test.before(async () => {
  const run = await openRun(await testDevice(), tinyRun(await tinyByteModel(), await tinyData(), { steps: 1 }));
  await run.saveCheckpoint(directory);
  run.close();
});
test.after(() => rm(directory, { recursive: true }));

/** What is wrong with the checkpoint; empty when nothing is. */
const problem = (): Promise<string> =>
  verifyCheckpoint(directory).then(
    () => "",
    ({ message }: Error) => message,
  );

test("each file, with a byte changed, with a byte more, and gone", async () => {
  assert.is(await problem(), "");
  const files = (await readdir(directory)).filter((name) => name.endsWith(".json")).sort();
  assert.equal(files, ["config.json", "tokenizer_config.json", "training.json"]);
  for (const name of files) {
    const path = join(directory, name);
    const bytes = await readFile(path);
    const damaged = `${name} is damaged: its bytes are not those written`;
    // A digit, or a letter of a name, that leaves it JSON of the same form.
    const changed = Buffer.from(bytes);
    changed[bytes.findIndex((byte) => byte >= 0x61 && byte <= 0x79)]++;
    await writeFile(path, changed);
    assert.is(await problem(), damaged);
    await writeFile(path, Buffer.concat([bytes, Buffer.from("\n")]));
    assert.is(await problem(), damaged);
    await rm(path);
    assert.is(await problem(), `${name} is missing`);
    await writeFile(path, bytes);
  }
  assert.is(await problem(), "");
});

test("a checkpoint of a version that kept no checksums of files is taken as it is", async () => {
  await writeSafetensors(join(directory, "optimizer.safetensors"), []);
  await writeFile(join(directory, "tokenizer_config.json"), "{}");
  assert.is(await problem(), "");
  await writeFile(join(directory, "training.json"), "{");
  assert.is(await problem(), "training.json is not JSON");
});

test.run();
