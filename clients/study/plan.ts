// A study's cells: the cross product of its axes, each a run to come. A cell's id contains a digest of everything that
// decides its result, so that the same cell is never trained twice and a changed one is never taken for it.

import { createHash } from "node:crypto";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { Preset, RouterLossPolicy, type TrainablePlanSchema } from "../../proto/gen/thaw/v1/group_pb.ts";
import type { CapacityRuleSchema } from "../../proto/gen/thaw/v1/routing_pb.ts";
import {
  Batching,
  EvaluationMetric,
  type OptimizerOptionsSchema,
  Precision,
  type RunSpecSchema,
} from "../../proto/gen/thaw/v1/run_pb.ts";
import { parseSelector } from "../cli/plan.ts";
import type { Study } from "./file.ts";
import type { CellSettings } from "./results.ts";
import { routingParts } from "./routing.ts";
import type { ModelSource, Strategy, StudyTask } from "./schema.ts";

export interface Cell {
  /** `{task}-{strategy}-s{seed}-{digest}`. */
  readonly id: string;
  /** The id in `runs/{run}`. */
  readonly run: string;
  readonly settings: CellSettings;
  readonly task: StudyTask;
  readonly strategy: Strategy;
  readonly model: ModelSource;
}

const strategiesOf = ({ strategies }: Study, model: ModelSource): readonly Strategy[] =>
  strategies.filter(({ name }) => model.strategies?.includes(name) ?? true);

/** Every cell, seed by seed: a study cut short has whole comparisons. */
export function planCells(study: Study): Cell[] {
  const or = <T>(values: readonly T[] | undefined): readonly (T | undefined)[] => values ?? [undefined];
  const cells: Cell[] = [];
  for (const seed of study.seeds)
    for (const task of study.tasks)
      for (const model of study.models)
        for (const learningRate of study.learningRates)
          for (const batchSize of study.batchSizes ?? [task.batchSize])
            for (const capacityFactor of or(study.capacityFactors))
              for (const dropout of study.dropouts)
                for (const expertDropout of or(study.expertDropouts))
                  for (const strategy of strategiesOf(study, model)) {
                    const settings: CellSettings = {
                      task: task.name,
                      strategy: strategy.name,
                      seed,
                      model: model.name,
                      learningRate,
                      batchSize,
                      ...(capacityFactor === undefined ? {} : { capacityFactor }),
                      dropout,
                      ...(expertDropout === undefined ? {} : { expertDropout }),
                    };
                    cells.push({ ...names(study, settings, task, strategy, model), settings, task, strategy, model });
                  }
  return cells;
}

/** A run's id takes so many letters. */
const LONGEST_RUN_ID = 63;

function names(study: Study, settings: CellSettings, task: StudyTask, strategy: Strategy, model: ModelSource) {
  const { optimizer, warmupSteps, evaluation, evalCapacityFactor } = study;
  const data = study.datasets[task.name]?.digest ?? task.dataset;
  const start = study.folders[model.name]?.digest ?? model.source;
  const decides = [settings, { ...task, dataset: data }, strategy, start, optimizer, warmupSteps, evaluation];
  // Unsaid where it is the default: a new setting must not make known cells unknown.
  const batching = study.batching === "padded" ? [] : [study.batching];
  const precision = study.precision === "f32" ? [] : [study.precision];
  const routing = study.routing ? [study.routing] : [];
  const digest = createHash("sha256")
    .update(JSON.stringify([...decides, evalCapacityFactor, ...batching, ...precision, ...routing]))
    .digest("hex")
    .slice(0, 10);
  const id = `${task.name}-${strategy.name}-s${settings.seed}`.replaceAll("_", "-");
  const readable = `${study.name}-${id}`.slice(0, LONGEST_RUN_ID - digest.length - 1).replace(/-+$/, "");
  return { id: `${id}-${digest}`, run: `${readable}-${digest}` };
}

/** What a cell's model and data are called on the server. */
export interface Resources {
  /** `models/{model}` */
  readonly model: string;
  /** `runs/{run}/checkpoints/{checkpoint}`, or empty. */
  readonly initialCheckpoint: string;
  /** `datasets/{dataset}` */
  readonly dataset: string;
}

/** The run that a cell is. Cells of one seed see the same examples in the same order. */
export function runSpec(study: Study, cell: Cell, resources: Resources): MessageInitShape<typeof RunSpecSchema> {
  const { settings, task, strategy } = cell;
  const { everySteps, maxExamples, test } = study.evaluation;
  const { routing, losses } = routingParts(study.routing);
  return {
    ...resources,
    steps: BigInt(task.steps),
    batchSize: BigInt(settings.batchSize),
    batching: BATCHINGS[study.batching],
    precision: PRECISIONS[study.precision],
    maxInputTokens: BigInt(task.maxInputTokens),
    maxTargetTokens: BigInt(task.maxTargetTokens),
    seed: BigInt(settings.seed),
    dropout: settings.dropout,
    expertDropout: settings.expertDropout,
    trainable: trainablePlan(strategy),
    optimizer: {
      algorithm: ALGORITHMS[study.optimizer],
      learningRate: settings.learningRate,
      schedule: { warmupSteps: BigInt(study.warmupSteps) },
    },
    routing: {
      ...routing,
      trainCapacity: capacity(settings.capacityFactor),
      evalCapacity: capacity(study.evalCapacityFactor),
    },
    losses,
    evaluation: {
      everySteps: BigInt(everySteps),
      maxExamples: BigInt(maxExamples),
      // The watch takes the first.
      splits: test ? ["validation", "test"] : ["validation"],
      // What routing drifted from.
      atStart: true,
      overfitting: { metric: METRICS[task.metric] },
    },
  };
}

type Algorithm = MessageInitShape<typeof OptimizerOptionsSchema>["algorithm"];
const ALGORITHMS: Readonly<Record<Study["optimizer"], Algorithm>> = {
  adamw: { case: "adamw", value: {} },
  adafactor: { case: "adafactor", value: {} },
  sgd: { case: "sgd", value: {} },
};

const BATCHINGS: Readonly<Record<Study["batching"], Batching>> = {
  padded: Batching.PADDED,
  packed: Batching.PACKED,
  bucketed: Batching.BUCKETED,
};

const PRECISIONS: Readonly<Record<Study["precision"], Precision>> = {
  f32: Precision.F32,
  mixed: Precision.MIXED,
};

const METRICS: Readonly<Record<StudyTask["metric"], EvaluationMetric>> = {
  accuracy: EvaluationMetric.ACCURACY,
  exact_match: EvaluationMetric.EXACT_MATCH,
  primary: EvaluationMetric.PRIMARY,
};

const PRESETS: Readonly<Record<NonNullable<Strategy["preset"]>, Preset>> = {
  all: Preset.ALL,
  non_moe: Preset.NON_MOE,
  moe: Preset.MOE,
  attention: Preset.ATTENTION,
  ffn: Preset.FFN,
};

function trainablePlan(strategy: Strategy): MessageInitShape<typeof TrainablePlanSchema> {
  const { preset, add, remove, router, routerLosses } = strategy;
  return {
    selection: {
      preset: preset && PRESETS[preset],
      add: add.map(parseSelector),
      remove: remove.map(parseSelector),
      router,
    },
    routerLosses: routerLosses === "off" ? RouterLossPolicy.OFF : RouterLossPolicy.KEEP,
  };
}

const capacity = (factor: number | undefined): MessageInitShape<typeof CapacityRuleSchema> | undefined =>
  factor === undefined ? undefined : { rule: { case: "factor", value: { factor } } };
