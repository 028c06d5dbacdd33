// What a pre-training is told: the command line of scripts/pretrain.ts, read and checked, and the settings of its run.

import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import type { RunSettings } from "../../src/trainer/run/options.ts";
import type { OptimizerAlgorithm, RoutingOptions } from "../../src/trainer/types.ts";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
export const EXAMPLE_MODEL = join(ROOT, "examples/models/mini-switch");
/** The text of the example model: each line is an example of its own. */
export const EXAMPLE_TEXT = join(ROOT, "examples/data/pretraining.txt");
export const SEED = 0;

export interface Recipe {
  /** config.json of the model. */
  readonly config: string;
  /** Folder with tokenizer.json. */
  readonly tokenizer: string;
  /** Files and folders; none: the example text. */
  readonly text: readonly string[];
  readonly maxCharacters: number;
  /** Tokens of a text before corruption, where it is cut in windows. */
  readonly window: number;
  /** Most tokens of an example, end of sequence included. */
  readonly inputTokens: number;
  readonly targetTokens: number;
  readonly steps: number;
  readonly minutes: number;
  readonly batchSize: number;
  readonly optimizer: "adamw" | "adafactor";
  readonly precision: "f32" | "mixed";
  readonly learningRate: number;
  readonly warmupSteps: number;
  readonly capacityFactor: number;
  readonly evalCapacityFactor: number;
  readonly out: string;
}

export const USAGE = `usage: npm run pretrain -- (--steps N | --minutes M) [options]
  --steps N, --minutes M     when to end: either, or what comes first
  --out DIR                  where the model is written; default examples/models/mini-switch
  --config FILE              config.json of the model; default the example model's
  --tokenizer DIR            folder with its tokenizer.json; default the example model's
  --text PATH                text to learn from, a file or folder, may be repeated; default examples/data/pretraining.txt
  --max-characters N         of that text at most; default all of it
  --window N                 tokens of a text before spans are cut out, with --text; default 128
  --batch-size N             default 32
  --optimizer NAME           adamw or adafactor; default adamw
  --precision NAME           f32 or mixed; default f32
  --learning-rate X          after warm-up, then falling with 1/sqrt(step); default 3e-3
  --warmup-steps N           default 100
  --capacity-factor X        slots of an expert in training; default none are limited
  --eval-capacity-factor X   the same in evaluation`;

const OPTIONS = {
  steps: { type: "string" },
  minutes: { type: "string" },
  out: { type: "string" },
  config: { type: "string" },
  tokenizer: { type: "string" },
  text: { type: "string", multiple: true },
  "max-characters": { type: "string" },
  window: { type: "string" },
  "batch-size": { type: "string" },
  optimizer: { type: "string" },
  precision: { type: "string" },
  "learning-rate": { type: "string" },
  "warmup-steps": { type: "string" },
  "capacity-factor": { type: "string" },
  "eval-capacity-factor": { type: "string" },
} as const;

/** The recipe that `args` ask for, or everything that is wrong with them. */
export function recipeOf(args: readonly string[]): Recipe | string {
  const mistakes: string[] = [];
  let values: ReturnType<typeof parseArgs<{ options: typeof OPTIONS }>>["values"];
  try {
    ({ values } = parseArgs({ args: [...args], options: OPTIONS }));
  } catch (error) {
    return (error as Error).message;
  }
  const positive = (name: keyof typeof OPTIONS, fallback: number, whole: boolean): number => {
    const text = values[name] as string | undefined;
    if (text === undefined) return fallback;
    const value = Number(text);
    if (value > 0 && (whole ? Number.isSafeInteger(value) : Number.isFinite(value))) return value;
    mistakes.push(`--${name} must be a positive ${whole ? "whole " : ""}number, is ${text}`);
    return fallback;
  };
  const optimizer = values.optimizer ?? "adamw";
  if (optimizer !== "adamw" && optimizer !== "adafactor")
    mistakes.push(`--optimizer must be adamw or adafactor, is ${optimizer}`);
  const precision = values.precision ?? "f32";
  if (precision !== "f32" && precision !== "mixed") mistakes.push(`--precision must be f32 or mixed, is ${precision}`);
  if (values.steps === undefined && values.minutes === undefined) mistakes.push("give --steps, --minutes or both");
  const text = values.text ?? [];
  const window = positive("window", 128, true);
  const recipe: Recipe = {
    config: values.config ?? join(EXAMPLE_MODEL, "config.json"),
    tokenizer: values.tokenizer ?? EXAMPLE_MODEL,
    text,
    maxCharacters: positive("max-characters", Number.MAX_SAFE_INTEGER, true),
    window,
    // Windows are never cut; a line of the example text that is too long would be.
    inputTokens: text.length > 0 ? window + 1 : 64,
    targetTokens: text.length > 0 ? window + 1 : 32,
    steps: positive("steps", Number.MAX_SAFE_INTEGER, true),
    minutes: positive("minutes", Number.POSITIVE_INFINITY, false),
    batchSize: positive("batch-size", 32, true),
    optimizer: optimizer === "adafactor" ? "adafactor" : "adamw",
    precision: precision === "mixed" ? "mixed" : "f32",
    learningRate: positive("learning-rate", 3e-3, false),
    warmupSteps: positive("warmup-steps", 100, true),
    capacityFactor: positive("capacity-factor", 0, false),
    evalCapacityFactor: positive("eval-capacity-factor", 0, false),
    out: values.out ?? EXAMPLE_MODEL,
  };
  return mistakes.length > 0 ? mistakes.join("\n") : recipe;
}

const ALGORITHMS: Readonly<Record<Recipe["optimizer"], OptimizerAlgorithm>> = {
  adamw: { kind: "adamw", beta1: 0.9, beta2: 0.98, epsilon: 1e-8, weightDecay: 0.01 },
  adafactor: {
    kind: "adafactor",
    decayRate: 0.8,
    clipThreshold: 1,
    epsilon: 1e-30,
    minParameterScale: 1e-3,
    minDimensionToFactor: 128,
    weightDecay: 0,
  },
};

const capacity = (factor: number): RoutingOptions["trainCapacity"] =>
  factor > 0 ? { rule: "factor", factor } : { rule: "dropless" };

export const runSettings = (recipe: Recipe): RunSettings => ({
  steps: recipe.steps,
  batchSize: recipe.batchSize,
  maxInputTokens: recipe.inputTokens,
  maxTargetTokens: recipe.targetTokens,
  seed: SEED,
  precision: recipe.precision,
  // The inverse square root needs no end to be planned, so --minutes may stop anywhere.
  optimizer: {
    algorithm: ALGORITHMS[recipe.optimizer],
    learningRate: recipe.learningRate,
    maxGradientNorm: 1,
    schedule: "inverse_sqrt",
    warmupSteps: recipe.warmupSteps,
  },
  routing: {
    trainCapacity: capacity(recipe.capacityFactor),
    evalCapacity: capacity(recipe.evalCapacityFactor),
    group: "batch",
    routePadding: false,
    jitter: 0,
  },
  losses: { balanceCoefficient: 1e-2, zCoefficient: 1e-3 },
  dropout: 0,
});
