// Study files: every mistake at its place, the ready studies, and the cells and runs that a study becomes.

import { cp, mkdir, mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { create, toJson } from "@bufbuild/protobuf";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { CLAIM_IDS } from "../../clients/study/claims.ts";
import { readStudy, StudyFileError } from "../../clients/study/file.ts";
import { planCells, runSpec } from "../../clients/study/plan.ts";
import { RoutingOptionsSchema } from "../../proto/gen/thaw/v1/routing_pb.ts";
import { Batching, EvaluationMetric, Precision } from "../../proto/gen/thaw/v1/run_pb.ts";
import { SMALL, smallStudy, writeStudy } from "./support/study_file.ts";

const test = suite<{ folder: string }>("study file");

const EXAMPLES = fileURLToPath(new URL("../../examples", import.meta.url));

test.before.each(async (context) => {
  context.folder = await mkdtemp(join(tmpdir(), "thaw-study-"));
});
test.after.each(({ folder }) => rm(folder, { recursive: true }));

async function mistakes(path: string): Promise<string[]> {
  try {
    await readStudy(path, CLAIM_IDS);
  } catch (error) {
    assert.instance(error, StudyFileError);
    return (error as StudyFileError).mistakes.map(({ line, column, path }) => `${line}:${column} ${path}`);
  }
  return [];
}

test("every mistake is listed with line, column and path", async ({ folder }) => {
  const path = await writeStudy(
    folder,
    `name: Not a name
question: does it help?
baseline: all
claims: [ffn_better, sometimes_better]
models: [./nowhere, /absolute]
tasks:
  - name: small
    dataset: nowhere
    steps: none
  - name: large
    steps: 3
strategies: [all, some, {name: x, add: ["color=red"]}, {name: nothing}]
seeds: [1, 1, -1]
learning_rates:
colour: red
`,
  );
  assert.equal(await mistakes(path), [
    "1:7 name",
    "4:22 claims[1]",
    "5:10 models[0]",
    "5:21 models[1]",
    "8:14 tasks[0].dataset",
    "9:12 tasks[0].steps",
    "10:5 tasks[1].dataset",
    "12:19 strategies[1]",
    "12:41 strategies[2].add[0]",
    "12:63 strategies[3].name",
    "13:12 seeds[1]",
    "13:15 seeds[2]",
    "14:16 learning_rates",
    "15:1 colour",
  ]);
});

test("JSON is read too, and what is wrong in its syntax has a place", async ({ folder }) => {
  assert.is((await smallStudy(folder)).tasks[0].steps, SMALL.tasks[0].steps);
  assert.equal(await mistakes(await writeStudy(folder, '{"name": "x",\n "name": "y"}')), ["2:2 "]);
});

test("a baseline that is no value of the axis is refused", async ({ folder }) => {
  assert.equal(await mistakes(await writeStudy(folder, { baseline: "moe" })), ["1:48 baseline"]);
});

test("a model may be trained by some of the strategies", async ({ folder }) => {
  const models = [{ name: "dense", source: "models/dense", strategies: ["all"] }, "models/m"];
  const cells = planCells(await smallStudy(folder, { models, seeds: [1] }));
  assert.equal(
    cells.map(({ settings }) => `${settings.model} ${settings.strategy}`),
    ["dense all", "m all", "m ffn"],
  );
  const wrong = [{ ...(models[0] as object), strategies: ["all", "moe"] }];
  assert.equal(await mistakes(await writeStudy(folder, { models: wrong })), ["1:63 models"]);
});

test("ready studies are without mistakes and no cell is there twice", async () => {
  const files = (await readdir(join(EXAMPLES, "studies"))).sort();
  assert.equal(
    files,
    ["batch-and-lr", "capacity", "expert-count", "expert-dropout", "freezing-mini", "freezing"].map((n) => `${n}.yaml`),
  );
  for (const file of files) {
    const cells = planCells(await readStudy(join(EXAMPLES, "studies", file), CLAIM_IDS));
    assert.is(new Set(cells.map((cell) => cell.id)).size, cells.length, file);
    for (const { run } of cells) assert.match(run, /^[a-z][a-z0-9-]{0,61}[a-z0-9]$/);
  }
});

test("cells are the cross product of the axes, seed by seed", async ({ folder }) => {
  const axes = { learning_rates: [1e-3, 1e-4], capacity_factors: [1, 2] };
  const cells = planCells(await smallStudy(folder, axes));
  assert.is(cells.length, 2 * 2 * 2 * 2);
  assert.equal(
    cells.map(({ settings }) => settings.seed),
    [...Array(8).fill(1), ...Array(8).fill(2)],
  );
});

test("a cell's id changes with what decides its result and with nothing else", async ({ folder }) => {
  const ids = async (change: object) => {
    return planCells(await smallStudy(folder, change)).map(({ id }) => id);
  };
  const [first, ...others] = await ids({});
  const same = { question: "another?", seeds: [3, 1], strategies: ["moe", "all"], learning_rates: [1e-2, 1e-3] };
  assert.ok((await ids(same)).includes(first));
  assert.not(others.includes(first));
  assert.ok((await ids({ batching: "padded" })).includes(first), "the default said is the default");
  const changes = [
    { optimizer: "sgd" },
    { warmup_steps: 1 },
    { batching: "packed" },
    { precision: "mixed" },
    { eval_capacity_factor: 2 },
    { routing: { group: "sequence" } },
    { evaluation: { every_steps: 1 } },
    { models: [{ name: "m", source: "models/other" }] },
    { tasks: [{ ...SMALL.tasks[0], steps: 8 }] },
    { tasks: [{ ...SMALL.tasks[0], dataset: "datasets/other" }] },
    { strategies: [{ name: "all", preset: "ffn" }] },
  ];
  for (const change of changes) assert.not((await ids(change)).includes(first), JSON.stringify(change));
});

test("a study's routing rules are its cells'", async ({ folder }) => {
  const study = await smallStudy(folder, {
    routing: {
      group: "tokens:64",
      priority: "position",
      second_expert_policy: "random",
      encoder_choice: "experts",
      selection_bias: 1e-3,
      balance_coefficient: 0,
    },
    capacity_factors: [1.25],
    eval_capacity_factor: 2,
  });
  const { routing, losses } = runSpec(study, planCells(study)[0], { model: "m", dataset: "d", initialCheckpoint: "" });
  assert.equal(toJson(RoutingOptionsSchema, create(RoutingOptionsSchema, routing)), {
    group: "ROUTING_GROUP_TOKENS",
    groupTokens: "64",
    priority: "ROUTING_PRIORITY_POSITION",
    secondExpertPolicy: "SECOND_EXPERT_POLICY_RANDOM",
    encoderChoice: "ROUTING_CHOICE_EXPERTS",
    selectionBias: { updateRate: 1e-3 },
    trainCapacity: { factor: { factor: 1.25 } },
    evalCapacity: { factor: { factor: 2 } },
  });
  assert.equal(losses, { balanceCoefficient: 0 });
  const wrong = await mistakes(
    await writeStudy(folder, { routing: { group: "tokens", encoder_choice: "both", selection_bias: 0, top: 1 } }),
  );
  assert.equal(
    wrong.map((mistake) => mistake.split(" ")[1]),
    ["routing.group", "routing.encoder_choice", "routing.selection_bias", "routing.top"],
  );
});

test("a task belongs to a folder of lines, and another task makes other cells", async ({ folder }) => {
  await mkdir(join(folder, "data"));
  await writeFile(join(folder, "data", "train.jsonl"), "{}\n");
  await writeFile(join(folder, "data", "val.jsonl"), "{}\n");
  await writeFile(join(folder, "own.json"), "{}");
  const read = (task: object) => smallStudy(folder, { tasks: [{ ...SMALL.tasks[0], ...task }] });
  const own = await read({ dataset: "data", task: "./own.json" });
  assert.is(own.tasks[0].metric, "primary");
  assert.equal(own.datasets.t.files, ["train.jsonl", "val.jsonl"]);
  assert.equal(own.datasets.t.task, { case: "taskDefinition", value: "{}" });
  const spec = runSpec(own, planCells(own)[0], { model: "m", dataset: "d", initialCheckpoint: "" });
  assert.is(spec.evaluation?.overfitting?.metric, EvaluationMetric.PRIMARY);
  const ready = await read({ dataset: "data", task: "superglue/cb", metric: "accuracy" });
  assert.equal([ready.tasks[0].metric, ready.datasets.t.task?.value], ["accuracy", "superglue/cb"]);
  await writeFile(join(folder, "own.json"), "{ }");
  const changed = await read({ dataset: "data", task: "./own.json" });
  const ids = [own, ready, changed].map((study) => planCells(study)[0].id);
  assert.is(new Set(ids).size, 3, ids.join(" "));

  const wrong = [
    { dataset: "datasets/d", task: "superglue/cb" },
    { dataset: "data", task: "./none.json" },
    { dataset: "data", metric: "primary" },
  ];
  const path = await writeStudy(folder, { tasks: wrong.map((task, i) => ({ name: `t${i}`, steps: 1, ...task })) });
  assert.equal(
    (await mistakes(path)).map((mistake) => mistake.split(" ")[1]),
    ["tasks[0].task", "tasks[1].task", "tasks[2].metric"],
  );
});

test("other data in the same folder makes other cells", async ({ folder }) => {
  await cp(join(EXAMPLES, "data", "entailment"), join(folder, "data"), { recursive: true });
  const id = async () => {
    const study = await smallStudy(folder, { tasks: [{ ...SMALL.tasks[0], dataset: "data" }] });
    return planCells(study)[0].id;
  };
  const before = await id();
  await writeFile(join(folder, "data", "train.jsonl"), '{"input":"a","target":"b"}\n');
  assert.is.not(await id(), before);
});

test("a cell's run says its settings and its plan", async ({ folder }) => {
  const given = {
    strategies: [{ name: "all", add: ["expert:experts=0,1:layers=1-3"], router: false, router_losses: "off" }],
    learning_rates: [3e-4],
    capacity_factors: [1.25],
    dropouts: [0.2],
    optimizer: "adafactor",
    batching: "bucketed",
    precision: "mixed",
    evaluation: { every_steps: 5, test: true },
  };
  const study = await smallStudy(folder, given);
  const resources = { model: "models/m", dataset: "datasets/d", initialCheckpoint: "" };
  const spec = runSpec(study, planCells(study)[1], resources);
  assert.is(spec.seed, 2n);
  assert.is(spec.batching, Batching.BUCKETED);
  assert.is(spec.precision, Precision.MIXED);
  assert.is(spec.dropout, 0.2);
  assert.is(spec.optimizer?.learningRate, 3e-4);
  assert.is(spec.optimizer?.algorithm?.case, "adafactor");
  assert.equal(spec.routing?.trainCapacity, { rule: { case: "factor", value: { factor: 1.25 } } });
  assert.is(spec.routing?.evalCapacity, undefined);
  assert.equal(spec.evaluation?.splits, ["validation", "test"]);
  assert.is(spec.trainable?.selection?.router, false);
  assert.equal(spec.trainable?.selection?.add?.[0].layers, { first: 1, last: 3 });
  assert.equal(spec.trainable?.selection?.add?.[0].experts, [0, 1]);
});

test.run();
