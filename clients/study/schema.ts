// What a study file may say. Its fields are documented here, once; examples/studies has files that use them.

import { existsSync } from "node:fs";
import { join, resolve } from "node:path";
import { parseSelector } from "../cli/plan.ts";
import { flag, listOf, optional, type Place, type Read, real, record, required, text, whole, word } from "./fields.ts";
import type { CellSettings } from "./results.ts";
import { type StudyRouting, studyRouting } from "./routing.ts";

const PRESETS = ["all", "non_moe", "moe", "attention", "ffn"] as const;
/** Figures of an evaluation; `primary` is the first metric of the dataset's task. */
const METRICS = ["accuracy", "exact_match", "primary"] as const;
const OPTIMIZERS = ["adamw", "adafactor", "sgd"] as const;
const BATCHINGS = ["padded", "packed", "bucketed"] as const;
const PRECISIONS = ["f32", "mixed"] as const;

/** What a cell starts from. Written short as its source alone; the name is then the source's last word. */
export interface ModelSource {
  readonly name: string;
  /**
   * `models/{model}`, `runs/{run}/checkpoints/{checkpoint}`, a folder to upload relative to the study file (`./…`, `../…`),
   * or else a folder inside the server's models folder.
   */
  readonly source: string;
  /** Names of the strategies it is trained by; default: all of the study's. A dense model has no experts to train alone. */
  readonly strategies?: readonly string[];
}

export interface StudyTask {
  readonly name: string;
  /**
   * `datasets/{dataset}`, or a folder with train, validation (or val) and perhaps test .jsonl, relative to the study file.
   */
  readonly dataset: string;
  /**
   * What the lines of a folder are of: a ready task (`superglue/boolq`), or a task file (`./…`, `../…`) relative to the
   * study file. Default: they are examples.
   */
  readonly task?: string;
  /** Default: `primary` with `task`, else `accuracy`. */
  readonly metric: (typeof METRICS)[number];
  readonly steps: number;
  readonly batchSize: number;
  readonly maxInputTokens: number;
  readonly maxTargetTokens: number;
}

/** A freeze plan by name. Written short as a preset alone. */
export interface Strategy {
  readonly name: string;
  readonly preset?: (typeof PRESETS)[number];
  /** Selectors as `thaw runs create --add` takes them: `expert:experts=0,1:layers=0-3`. */
  readonly add: readonly string[];
  readonly remove: readonly string[];
  readonly router?: boolean;
  readonly routerLosses: "keep" | "off";
}

export interface StudyFile {
  readonly name: string;
  readonly question: string;
  /** What is compared, by the name of its setting. */
  readonly axis: string;
  /** The value of the axis that the others are paired with. */
  readonly baseline: string;
  /** Claims to give a verdict on. */
  readonly claims: readonly string[];
  /** Differences of the score below this count as none. */
  readonly equivalenceMargin: number;
  readonly models: readonly ModelSource[];
  readonly tasks: readonly StudyTask[];
  readonly strategies: readonly Strategy[];
  readonly seeds: readonly number[];
  readonly learningRates: readonly number[];
  /** Default: each task's own. */
  readonly batchSizes?: readonly number[];
  /** Default: dropless. */
  readonly capacityFactors?: readonly number[];
  /** In evaluation. Default: dropless. */
  readonly evalCapacityFactor?: number;
  readonly dropouts: readonly number[];
  /** Default: the dropout. */
  readonly expertDropouts?: readonly number[];
  readonly optimizer: (typeof OPTIMIZERS)[number];
  readonly warmupSteps: number;
  /** How examples of different lengths share batches; with `packed` a batch size counts rows, not examples. */
  readonly batching: (typeof BATCHINGS)[number];
  /** Of every run: RunSpec's. */
  readonly precision: (typeof PRECISIONS)[number];
  readonly routing?: StudyRouting;
  readonly evaluation: StudyEvaluation;
}

export interface StudyEvaluation {
  /** 0: only after the last step. */
  readonly everySteps: number;
  /** Of the validation split, and of the test split; 0 means all. */
  readonly maxExamples: number;
  /** Scores the test split too. */
  readonly test: boolean;
}

