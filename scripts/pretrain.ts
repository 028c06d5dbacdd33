// Pre-trains the example model: a small Switch Transformer learns to fill in spans of examples/data/pretraining.txt.
//
//   npm run pretrain -- --steps 20000                 a fixed number of optimizer steps
//   npm run pretrain -- --minutes 10                  as many as fit, evaluation aside; with both, whichever ends first
//   npm run pretrain -- --steps 100 --out /tmp/model  somewhere else than examples/models/mini-switch
//
// It trains through the engine directly, on whatever adapter there is, and writes a Hugging Face directory with a README
// that says how it was made. The tokenizer comes from examples/models/mini-switch (scripts/make_tokenizer.ts). Nothing is
// written before the end; the same steps on the same adapter give the same model.

import { copyFile, mkdir, mkdtemp, readFile, rename, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join, relative, resolve } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { adapterLine, openDevice } from "../src/kernels/device/open.ts";
import { ensureGpuEnvironment } from "../src/kernels/device/relaunch.ts";
import { corruptSpans, type SpanCorruption, sentinelIdsOf } from "../src/trainer/data/span_corruption.ts";
import { loadTokenizer, type Tokenizer } from "../src/trainer/data/tokenizer.ts";
import { createEngine } from "../src/trainer/engine.ts";
import { writeSafetensors } from "../src/trainer/formats/safetensors_writer.ts";
import { elements } from "../src/trainer/graph/graph.ts";
import { keyShape } from "../src/trainer/model/parameters.ts";
import { initialValues } from "../src/trainer/model/switch/init.ts";
import { switchModel } from "../src/trainer/model/switch/switch.ts";
import type { EvaluationResult, RunConfig } from "../src/trainer/types.ts";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const TEXT = join(ROOT, "examples/data/pretraining.txt");
const MODEL = join(ROOT, "examples/models/mini-switch");
const TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json"];

const SEED = 0;
const BATCH_SIZE = 32;
/** Texts are shorter; one that is not would be cut. */
const MAX_INPUT_TOKENS = 64;
const MAX_TARGET_TOKENS = 32;
/** Every so-many-th text is held out. */
const HELD_OUT_EVERY = 20;
/** So many of them are scored. */
const SCORED_TEXTS = 100;
/** Each text is written with so many different corruptions; a longer training repeats them. */
const CORRUPTIONS = 20;
const REPORT_SECONDS = 5;

/** Raffel et al. 2020: 15 % of the tokens, three at a time. */
const corruption = (tokenizer: Tokenizer): SpanCorruption => ({
  noiseDensity: 0.15,
  meanSpanLength: 3,
  sentinelIds: sentinelIdsOf(tokenizer),
});

/** The configuration of the example model, 0.6 M parameters, two thirds of them experts. */
export const modelConfig = (vocabularySize: number) => ({
  architectures: ["SwitchTransformersForConditionalGeneration"],
  model_type: "switch_transformers",
  is_encoder_decoder: true,
  vocab_size: vocabularySize,
  d_model: 64,
  d_kv: 16,
  num_heads: 4,
  d_ff: 128,
  num_layers: 4,
  num_decoder_layers: 2,
  num_sparse_encoder_layers: 2,
  num_sparse_decoder_layers: 1,
  num_experts: 8,
  expert_capacity: 64,
  router_jitter_noise: 0,
  router_z_loss_coef: 0.001,
  router_aux_loss_coef: 0.01,
  router_bias: false,
  relative_attention_num_buckets: 32,
  relative_attention_max_distance: 128,
  dense_act_fn: "relu",
  is_gated_act: false,
  dropout_rate: 0.1,
  layer_norm_epsilon: 1e-6,
  tie_word_embeddings: true,
  pad_token_id: 0,
  eos_token_id: 1,
  decoder_start_token_id: 0,
});

