// A trainer that computes nothing: instant, deterministic, and strict about how it is used. It notes every call, refuses
// calls that overlap (only steps may, two at a time), and writes checkpoints that can be resumed from.

import { cp, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { HostModels } from "../../src/server/worker/requests.ts";
import { openSafetensors } from "../../src/trainer/formats/safetensors.ts";
import { writeSafetensors } from "../../src/trainer/formats/safetensors_writer.ts";
import { writeFileDurably } from "../../src/trainer/run/durable.ts";
import type { OnEncoding } from "../../src/trainer/run/encoded_files.ts";
import { fileChecksums } from "../../src/trainer/run/file_checksums.ts";
import {
  type DrivenExample,
  type Engine,
  type EvaluationResult,
  type GenerateOptions,
  type Generation,
  InputError,
  type MatchedTensor,
  type PlanCost,
  type RouteBatch,
  type RouterLayerMetrics,
  type RunConfig,
  type StepMetrics,
  type TrainablePlan,
  type TrainableReport,
  type TrainingRun,
} from "../../src/trainer/types.ts";

export interface FakeEngineOptions {
  /**
   * Loss of a step, counted from 1, on a batch, counted in steps from 1 too. `learnt` is a number that follows from the seed
   * and all batches so far, in order, and travels in checkpoints. Default: 1 / step.
   */
  readonly loss?: (step: number, batch: number, learnt: number) => number;
  /** Of every step. Default: none. */
  readonly layers?: readonly RouterLayerMetrics[];
  /** Two tokens of so many examples each step. Default: 1. */
  readonly examples?: number;
  /** Share of examples right in an evaluation at a step. Default: 0.25. */
  readonly score?: (step: number) => number;
  /** Called while a run opens, to say how far its data is; it may wait. */
  readonly whileOpening?: (onEncoding: OnEncoding) => Promise<void>;
  /** Called before each step; what it throws, the step fails with. It may wait. */
  readonly beforeStep?: (step: number) => void | Promise<void>;
  /** Called before each evaluation and generation; it may wait. */
  readonly beforeInference?: () => void | Promise<void>;
  /** The model directory that exports are copies of. Default: one with an empty config.json. */
  readonly exported?: string;
  /** Thrown by forwardBackward. */
  readonly drivenError?: Error;
  /** Thrown by setTrainable. */
  readonly setTrainableError?: Error;
}

export interface FakeEngine extends Engine {
  /** Every call in order, e.g. `step 3`, `evaluate validation 256 at 4`. */
  readonly calls: string[];
  readonly configs: RunConfig[];
  /** How each batch was to be generated. */
  readonly generations: GenerateOptions[];
  /** Most steps that were in flight together. */
  readonly mostInFlight: () => number;
}

export const FAKE_COST: PlanCost = {
  trainableParameters: 10,
  totalParameters: 20,
  parameterBytes: 80,
  gradientBytes: 40,
  optimizerBytes: 80,
  activationBytes: 100,
  peakBytes: 300,
  forwardFlops: 1000,
  backwardFlops: 2000,
  dispatches: 7,
  weightGradientDispatches: 2,
};

export const FAKE_TENSOR: MatchedTensor = {
  name: "encoder.block.1.layer.1.mlp.router.classifier.weight",
  kind: "router",
  stack: "encoder",
  layer: 1,
  shape: [4, 8],
  parameters: 32,
};

/** Two tokens of example 7, or of so many from there on, at a sparse layer with 4 experts. */
export const fakeRoutes = (source: RouteBatch["source"], step: number, exampleId = 7, examples = 1): RouteBatch => {
  const each = <T>(...two: readonly [T, T]): T[] => Array.from({ length: 2 * examples }, (_, i) => two[i % 2]);
  return {
    source,
    step,
    stack: "encoder",
    layer: 1,
    experts: 4,
    topK: 1,
    exampleIds: Uint32Array.from({ length: 2 * examples }, (_, i) => exampleId + Math.floor(i / 2)),
    positions: Uint32Array.from(each(0, 1)),
    tokenIds: Uint32Array.from(each(11, 12)),
    expertIds: Uint16Array.from(each(3, 0)),
    gates: Float32Array.from(each(0.5, 0.25)),
    kept: Uint8Array.from(each(1, 0)),
  };
};

/** Knows no model. */
export const fakeHost: HostModels = {
  describe: async () => {
    throw new InputError([{ field: "", message: "config.json: the file does not exist" }]);
  },
  plan: async () => {
    throw new InputError([{ field: "plan.selection.preset", message: "matches no parameter of this model" }]);
  },
};

/** What examples are told of their routes: the example each was recorded of. */
function replays(examples: readonly DrivenExample[]): string {
  const told = examples.flatMap(({ routes = [] }) =>
    routes.map(({ source, exampleIds }) => `${source} ${exampleIds[0]}`),
  );
  return told.length > 0 ? ` replaying ${told.join(", ")}` : "";
}

export const EVERYTHING: TrainablePlan = {
  selection: { preset: "all", add: [], remove: [] },
  optimizerState: "keep",
  routerLosses: "keep",
};

/** Writes what a run of the fake engine goes on from. */
export async function writeFakeCheckpoint(
  directory: string,
  state: { readonly step: number; readonly passedOver?: number; readonly plan: TrainablePlan },
  learnt = 0,
): Promise<void> {
  const tensor = { name: "learnt", dtype: "U32" as const, shape: [1], data: Uint32Array.of(learnt) };
  await writeFileDurably(join(directory, "config.json"), "{}");
  await writeSafetensors(join(directory, "model.safetensors"), []);
  await writeFileDurably(join(directory, "training.json"), JSON.stringify({ format: 1, ...state }));
  await writeSafetensors(join(directory, "optimizer.safetensors"), [tensor], await fileChecksums(directory));
}

export function fakeEngine(options: FakeEngineOptions = {}): FakeEngine {
  const calls: string[] = [];
  const configs: RunConfig[] = [];
  const generations: GenerateOptions[] = [];
  let mostInFlight = 0;

  function openRun(
    startStep: number,
    batchSize: number,
    startPlan: TrainablePlan,
    passedOver = 0,
    learntSoFar = 0,
  ): TrainingRun {
    let step = startStep;
    let learnt = learntSoFar;
    let plan = startPlan;
    let inFlight = 0;
    let busy = false;
    let driven = 0;

    async function alone<R>(what: string, work: () => Promise<R>): Promise<R> {
      if (busy || inFlight > 0) throw new Error(`${what} overlaps ${inFlight} steps in flight`);
      calls.push(what);
      busy = true;
      try {
        return await work();
      } finally {
        busy = false;
      }
    }
    const report = (): TrainableReport => ({
      matched: [FAKE_TENSOR],
      before: FAKE_COST,
      after: { ...FAKE_COST, predictedStepSeconds: 0.25 },
      state: { restored: [], fresh: [FAKE_TENSOR.name], kept: [], dropped: [] },
      effectiveStep: step,
    });
    const run: TrainingRun = {
      get step() {
        return step;
      },
      cost: FAKE_COST,
      get plan() {
        return plan;
      },
      trainable: [FAKE_TENSOR],
      kernels: new Map([["fake_kernel", 1]]),
      data: {
        examples: 5,
        truncatedInputs: 1,
        truncatedTargets: 0,
        padding: 0.25,
        shapes: [{ input: 8, target: 4, share: 1 }],
      },
      onRoutes: undefined,
      async trainStep(): Promise<StepMetrics> {
        if (busy) throw new Error("a step overlaps another call");
        if (driven > 0) throw new Error("a step of its own among a caller's");
        const done = ++step;
        mostInFlight = Math.max(mostInFlight, ++inFlight);
        calls.push(`step ${done}`);
        try {
          await options.beforeStep?.(done);
          await Promise.resolve();
        } finally {
          inFlight--;
        }
        run.onRoutes?.(fakeRoutes("training", done - 1, 7, options.examples));
        learnt = (Math.imul(learnt, 0x01000193) + done + passedOver) >>> 0;
        const loss = options.loss?.(done, done + passedOver, learnt) ?? 1 / done;
        const common = { step: done, loss, totalLoss: loss, gradientNorm: 1, learningRate: 0.1 };
        return { ...common, tokens: 8, stepSeconds: 0.5, layers: options.layers ?? [] };
      },
      get drivenBatches() {
        return driven;
      },
      forwardBackward: (examples, { divisor, recordRoutes } = {}) =>
        alone(`forwardBackward ${examples.length} by ${divisor}${replays(examples)}`, async () => {
          if (options.drivenError) throw options.drivenError;
          const routes = recordRoutes ? examples.map((_, i) => [fakeRoutes("training", step, i)]) : [];
          const counts = { targetTokens: 2, truncatedInputs: 0, truncatedTargets: 1 };
          return {
            batches: ++driven,
            loss: 0.5,
            ...counts,
            tokenLosses: [Float32Array.of(0.25, 0.75)],
            layers: [],
            routes,
          };
        }),
      optimStep: (rate) =>
        alone(`optimStep ${rate}`, async () => {
          driven = 0;
          const common = { step: ++step, loss: 0.5, totalLoss: 0.5, gradientNorm: 1, learningRate: rate ?? 0.1 };
          return { ...common, tokens: 8, stepSeconds: 0.5, layers: [] };
        }),
      endDriving: () =>
        alone("endDriving", async () => {
          driven = 0;
        }),
      planTrainable: () => report(),
      setTrainable: (wanted) =>
        alone("setTrainable", async () => {
          if (options.setTrainableError) throw options.setTrainableError;
          plan = wanted;
          return report();
        }),
      evaluate: (_file, split, maxExamples) =>
        alone(`evaluate ${split} ${maxExamples} at ${step}`, async (): Promise<EvaluationResult> => {
          await options.beforeInference?.();
          const score = options.score?.(step) ?? 0.25;
          const scores = {
            loss: 1,
            tokenAccuracy: 0.5,
            exactMatch: score,
            accuracy: score,
            metrics: { f1_macro: score },
          };
          return { step, split, examples: 5, ...scores, layers: [], seconds: 0.125 };
        }),
      generate: (inputs, generateOptions) =>
        alone(`generate ${inputs.join(" ")}`, async () => {
          generations.push(generateOptions);
          if (inputs.length > batchSize) throw new Error("more inputs than a batch holds");
          await options.beforeInference?.();
          return inputs.map((input, i): Generation => {
            const text = input.toUpperCase();
            return { input, text, inputIds: [1], tokenIds: [2], routes: [fakeRoutes("generation", step, i)] };
          });
        }),
      saveCheckpoint: (directory) =>
        alone(`save at ${step}`, async () => {
          await writeFakeCheckpoint(directory, { step, passedOver, plan }, learnt);
          return { bytes: 64 };
        }),
      exportModel: (directory) =>
        alone("export", async () => {
          if (options.exported) await cp(options.exported, directory, { recursive: true });
          else await writeFile(join(directory, "config.json"), "{}");
          return { bytes: 2 };
        }),
      close: () => void calls.push("close"),
    };
    return run;
  }

  return {
    calls,
    configs,
    generations,
    mostInFlight: () => mostInFlight,
    async openRun(config, resumeFrom, onEncoding = () => undefined) {
      calls.push(resumeFrom === undefined ? "openRun" : "openRun resumed");
      configs.push(config);
      await options.whileOpening?.(onEncoding);
      const saved = resumeFrom && JSON.parse(await readFile(join(resumeFrom, "training.json"), "utf8"));
      const passedOver = (saved?.passedOver ?? 0) + (config.passedOverSteps ?? 0);
      if (!saved) return openRun(0, config.batchSize, config.trainable, passedOver, config.seed);
      const file = await openSafetensors(join(resumeFrom!, "optimizer.safetensors"));
      const [learnt] = await file.read("learnt").finally(() => file.close());
      return openRun(saved.step, config.batchSize, saved.plan, passedOver, Number(learnt));
    },
    async openModel(directory, batchSize, _maxInputTokens, _maxTargetTokens, routing) {
      calls.push(`openModel ${directory}${routing ? ` encoder ${routing.encoderChoice}` : ""}`);
      return openRun(0, batchSize, EVERYTHING);
    },
  };
}
