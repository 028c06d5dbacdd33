// Pre-trains a model on span corruption (Raffel et al. 2020): it learns to fill in what was cut out of a text.
//
//   npm run pretrain -- --steps 20000                 the example model, on examples/data/pretraining.txt
//   npm run pretrain -- --minutes 10 --out DIR        as many steps as fit, evaluation aside; with both, what ends first
//   npm run pretrain -- --config FILE --tokenizer DIR --text PATH --text PATH --steps 5000 --out DIR
//                                                     another model, on the text in files and folders (pretraining/corpus.ts)
//
// It trains through the engine directly, on whatever adapter there is, and writes a Hugging Face directory with a README
// that says how it was made. Nothing is written before the end; the same steps on the same text and adapter give the same
// model.

import { copyFile, mkdir, mkdtemp, readFile, rename, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, dirname, join, relative, resolve } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { adapterLine, openDevice } from "../src/kernels/device/open.ts";
import { ensureGpuEnvironment } from "../src/kernels/device/relaunch.ts";
import { lengthsOf, trainingData } from "../src/trainer/data/batching.ts";
import { shuffledOrder } from "../src/trainer/data/order.ts";
import { loadTokenizer } from "../src/trainer/data/tokenizer.ts";
import { writeSafetensors } from "../src/trainer/formats/safetensors_writer.ts";
import { elements } from "../src/trainer/graph/graph.ts";
import { openModelDirectory } from "../src/trainer/model/open.ts";
import { keyShape, type ParameterSpec } from "../src/trainer/model/parameters.ts";
import { initialValues } from "../src/trainer/model/switch/init.ts";
import { switchModel } from "../src/trainer/model/switch/switch.ts";
import { Run } from "../src/trainer/run/run.ts";
import type { EvaluationResult, TrainingRun } from "../src/trainer/types.ts";
import { HELD_OUT_EVERY, jsonLines, type PretrainingData, textData } from "./pretraining/examples.ts";
import { EXAMPLE_MODEL, type Recipe, recipeOf, runSettings, SEED, USAGE } from "./pretraining/recipe.ts";

const TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json"];
/** So many held-out examples are scored. */
const SCORED_EXAMPLES = 100;
const REPORT_SECONDS = 5;
/** Steps submitted before the first of them has come back. */
const STEPS_IN_FLIGHT = 2;

/** Writes an untrained model as a Hugging Face directory into `directory`. Returns its parameters. */
async function writeUntrainedModel(directory: string, recipe: Recipe): Promise<readonly ParameterSpec[]> {
  const config = await readFile(recipe.config, "utf8");
  const { parameters } = switchModel(JSON.parse(config));
  await mkdir(directory);
  await writeFile(join(directory, "config.json"), config);
  for (const name of TOKENIZER_FILES) await copyFile(join(recipe.tokenizer, name), join(directory, name));
  const tensors = parameters.flatMap((p, stream) => {
    const values = initialValues(p, SEED, stream);
    const size = elements(keyShape(p));
    return p.keys.map((name, i) => ({
      name,
      dtype: "F32" as const,
      shape: keyShape(p),
      data: values.subarray(i * size, (i + 1) * size),
    }));
  });
  await writeSafetensors(join(directory, "model.safetensors"), tensors, { format: "pt" });
  return parameters;
}

interface Made {
  readonly command: string;
  readonly adapter: string;
  readonly parameters: readonly ParameterSpec[];
  readonly text: string;
  readonly bytes: number;
  readonly steps: number;
  readonly tokens: number;
  readonly minutes: number;
  readonly batchSize: number;
  readonly before: EvaluationResult;
  readonly after: EvaluationResult;
}

const percent = (share: number): string => `${(share * 100).toFixed(1)} %`;
const count = (n: number): string => n.toLocaleString("en");
const sizeOf = (parameters: readonly ParameterSpec[]): number => parameters.reduce((n, p) => n + elements(p.shape), 0);

