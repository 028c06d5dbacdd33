// Mixtures through the server: what is trained on, scored, kept from deletion, and refused.

import { suite } from "uvu";
import * as assert from "uvu/assert";
import { problemsOf, uploadDataset } from "../../clients/typescript/index.ts";
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import { eventsUntil, reaches, refused, type TestServer, testServer, withInputs } from "../support/thaw_server.ts";

const test = suite("mixtures");
let server: TestServer;
const LINE = '{"input_ids": [3], "target_ids": [4]}\n';
test.before(async () => {
  server = await testServer();
  await withInputs(server.thaw);
  await uploadDataset(server.thaw, { datasetId: "e" }, { train: [LINE], validation: [LINE] });
  await uploadDataset(server.thaw, { datasetId: "f" }, { train: [LINE] });
  await uploadDataset(server.thaw, { datasetId: "untrained" }, { test: [LINE] });
});
test.after(() => server.stop());

const spec = (datasets: readonly string[]) => ({
  model: "models/m",
  dataset: "datasets/d",
  steps: 2n,
  mixture: { datasets: [...datasets], cap: 3n },
});

test("a run trains on all, scores each that has the split, and keeps each from being deleted", async () => {
  const { thaw, workers } = server;
  await thaw.runs.createRun({ runId: "r", spec: spec(["datasets/e", "datasets/f"]) });
  const events = await eventsUntil(thaw, "runs/r", reaches(RunState.SUCCEEDED));
  const scored = events.flatMap(({ event }) => (event.case === "evaluation" ? [event.value] : []));
  assert.equal(
    scored.map(({ dataset, split }) => `${dataset} ${split}`),
    ["datasets/d validation", "datasets/e validation"],
  );
  const [{ trainFiles, mixingCap }] = workers.engines[0].configs;
  assert.equal(
    trainFiles.map((file) => file.slice(server.dataDirectory.length)),
    ["d", "e", "f"].map((id) => `/datasets/${id}/train.jsonl`),
  );
  assert.is(mixingCap, 3);
  await thaw.runs.createRun({ runId: "s", spec: spec(["datasets/e", "datasets/f"]) });
  await thaw.runs.pauseRun({ name: "runs/s" });
  for (const name of ["datasets/d", "datasets/e", "datasets/f"]) {
    assert.match((await refused(thaw.datasets.deleteDataset({ name }))).message, "runs/s has not ended and uses it");
  }
  await thaw.runs.cancelRun({ name: "runs/s" });
  await eventsUntil(thaw, "runs/s", reaches(RunState.CANCELLED));
  await thaw.datasets.deleteDataset({ name: "datasets/f" });
});

test("a dataset that is not there, or trains nothing, is refused by its place", async () => {
  const { thaw } = server;
  const missing = await refused(thaw.runs.createRun({ spec: spec(["datasets/e", "datasets/none"]) }));
  assert.match(missing.message, "datasets/none");
  const { fields } = problemsOf(await refused(thaw.runs.createRun({ spec: spec(["datasets/untrained"]) })));
  assert.equal(fields, [{ field: "spec.mixture.datasets[0]", message: "has no split `train`" }]);
});

test.run();