/** An axis by its word in the file. */
export const AXES: Readonly<Record<string, keyof CellSettings>> = {
  strategy: "strategy",
  model: "model",
  task: "task",
  learning_rate: "learningRate",
  batch_size: "batchSize",
  capacity_factor: "capacityFactor",
  dropout: "dropout",
  expert_dropout: "expertDropout",
};

const NAME = /^[a-z][a-z0-9_-]{0,39}$/;
const name = text(NAME, "a name of small letters, digits, - and _, at most 40, beginning with a letter");
const itself = <T>(value: T): T => value;

export const isDatasetFolder = (dataset: string): boolean => !dataset.startsWith("datasets/");
export const isTaskFile = (task: string): boolean => /^\.\.?\//.test(task);
export const isModelFolder = (source: string): boolean => /^\.\.?\//.test(source);

/**
 * A text whose folder, where it is one, holds what it must.
 * @param base what folders are relative to
 * @param needed names of files; of a list of names, one is enough
 */
const folderText =
  (
    read: Read<string>,
    base: string,
    isFolder: (text: string) => boolean,
    needed: readonly (string | readonly string[])[],
  ): Read<string> =>
  (place) => {
    const value = read(place);
    if (value === undefined || !isFolder(value)) return value;
    const missing = needed
      .map((names) => [names].flat())
      .filter((names) => !names.some((name) => existsSync(join(resolve(base, value), name))))
      .map((names) => names.join(" or "));
    return missing.length === 0 ? value : place.wrong(`there is no ${missing.join(" and no ")} in this folder`);
  };

const model = (base: string): Read<ModelSource> => {
  const path = text(/^[^/\s]\S*$/, "a relative path, models/{model} or runs/{run}/checkpoints/{checkpoint}");
  const source = folderText(path, base, isModelFolder, ["config.json"]);
  const modelRecord = record<ModelSource>({
    name: required(name),
    source: required(source),
    strategies: optional(listOf(name, itself)),
  });
  return (place) => {
    if (!isText(place)) return modelRecord(place);
    const read = source(place);
    if (read === undefined) return undefined;
    const last = read.split("/").filter(Boolean).at(-1)?.toLowerCase() ?? "";
    return NAME.test(last) ? { name: last, source: read } : place.wrong("needs a name: {name: …, source: …}");
  };
};

/** A ready task's name, or a task file that is there. */
const taskSource =
  (base: string): Read<string> =>
  (place) => {
    const value = text()(place);
    if (value === undefined || !isTaskFile(value) || existsSync(resolve(base, value))) return value;
    return place.wrong("there is no such task file");
  };

type GivenTask = Omit<StudyTask, "metric"> & Partial<Pick<StudyTask, "metric">>;

const task = (base: string): Read<StudyTask> => {
  const taskRecord = record<GivenTask>(
    {
      name: required(name),
      dataset: required(folderText(text(), base, isDatasetFolder, ["train.jsonl", ["validation.jsonl", "val.jsonl"]])),
      metric: optional(word(METRICS)),
      steps: required(whole({ atLeast: 1 })),
      batchSize: optional(whole({ atLeast: 1 }), 16),
      maxInputTokens: optional(whole({ atLeast: 1 }), 128),
      maxTargetTokens: optional(whole({ atLeast: 1 }), 32),
      task: optional(taskSource(base)),
    },
    ({ dataset, task, metric }, at) => {
      const folder = isDatasetFolder(dataset);
      if (task !== undefined && !folder) at("task").wrong(`is ${dataset}'s own, said when it was uploaded`);
      if (metric === "primary" && folder && task === undefined) at("metric").wrong("needs a task");
    },
  );
  return (place) => {
    const read = taskRecord(place);
    if (read === undefined) return undefined;
    const { name, dataset, metric = read.task === undefined ? "accuracy" : "primary", ...rest } = read;
    return { name, dataset, metric, ...rest };
  };
};

const selector: Read<string> = (place) => {
  const value = text()(place);
  if (value === undefined) return undefined;
  try {
    parseSelector(value);
    return value;
  } catch (error) {
    return place.wrong(`is no selector: ${(error as Error).message}`);
  }
};