/** Share of the parameters that lie in experts. */
const expertShare = (parameters: readonly ParameterSpec[]): number =>
  sizeOf(parameters.filter((p) => p.kind === "expert")) / sizeOf(parameters);

const readme = (name: string, made: Made): string => `# ${name}

A model of ${count(sizeOf(made.parameters))} parameters (${(made.bytes / 1e6).toFixed(1)} MB), ${percent(expertShare(made.parameters))} of them in experts; config.json has its shape. It was
pre-trained with thaw on span corruption over ${made.text}, and knows nothing else.

| | |
|---|---|
| made by | \`${made.command}\` |
| on | ${new Date().toISOString().slice(0, 10)}, ${made.adapter} |
| training | ${count(made.steps)} steps of ${made.batchSize} texts, ${count(made.tokens)} tokens, ${made.minutes.toFixed(1)} minutes |
| held-out loss, nats per target token | ${made.before.loss.toFixed(3)} untrained, ${made.after.loss.toFixed(3)} after |
| held-out target tokens predicted right | ${percent(made.before.tokenAccuracy)} untrained, ${percent(made.after.tokenAccuracy)} after |

Held out is every ${HELD_OUT_EVERY}th text; the first ${SCORED_EXAMPLES} examples of them were scored.
`;

/** Trains until the recipe's limit. Returns the tokens seen and the seconds taken. */
async function train(run: TrainingRun, recipe: Recipe): Promise<{ tokens: number; seconds: number }> {
  const started = performance.now();
  const elapsed = () => (performance.now() - started) / 1e3;
  const seconds = recipe.minutes * 60;
  let submitted = run.step;
  let tokens = 0;
  let reported = { step: run.step, seconds: 0, tokens: 0 };
  let mean = { loss: 0, steps: 0 };

  const step = async (): Promise<void> => {
    const metrics = await run.trainStep();
    if (!Number.isFinite(metrics.loss)) throw new Error(`the loss of step ${metrics.step} is ${metrics.loss}`);
    tokens += metrics.tokens;
    mean = { loss: mean.loss + metrics.loss, steps: mean.steps + 1 };
    const now = elapsed();
    if (now - reported.seconds < REPORT_SECONDS && metrics.step > 1) return;
    const rate = (metrics.step - reported.step) / (now - reported.seconds);
    const left = Math.min((recipe.steps - metrics.step) / rate, seconds - now);
    const loads = metrics.layers.flatMap(({ load }) => load);
    console.log(
      `step ${metrics.step}  loss ${(mean.loss / mean.steps).toFixed(3)}` +
        `${loads.length > 0 ? `  busiest expert ${percent(Math.max(...loads))}` : ""}` +
        `  ${rate.toFixed(1)} steps/s  ${count(Math.round((tokens - reported.tokens) / (now - reported.seconds)))} tokens/s` +
        `  ${Math.round(now)} s gone, about ${Math.max(0, Math.round(left))} s left`,
    );
    reported = { step: metrics.step, seconds: now, tokens };
    mean = { loss: 0, steps: 0 };
  };
  const lane = async (): Promise<void> => {
    while (submitted < recipe.steps && elapsed() < seconds) {
      submitted++;
      await step();
    }
  };
  await Promise.all(Array.from({ length: STEPS_IN_FLIGHT }, lane));
  return { tokens, seconds: elapsed() };
}

