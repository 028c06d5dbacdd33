// ForkRun with the real trainer on a tiny model: a fork that changes nothing is the run it came from, bit for bit; one that
// changes the freeze plan starts from the same weights and moves only what it trains.

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { downloadFiles } from "../../clients/typescript/index.ts";
import { Preset } from "../../proto/gen/thaw/v1/group_pb.ts";
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import { createEngine } from "../../src/trainer/engine.ts";
import { openModelDirectory, readParameter } from "../../src/trainer/model/open.ts";
import { testDevice } from "../support/gpu.ts";
import { eventsUntil, reaches, type TestServer, testServer, withInputs } from "../support/thaw_server.ts";

const SOURCE = "runs/s/checkpoints/step-3";

const test = suite("trained forks");
let server: TestServer;
let folder: string;

/** `runs/s`: six steps on everything, with checkpoints at the third and the last. */
test.before(async () => {
  folder = await mkdtemp(join(tmpdir(), "thaw-forks-"));
  server = await testServer({ trainer: createEngine(await testDevice()) });
  await withInputs(server.thaw);
  const trained = { steps: 6n, batchSize: 4n, seed: 7n, dropout: 0.1, optimizer: { learningRate: 1e-2 } };
  const checkpoints = { everySteps: 3n };
  await server.thaw.runs.createRun({
    runId: "s",
    spec: {
      model: "models/m",
      dataset: "datasets/d",
      maxInputTokens: 4n,
      maxTargetTokens: 4n,
      ...trained,
      checkpoints,
    },
  });
});
test.after(async () => {
  await server.stop();
  await rm(folder, { recursive: true });
});

/** The loss of each step, by its number. */
async function losses(run: string): Promise<Map<number, number>> {
  const events = await eventsUntil(server.thaw, run, reaches(RunState.SUCCEEDED));
  return new Map(
    events.flatMap(({ event }) => (event.case === "metrics" ? [[Number(event.value.step), event.value.loss]] : [])),
  );
}

/** Parameters of a checkpoint, by name: their values and their kind. */
async function parametersOf(checkpoint: string) {
  const directory = join(folder, checkpoint.replaceAll("/", "-"));
  await downloadFiles(server.thaw.checkpoints.downloadCheckpoint({ name: checkpoint }), directory);
  const { model, checkpoint: file } = await openModelDirectory(directory);
  const values = new Map<string, Float32Array>();
  for (const p of model.parameters) values.set(p.name, await readParameter(file, p));
  await file.close();
  return { kinds: new Map(model.parameters.map((p) => [p.name, p.kind])), values };
}

test("a fork that changes nothing does what the run did", async () => {
  const unforked = await losses("runs/s");
  assert.is(unforked.size, 6);
  await server.thaw.runs.forkRun({ sourceCheckpoint: SOURCE, runId: "same" });
  const forked = await losses("runs/same");
  assert.equal(
    [...forked],
    [...unforked].filter(([step]) => step > 3),
  );
  const [one, other] = [
    await parametersOf("runs/s/checkpoints/step-6"),
    await parametersOf("runs/same/checkpoints/step-6"),
  ];
  assert.equal([...other.values], [...one.values]);
});

test("a fork with another freeze plan moves only what it trains", async () => {
  const unforked = await losses("runs/s");
  await server.thaw.runs.forkRun({
    sourceCheckpoint: SOURCE,
    runId: "ffn",
    spec: { trainable: { selection: { preset: Preset.FFN } } },
    updateMask: { paths: ["trainable"] },
  });
  const forked = await losses("runs/ffn");
  assert.is(forked.get(4), unforked.get(4), "the weights, the batch and the dropout of its first step are the run's");
  assert.is.not(forked.get(5), unforked.get(5), "its first update was another");
  const before = await parametersOf(SOURCE);
  const after = await parametersOf("runs/ffn/checkpoints/step-6");
  for (const [name, values] of after.values) {
    const kept = Buffer.from(values.buffer).equals(Buffer.from(before.values.get(name)!.buffer));
    assert.is(kept, before.kinds.get(name) !== "ffn", name);
  }
});

test.run();