/** JSONL of token ids: each text under `corruptions` different masks. Held-out texts and the others share none. */
export function corruptedTexts(
  texts: readonly string[],
  tokenizer: Tokenizer,
  part: "train" | "held_out",
  corruptions: number,
): string {
  const options = corruption(tokenizer);
  const lines: string[] = [];
  for (const [i, text] of texts.entries()) {
    if ((i % HELD_OUT_EVERY === 0) !== (part === "held_out")) continue;
    const tokens = tokenizer.encode(text, { special: false });
    for (let c = 0; c < corruptions; c++) {
      const { inputIds, targetIds } = corruptSpans(tokens, options, SEED, i * CORRUPTIONS + c);
      lines.push(JSON.stringify({ input_ids: inputIds, target_ids: targetIds }));
    }
  }
  return `${lines.join("\n")}\n`;
}

/** Writes an untrained model as a Hugging Face directory into `directory`. Returns its parameters. */
async function writeUntrainedModel(directory: string, config: ReturnType<typeof modelConfig>): Promise<number> {
  const { parameters } = switchModel(config);
  await writeFile(join(directory, "config.json"), JSON.stringify(config));
  for (const name of TOKENIZER_FILES) await copyFile(join(MODEL, name), join(directory, name));
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
  return parameters.reduce((n, p) => n + elements(p.shape), 0);
}

const runConfig = (directory: string, steps: number): RunConfig => ({
  modelDirectory: join(directory, "untrained"),
  trainFile: join(directory, "train.jsonl"),
  validationFile: join(directory, "held_out.jsonl"),
  steps,
  batchSize: BATCH_SIZE,
  maxInputTokens: MAX_INPUT_TOKENS,
  maxTargetTokens: MAX_TARGET_TOKENS,
  seed: SEED,
  trainable: { selection: { preset: "all", add: [], remove: [] }, optimizerState: "keep", routerLosses: "keep" },
  // The inverse square root needs no end to be planned, so --minutes may stop anywhere.
  optimizer: {
    algorithm: { kind: "adamw", beta1: 0.9, beta2: 0.98, epsilon: 1e-8, weightDecay: 0.01 },
    learningRate: 3e-3,
    maxGradientNorm: 1,
    schedule: "inverse_sqrt",
    warmupSteps: 100,
  },
  routing: {
    trainCapacity: { rule: "dropless" },
    evalCapacity: { rule: "dropless" },
    group: "batch",
    routePadding: false,
    jitter: 0,
  },
  losses: { balanceCoefficient: 1e-2, zCoefficient: 1e-3 },
  dropout: 0,
});

interface Made {
  readonly command: string;
  readonly adapter: string;
  readonly parameters: number;
  readonly bytes: number;
  readonly steps: number;
  readonly minutes: number;
  readonly before: EvaluationResult;
  readonly after: EvaluationResult;
}

const readme = (made: Made): string => `# mini-switch

A Switch Transformer of ${made.parameters.toLocaleString("en")} parameters (${(made.bytes / 1e6).toFixed(1)} MB), small enough to fine-tune on a CPU in a minute: 4 encoder
and 2 decoder layers, every other one sparse with 8 experts, d_model 64. It was pre-trained with thaw on span corruption
over \`examples/data/pretraining.txt\` and knows that text's small world and nothing else.

| | |
|---|---|
| made by | \`${made.command}\` |
| on | ${new Date().toISOString().slice(0, 10)}, ${made.adapter} |
| training | ${made.steps} steps of ${BATCH_SIZE} texts, ${made.minutes.toFixed(1)} minutes |
| held-out loss, nats per target token | ${made.before.loss.toFixed(3)} untrained, ${made.after.loss.toFixed(3)} after |
| held-out target tokens predicted right | ${percent(made.before.tokenAccuracy)} untrained, ${percent(made.after.tokenAccuracy)} after |

Held out is every ${HELD_OUT_EVERY}th text; the first ${SCORED_TEXTS} of them were scored. Nothing from the tasks' validation and test splits is in the text.
`;