async function pretrain(recipe: Recipe, scratch: string): Promise<void> {
  const device = await openDevice();
  const adapter = adapterLine(device.capabilities);
  console.log(adapter);
  const parameters = await writeUntrainedModel(join(scratch, "untrained"), recipe);
  const tokenizer = await loadTokenizer(recipe.tokenizer);
  if (!tokenizer) throw new Error(`${recipe.tokenizer} has no tokenizer; scripts/make_tokenizer.ts makes one`);
  const source = await openModelDirectory(join(scratch, "untrained"));
  if (source.model.vocabularySize < tokenizer.vocabularySize)
    throw new Error(
      `${recipe.config}: vocab_size is ${source.model.vocabularySize}, the tokenizer has ${tokenizer.vocabularySize} tokens`,
    );
  const data: PretrainingData = await textData(recipe, tokenizer, source.model.eosTokenId);
  console.log(`${data.text}: ${count(data.train.length)} examples, ${count(data.heldOut.length)} held out`);
  const heldOut = join(scratch, "held_out.jsonl");
  await writeFile(heldOut, jsonLines(data.heldOut.slice(0, SCORED_EXAMPLES)));

  const limits = { input: recipe.inputTokens, target: recipe.targetTokens };
  const { padTokenId, decoderStartTokenId } = source.model;
  const { batches, ...shares } = trainingData(data.train, shuffledOrder(data.train.length, SEED), {
    batching: "padded",
    size: recipe.batchSize,
    limits,
    seed: SEED,
    padTokenId,
    decoderStartTokenId,
  });
  const run = await Run.open(device, source, runSettings(recipe), {
    inference: lengthsOf(data.train, limits),
    training: {
      plan: { selection: { preset: "all", add: [], remove: [] }, optimizerState: "keep", routerLosses: "keep" },
      batches,
      data: { examples: data.train.length, truncatedInputs: 0, truncatedTargets: 0, ...shares },
    },
  });
  await source.checkpoint.close();
  console.log(
    `${count(sizeOf(parameters))} parameters, ${percent(expertShare(parameters))} in experts, ${run.cost.dispatches} dispatches a step,` +
      ` ${((run.cost.forwardFlops + run.cost.backwardFlops) / 1e9).toFixed(1)} GFLOP, ${(run.cost.peakBytes / 1e9).toFixed(2)} GB`,
  );
  const before = await run.evaluate(heldOut, "held_out", SCORED_EXAMPLES);
  console.log(`held out before: loss ${before.loss.toFixed(3)}, ${percent(before.tokenAccuracy)} of tokens right`);
  const { tokens, seconds } = await train(run, recipe);
  const after = await run.evaluate(heldOut, "held_out", SCORED_EXAMPLES);
  console.log(`held out after: loss ${after.loss.toFixed(3)}, ${percent(after.tokenAccuracy)} of tokens right`);

  const exported = join(scratch, "exported");
  await mkdir(exported);
  const { bytes } = await run.exportModel(exported);
  run.close();
  const command = ["npm run pretrain --", ...process.argv.slice(2)].join(" ");
  const made = { command, adapter, parameters, bytes, steps: run.step, tokens, minutes: seconds / 60, before, after };
  const { batchSize, out } = recipe;
  await writeFile(join(exported, "README.md"), readme(basename(out), { ...made, batchSize, text: data.text }));
  await mkdir(out, { recursive: true });
  for (const name of ["config.json", "model.safetensors", "README.md", ...TOKENIZER_FILES])
    await replaceFile(join(exported, name), join(out, name));
  console.log(`wrote ${relative(process.cwd(), out) || "."}: ${(bytes / 1e6).toFixed(2)} MB`);
}

/** Copies over a file in one step, so that nobody ever reads half of it. */
async function replaceFile(from: string, to: string): Promise<void> {
  const beside = join(dirname(to), `.${process.pid}.tmp`);
  await copyFile(from, beside);
  await rename(beside, to);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  ensureGpuEnvironment();
  const recipe = recipeOf(process.argv.slice(2));
  if (typeof recipe === "string") {
    console.error(`${recipe}\n${USAGE}`);
    process.exit(2);
  }
  const scratch = await mkdtemp(join(tmpdir(), "thaw-pretrain-"));
  try {
    await pretrain({ ...recipe, out: resolve(recipe.out ?? EXAMPLE_MODEL) }, scratch);
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
}