const strategyRecord = record<Strategy>(
  {
    name: required(name),
    preset: optional(word(PRESETS)),
    add: optional(listOf(selector, itself), []),
    remove: optional(listOf(selector, itself), []),
    router: optional(flag),
    routerLosses: optional(word(["keep", "off"]), "keep"),
  },
  ({ preset, add, router }, at) => {
    if (!preset && add.length === 0 && !router) at("name").wrong("trains nothing: give a preset, add, or router");
  },
);
const strategy: Read<Strategy> = (place) => {
  if (!isText(place)) return strategyRecord(place);
  const preset = word(PRESETS)(place);
  return preset && { name: preset, preset, add: [], remove: [], routerLosses: "keep" };
};

const evaluation = record<StudyEvaluation>({
  everySteps: optional(whole({ atLeast: 0 }), 0),
  maxExamples: optional(whole({ atLeast: 0 }), 256),
  test: optional(flag, false),
});

const rate = real({ atLeast: 0, below: 1 });

/**
 * Reads a study file.
 * @param claims ids of the claims there are
 * @param base the file's folder
 */
export const studyFile = (claims: readonly string[], base: string): Read<StudyFile> =>
  record<StudyFile>(
    {
      name: required(text(/^[a-z][a-z0-9-]{0,23}$/, "a name of small letters, digits and -, at most 24")),
      question: required(text()),
      axis: optional(word(Object.keys(AXES)), "strategy"),
      baseline: required(textOrNumber),
      claims: optional(listOf(word(claims), itself), []),
      equivalenceMargin: optional(real({ above: 0, below: 1 }), 0.02),
      models: required(listOf(model(base), (m) => m.name)),
      tasks: required(listOf(task(base), (t) => t.name)),
      strategies: optional(
        listOf(strategy, (s) => s.name),
        [{ name: "all", preset: "all", add: [], remove: [], routerLosses: "keep" }],
      ),
      seeds: required(listOf(whole({ atLeast: 0, below: 2 ** 32 }), itself)),
      learningRates: optional(listOf(real({ above: 0 }), itself), [1e-3]),
      batchSizes: optional(listOf(whole({ atLeast: 1 }), itself)),
      capacityFactors: optional(listOf(real({ above: 0 }), itself)),
      evalCapacityFactor: optional(real({ above: 0 })),
      dropouts: optional(listOf(rate, itself), [0.1]),
      expertDropouts: optional(listOf(rate, itself)),
      optimizer: optional(word(OPTIMIZERS), "adamw"),
      warmupSteps: optional(whole({ atLeast: 0 }), 0),
      batching: optional(word(BATCHINGS), "padded"),
      precision: optional(word(PRECISIONS), "f32"),
      routing: optional(studyRouting),
      evaluation: optional(evaluation, { everySteps: 0, maxExamples: 256, test: false }),
    },
    (study, at) => {
      const strategies = study.strategies.map((s) => s.name);
      for (const { name, strategies: own } of study.models) {
        const unknown = own?.filter((s) => !strategies.includes(s)) ?? [];
        if (unknown.length > 0) at("models").wrong(`${name} names no strategy of the study: ${unknown.join(", ")}`);
      }
      const values = axisValues(study);
      if (!values.includes(study.baseline)) {
        at("baseline").wrong(`must be a value of the axis ${study.axis}: ${values.join(", ") || "it has none here"}`);
      }
    },
  );

/** The values compared, as text. */
export function axisValues(study: StudyFile): string[] {
  const values: Readonly<Record<string, readonly (string | number)[]>> = {
    strategy: study.strategies.map((s) => s.name),
    model: study.models.map((m) => m.name),
    task: study.tasks.map((t) => t.name),
    learning_rate: study.learningRates,
    batch_size: study.batchSizes ?? [...new Set(study.tasks.map((t) => t.batchSize))],
    capacity_factor: study.capacityFactors ?? [],
    dropout: study.dropouts,
    expert_dropout: study.expertDropouts ?? [],
  };
  return values[study.axis].map(String);
}

const isText = (place: Place): boolean => {
  const node = place.resolve(place.node);
  return node !== null && "value" in node && typeof node.value === "string";
};

function textOrNumber(place: Place): string | undefined {
  if (isText(place)) return text()(place);
  const value = real({})(place);
  return value === undefined ? undefined : String(value);
}
