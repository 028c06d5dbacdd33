// npm run demo: the whole story in a few minutes, without a GPU. A server is started as a user would start it; everything
// else goes through its gRPC API: a small pre-trained Switch Transformer is fine-tuned on one task by five strategies, a
// sixth run is frozen and thawed while it trains, the best model is asked and exported.
//
//   npm run demo                        report.html, results.json and demo-model/ in the current folder
//   npm run demo -- --out DIR           there instead
//   npm run demo -- --task entailment   another folder of examples/data

import { mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { join, relative, resolve } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import {
  connectThaw,
  downloadFiles,
  problemsOf,
  RpcError,
  type Thaw,
  uploadDataset,
} from "../../clients/typescript/index.ts";
import { type Board, openBoard } from "./board.ts";
import { examplePass, kindName, splitScores } from "./convert.ts";
import { runFreeze } from "./freeze.ts";
import { renderReport } from "./report/report.ts";
import { bestStrategy } from "./report/score_section.ts";
import type { ExampleResult, Results, Scores } from "./results.ts";
import { type DemoServer, startServer } from "./server.ts";
import { type RunSpecInit, runStrategies } from "./strategies.ts";
import { summaryTable } from "./summary.ts";
import { readVocabulary } from "./vocabulary.ts";

const MODEL = "mini-switch";
const SPLITS = ["train", "validation", "test"];

/** Chosen so that everything takes well under four minutes on two cores. */
const STEPS = 48;
const BATCH_SIZE = 16;
const LEARNING_RATE = 2e-3;
const DROPOUT = 0;
const SEED = 1;
const EVALUATED_EXAMPLES = 96;
const MAX_INPUT_TOKENS = 48;
const MAX_TARGET_TOKENS = 8;
/** Steps of each phase of the steered run. */
const PHASE = 6;
/** The first so many test examples are shown token by token. */
const SHOWN_EXAMPLES = 3;

const data = (task: string, split: string): string =>
  fileURLToPath(new URL(`../data/${task}/${split}.jsonl`, import.meta.url));

async function tellStory(thaw: Thaw, board: Board, task: string, adapter: string): Promise<Results> {
  const started = performance.now();
  const { model } = await thaw.models.loadModel({ directory: MODEL, modelId: MODEL });
  const { groups } = await thaw.groups.listGroups({ parent: model!.name });
  board.say(`loaded ${model!.name}: ${model!.modelType}, ${model!.parameters.toLocaleString("en")} parameters`);

  const files = Object.fromEntries(SPLITS.map((split) => [split, data(task, split)]));
  const dataset = await uploadDataset(thaw, { datasetId: task, displayName: task }, files);
  const description = await thaw.datasets.describeDataset({ name: dataset.name });
  const targets = description.splits.find((s) => s.split?.name === "train")?.distinctTargets ?? 0n;
  board.say(`uploaded ${dataset.name}: ${dataset.splits.map((s) => `${s.examples} ${s.name}`).join(", ")}`);

  board.say(`scoring ${model!.name} before any fine-tuning`);
  const start: Record<string, Scores[string]> = {};
  for (const split of SPLITS) {
    const { result } = await thaw.models.evaluate({
      name: model!.name,
      dataset: dataset.name,
      split,
      maxExamples: BigInt(EVALUATED_EXAMPLES),
      batchSize: BigInt(BATCH_SIZE),
      maxInputTokens: BigInt(MAX_INPUT_TOKENS),
      maxTargetTokens: BigInt(MAX_TARGET_TOKENS),
    });
    start[split] = splitScores(result!);
  }

  const spec: RunSpecInit = {
    model: model!.name,
    dataset: dataset.name,
    steps: BigInt(STEPS),
    batchSize: BigInt(BATCH_SIZE),
    maxInputTokens: BigInt(MAX_INPUT_TOKENS),
    maxTargetTokens: BigInt(MAX_TARGET_TOKENS),
    seed: BigInt(SEED),
    dropout: DROPOUT,
    optimizer: { learningRate: LEARNING_RATE, schedule: { warmupSteps: 4n } },
    evaluation: { splits: SPLITS, maxExamples: BigInt(EVALUATED_EXAMPLES) },
  };
  board.say(`fine-tuning by five strategies, ${STEPS} steps of ${BATCH_SIZE} examples each:`);
  const strategies = await runStrategies(thaw, board, spec);
  board.settle();

  board.say("one more run, steered while it trains:");
  const freeze = await runFreeze(thaw, board, { ...spec, evaluation: { maxExamples: 1n } }, PHASE);
  board.settle();

  const best = bestStrategy(strategies);
  let exported: Results["exported"];
  let examples: ExampleResult[] = [];
  if (best) {
    board.say(`exporting the best by validation accuracy: ${best.strategy}`);
    const source = `runs/${best.strategy.replace("_", "-")}`;
    const tuned = await thaw.checkpoints.exportModel({ source, modelId: "best", displayName: best.strategy });
    exported = { model: tuned.model!.name, strategy: best.strategy };
    examples = await askBoth(thaw, task, model!.name, exported.model);
  }

  const system = await thaw.system.getSystem({});
  return {
    format: 1,
    date: new Date().toISOString(),
    command: ["npm run demo", ...(process.argv.length > 2 ? ["--", ...process.argv.slice(2)] : [])].join(" "),
    seconds: (performance.now() - started) / 1e3,
    thawVersion: system.version,
    adapter,
    model: {
      name: MODEL,
      modelType: model!.modelType,
      parameters: Number(model!.parameters),
      groups: groups.map((g) => ({ kind: kindName(g.kind), parameters: Number(g.parameters) })),
    },
    task: {
      name: task,
      splits: Object.fromEntries(dataset.splits.map((s) => [s.name, Number(s.examples)])),
      distinctTargets: Number(targets),
    },
    training: {
      steps: STEPS,
      batchSize: BATCH_SIZE,
      learningRate: LEARNING_RATE,
      dropout: DROPOUT,
      seed: SEED,
      evaluatedExamples: EVALUATED_EXAMPLES,
    },
    start,
    strategies,
    freeze,
    examples,
    exported,
  };
}

/** The same test inputs to the model before and after, with routes. */
async function askBoth(thaw: Thaw, task: string, before: string, after: string): Promise<ExampleResult[]> {
  const lines = (await readFile(data(task, "test"), "utf8")).split("\n").slice(0, SHOWN_EXAMPLES);
  const shown: { input: string; target: string }[] = lines.map((line) => JSON.parse(line));
  const tokenText = await readVocabulary(fileURLToPath(new URL(`../models/${MODEL}/`, import.meta.url)));
  const ask = async (name: string) => {
    const passes = [];
    const request = {
      name,
      inputs: shown.map(({ input }) => input),
      maxNewTokens: BigInt(MAX_TARGET_TOKENS),
      maxInputTokens: BigInt(MAX_INPUT_TOKENS),
      includeRoutes: true,
    };
    for await (const { generation } of thaw.models.generate(request)) passes.push(examplePass(generation!, tokenText));
    return passes;
  };
  const passes = { before: await ask(before), after: await ask(after) };
  return shown.map(({ input, target }, i) => ({
    input,
    target,
    before: passes.before[i],
    after: passes.after[i],
  }));
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: { out: { type: "string", default: "." }, task: { type: "string", default: "reading" } },
  });
  const out = resolve(process.env.INIT_CWD ?? "", values.out);
  const tasks = await readdir(new URL("../data", import.meta.url));
  if (!tasks.includes(values.task) || values.task.includes(".")) {
    console.error(`--task is "${values.task}"; it can be ${tasks.filter((name) => !name.includes(".")).join(", ")}`);
    process.exit(2);
  }
  const board = openBoard(process.stdout);
  board.say("starting a server: thaw serve --port 0");
  let server: DemoServer | undefined;
  let thaw: Thaw | undefined;
  const stopped = new AbortController();
  const stop = () => {
    board.settle();
    board.say("interrupted; stopping the server");
    stopped.abort();
    void server?.stop().finally(() => process.exit(130));
  };
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.once(signal, stop);
  try {
    server = await startServer(stopped.signal);
    board.say(`it serves on ${server.address}, ${server.adapter}`);
    thaw = connectThaw(server.address);
    const results = await tellStory(thaw, board, values.task, server.adapter);
    const written = await write(thaw, results, out);
    board.say(`\n${summaryTable(results)}\n`);
    for (const path of written) board.say(relative(process.cwd(), path));
    process.exitCode = results.strategies.every((s) => s.state === "SUCCEEDED") ? 0 : 1;
  } catch (error) {
    process.exitCode = stopped.signal.aborted ? 130 : 1;
    if (!stopped.signal.aborted) explain(board, error);
  } finally {
    thaw?.close();
    await server?.stop();
  }
}

function explain(board: Board, error: unknown): void {
  const { code, message, fields } = problemsOf(error);
  board.settle();
  board.say(error instanceof RpcError ? `the demo failed: ${code}: ${message}` : `the demo failed: ${message}`);
  for (const { field, message } of fields) board.say(field ? `  ${field}: ${message}` : `  ${message}`);
}

/** Writes the report, the results and the exported model. Returns their paths. */
async function write(thaw: Thaw, results: Results, out: string): Promise<string[]> {
  await mkdir(out, { recursive: true });
  const paths = [join(out, "report.html"), join(out, "results.json")];
  await writeFile(paths[0], renderReport(results));
  await writeFile(paths[1], `${JSON.stringify(results, null, 1)}\n`);
  if (!results.exported) return paths;
  const model = join(out, "demo-model");
  await rm(model, { recursive: true, force: true });
  await downloadFiles(thaw.models.downloadModel({ name: results.exported.model }), model);
  return [...paths, model];
}

await main();
// When a run has failed, the other watches would still wait for the server to come back.
process.exit();