const percent = (share: number): string => `${(share * 100).toFixed(1)} %`;

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: { steps: { type: "string" }, minutes: { type: "string" }, out: { type: "string", default: MODEL } },
  });
  const steps = values.steps === undefined ? Number.MAX_SAFE_INTEGER : Number(values.steps);
  const minutes = values.minutes === undefined ? Number.POSITIVE_INFINITY : Number(values.minutes);
  if (!(Number.isSafeInteger(steps) && steps > 0 && minutes > 0) || (values.steps ?? values.minutes) === undefined) {
    console.error(
      "usage: npm run pretrain -- [--steps N] [--minutes M] [--out DIR], with a positive limit of one kind",
    );
    process.exit(2);
  }
  const out = resolve(values.out);
  const scratch = await mkdtemp(join(tmpdir(), "thaw-pretrain-"));
  try {
    await pretrain(steps, minutes, out, scratch);
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
}

async function pretrain(steps: number, minutes: number, out: string, scratch: string): Promise<void> {
  const device = await openDevice();
  const adapter = adapterLine(device.capabilities);
  console.log(adapter);
  const tokenizer = await loadTokenizer(MODEL);
  if (!tokenizer)
    throw new Error("examples/models/mini-switch has no tokenizer; make it with scripts/make_tokenizer.ts");
  const texts = (await readFile(TEXT, "utf8")).trimEnd().split("\n");
  await mkdir(join(scratch, "untrained"));
  // Rows to a multiple of 64; the tokenizer never uses the last ones.
  const vocabularySize = Math.ceil(tokenizer.vocabularySize / 64) * 64;
  const parameters = await writeUntrainedModel(join(scratch, "untrained"), modelConfig(vocabularySize));
  const heldOut = join(scratch, "held_out.jsonl");
  await writeFile(join(scratch, "train.jsonl"), corruptedTexts(texts, tokenizer, "train", CORRUPTIONS));
  await writeFile(heldOut, corruptedTexts(texts, tokenizer, "held_out", 1));

  const config = runConfig(scratch, steps);
  const run = await createEngine(device).openRun(config);
  console.log(
    `${parameters} parameters, ${run.data.examples} corrupted texts, ${run.cost.dispatches} dispatches a step`,
  );
  const before = await run.evaluate(heldOut, "held_out", SCORED_TEXTS);
  console.log(`held out before: loss ${before.loss.toFixed(3)}, ${percent(before.tokenAccuracy)} of tokens right`);

  const started = performance.now();
  const elapsed = () => (performance.now() - started) / 1e3;
  let reported = { step: 0, seconds: 0 };
  let mean = { loss: 0, steps: 0 };
  while (run.step < steps && elapsed() < minutes * 60) {
    const metrics = await run.trainStep();
    if (!Number.isFinite(metrics.loss)) throw new Error(`the loss of step ${metrics.step} is ${metrics.loss}`);
    mean = { loss: mean.loss + metrics.loss, steps: mean.steps + 1 };
    const seconds = elapsed();
    if (seconds - reported.seconds < REPORT_SECONDS && run.step > 1) continue;
    const rate = (run.step - reported.step) / (seconds - reported.seconds);
    const left = Math.min((steps - run.step) / rate, minutes * 60 - seconds);
    const busiest = Math.max(...metrics.layers.flatMap(({ load }) => load));
    console.log(
      `step ${run.step}  loss ${(mean.loss / mean.steps).toFixed(3)}  busiest expert ${percent(busiest)}` +
        `  ${rate.toFixed(1)} steps/s  ${Math.round(seconds)} s gone, about ${Math.max(0, Math.round(left))} s left`,
    );
    reported = { step: run.step, seconds };
    mean = { loss: 0, steps: 0 };
  }
  const trained = elapsed();
  const after = await run.evaluate(heldOut, "held_out", SCORED_TEXTS);
  console.log(`held out after: loss ${after.loss.toFixed(3)}, ${percent(after.tokenAccuracy)} of tokens right`);

  const exported = join(scratch, "exported");
  await mkdir(exported);
  const { bytes } = await run.exportModel(exported);
  run.close();
  const command = ["npm run pretrain --", ...process.argv.slice(2)].join(" ");
  const made = { command, adapter, parameters, bytes, steps: run.step, minutes: trained / 60, before, after };
  await writeFile(join(exported, "README.md"), readme(made));
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
  await main();
}
