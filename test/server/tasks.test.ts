// Tasks through the whole server, with a real trainer on a tiny model: benchmark lines go in, the task's metrics come out.

import { readFileSync } from "node:fs";
import { copyFile, mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { readStudy } from "../../clients/study/file.ts";
import { runStudy } from "../../clients/study/runner.ts";
import { problemsOf, uploadDataset, uploadModel } from "../../clients/typescript/index.ts";
import type { EvaluationResult } from "../../proto/gen/thaw/v1/evaluation_pb.ts";
import { EvaluationMetric } from "../../proto/gen/thaw/v1/run_pb.ts";
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import { createEngine } from "../../src/trainer/engine.ts";
import { SUPERGLUE } from "../../src/trainer/tasks/superglue.ts";
import { testDevice } from "../support/gpu.ts";
import { eventsUntil, reaches, refused, type TestServer, testServer } from "../support/thaw_server.ts";
import { tinyByteModel } from "../support/tiny_model.ts";

const test = suite("tasks");
let server: TestServer;
test.before(async () => {
  server = await testServer({ trainer: createEngine(await testDevice()) });
  const model = await tinyByteModel();
  await uploadModel(server.thaw, model, { modelId: "m" });
  await rm(model, { recursive: true });
});
test.after(() => server.stop());

const jsonl = (lines: readonly object[]): string[] => lines.map((line) => `${JSON.stringify(line)}\n`);
const ready = (name: string) => ({ case: "readyTask" as const, value: name });
const defined = (definition: unknown) => ({ case: "taskDefinition" as const, value: JSON.stringify(definition) });

/** Examples that lines of the repository's SuperGLUE files make, in training and in evaluation. */
const SIZES: Readonly<Record<string, readonly [train: bigint, validation: bigint]>> = {
  boolq: [2n, 2n],
  cb: [4n, 4n],
  copa: [2n, 2n],
  multirc: [5n, 5n],
  record: [3n, 2n],
  rte: [2n, 2n],
  wic: [2n, 2n],
  wsc: [1n, 2n],
};
for (const [name, definition] of Object.entries(SUPERGLUE)) {
  test(`superglue/${name}: its official lines are uploaded, and evaluation gives its metrics`, async () => {
    const lines = [readFileSync(new URL(`../trainer/tasks/superglue/${name}.jsonl`, import.meta.url), "utf8")];
    const header = { datasetId: name, task: ready(`superglue/${name}`) };
    const dataset = await uploadDataset(server.thaw, header, { train: lines, validation: lines });
    assert.equal([dataset.task?.name, dataset.task?.metrics], [`superglue/${name}`, definition.metrics]);
    assert.equal(
      dataset.splits.map(({ examples }) => examples),
      SIZES[name],
    );
    const evaluation = { name: "models/m", dataset: `datasets/${name}`, maxInputTokens: 24n, maxTargetTokens: 4n };
    const { result } = await server.thaw.models.evaluate({ ...evaluation, batchSize: 2n });
    assert.equal(Object.keys(result!.metrics).sort(), [...definition.metrics].sort());
    assert.ok(Object.values(result!.metrics).every((value) => Math.abs(value) <= 1));
    assert.equal([result!.primaryMetric, result!.dataset], [definition.metrics[0], `datasets/${name}`]);
  });
}

test("a task of one's own: a run learns it, and is scored and judged by its metrics", async () => {
  const task = {
    name: "choices",
    input: "{question}{answer}",
    target: "{right}",
    labels: { false: "n", true: "y" },
    positive: "y",
    group: "{question}",
    metrics: ["exact_match_group", "f1_binary", "accuracy"],
  };
  const line = (question: string, answer: string, right: boolean) => ({ question, answer, right });
  const train = [line("a", "1", false), line("a", "2", true), line("b", "3", true), line("b", "4", false)];
  // What was learnt is wrong about the last answer here, and so about one question of two.
  const validation = [...train.slice(0, 3), line("b", "4", true)];
  await uploadDataset(
    server.thaw,
    { datasetId: "choices", task: defined(task) },
    { train: jsonl(train), validation: jsonl(validation) },
  );
  const spec = {
    model: "models/m",
    dataset: "datasets/choices",
    steps: 60n,
    batchSize: 4n,
    maxInputTokens: 4n,
    maxTargetTokens: 2n,
    dropout: 0,
    optimizer: { learningRate: 1e-2 },
    evaluation: { overfitting: { metric: EvaluationMetric.PRIMARY } },
  };
  await server.thaw.runs.createRun({ runId: "choices", spec });
  const events = await eventsUntil(server.thaw, "runs/choices", reaches(RunState.SUCCEEDED));
  const preparations = events.flatMap(({ event }) => (event.case === "preparation" ? [event.value] : []));
  assert.equal(
    preparations.map((p) => [p.dataset, p.split, p.done, p.total]),
    [
      ["datasets/choices", "train", 4n, 4n],
      ["datasets/choices", "validation", 4n, 4n],
    ],
  );
  const found = (kind: string) => events.find(({ event }) => event.case === kind)!.event.value;
  const evaluation = found("evaluation") as EvaluationResult;
  assert.equal(evaluation.metrics, { exact_match_group: 1 / 2, f1_binary: 4 / 5, accuracy: 3 / 4 });
  assert.equal([evaluation.primaryMetric, evaluation.dataset], ["exact_match_group", "datasets/choices"]);
  assert.is((found("overfitting") as { bestValue: number }).bestValue, 1 / 2);
});

test("a study names a task: its folder is uploaded as the benchmark has it, its score is the primary metric", async () => {
  const folder = await mkdtemp(join(tmpdir(), "thaw-study-"));
  try {
    const lines = fileURLToPath(new URL("../trainer/tasks/superglue/cb.jsonl", import.meta.url));
    await mkdir(join(folder, "CB"));
    await copyFile(lines, join(folder, "CB", "train.jsonl"));
    await copyFile(lines, join(folder, "CB", "val.jsonl"));
    await writeFile(join(folder, "CB", "test.jsonl"), '{"premise": "p", "hypothesis": "h", "idx": 0}\n');
    const task = { name: "cb", dataset: "CB", task: "superglue/cb", steps: 1, batch_size: 2 };
    const lengths = { max_input_tokens: 16, max_target_tokens: 4 };
    const file = { name: "one", question: "?", baseline: "all", models: ["models/m"], seeds: [1] };
    const path = join(folder, "study.json");
    await writeFile(path, JSON.stringify({ ...file, tasks: [{ ...task, ...lengths }] }));
    const quiet = { say: () => undefined, show: () => undefined, done: () => undefined };
    const outcome = await runStudy(server.thaw, await readStudy(path, []), folder, quiet, new AbortController().signal);
    assert.equal(outcome.failures, []);
    const [{ metric, score, run }] = outcome.results;
    assert.is(metric, "f1_macro");
    const evaluations = await eventsUntil(server.thaw, run, reaches(RunState.SUCCEEDED));
    const last = evaluations.findLast(({ event }) => event.case === "evaluation")!.event.value as EvaluationResult;
    assert.is(score, last.metrics.f1_macro);
  } finally {
    await rm(folder, { recursive: true });
  }
});

test("what is wrong with a task, its lines and its use is said with its place, and nothing is left", async () => {
  const { thaw } = server;
  const told = async (call: Promise<unknown>) =>
    problemsOf(await refused(call)).fields.map(({ field, message }) => `${field}: ${message}`);
  const splits = { train: jsonl([{ passage: "p" }, { passage: 1, question: "q", label: "x", idx: 0 }]), test: ["?\n"] };
  assert.equal(await told(uploadDataset(thaw, { datasetId: "x", task: ready("superglue/boolq") }, splits)), [
    'splits.train: line 1: has no "question"',
    'splits.train: line 1: has no "label"',
    'splits.train: line 1: has no "idx"',
    'splits.train: line 2: "passage" is not a string',
    'splits.train: line 2: "label" is "x", not one of false, true',
    "splits.test: line 1: is not JSON",
  ]);
  const headers: [task: ReturnType<typeof ready> | ReturnType<typeof defined>, problems: RegExp][] = [
    [ready("boolq"), /^dataset\.ready_task: is none of superglue\/boolq, .*superglue\/wsc$/],
    [{ case: "taskDefinition", value: "{" }, /^dataset\.task_definition: is not JSON$/],
    [defined({ name: "n", input: "{a}" }), /^dataset\.task_definition: has no "metrics"\n.*neither "target" nor/],
  ];
  for (const [task, problems] of headers) {
    assert.match((await told(uploadDataset(thaw, { datasetId: "x", task }, splits))).join("\n"), problems);
  }
  await uploadDataset(thaw, { datasetId: "plain" }, { train: jsonl([{ input: "a", target: "b" }]) });
  const evaluation = { overfitting: { metric: EvaluationMetric.PRIMARY } };
  const spec = { model: "models/m", dataset: "datasets/plain", steps: 1n, evaluation };
  assert.equal(await told(thaw.runs.createRun({ spec })), [
    "spec.evaluation.overfitting.metric: datasets/plain has no task, so no primary metric",
  ]);
  const { datasets } = await thaw.datasets.listDatasets({});
  assert.not(datasets.some(({ name }) => name === "datasets/x"));
});

test.run();
