// A run on a device: parameters, optimizer state and three recorded programs, and what can be asked of them.
//
// A step uploads a batch and a few scalars, encodes the training program and returns a promise of its metrics; the next
// step may be asked for while one is in flight. A change of the freeze plan waits for the steps in flight, plans anew,
// and records anew; parameters and the optimizer state of what goes on training stay where they are.

import type { Device } from "../../kernels/device/device.ts";
import { OutOfMemoryError } from "../../kernels/device/errors.ts";
import { packStepScalars } from "../../kernels/step_scalars.ts";
import type { Batch, Lengths } from "../data/batches.ts";
import type { TrainingBatches } from "../data/order.ts";
import { matchedTensors, resolveTrainable, type TrainableSet } from "../groups.ts";
import type { InferenceGraph } from "../model/family.ts";
import { type OpenModel, readParameter } from "../model/open.ts";
import type { Scoring } from "../tasks/task.ts";
import {
  type DataStatistics,
  type EvaluationResult,
  type GenerateOptions,
  type Generation,
  type MatchedTensor,
  MemoryError,
  type PlanCost,
  type RouteBatch,
  type RunConfig,
  type StepMetrics,
  type TrainablePlan,
  type TrainableReport,
  type TrainingRun,
} from "../types.ts";
import { uploadBatch } from "./batch_upload.ts";
import { readTrainingState, writeModel, writeTrainingState } from "./checkpoint.ts";
import { Decoder } from "./decoder.ts";
import { DeviceMemory } from "./device_memory.ts";
import { type EncodedFiles, encodedFiles, type ScoredData } from "./encoded_files.ts";
import { evaluate } from "./evaluate.ts";
import { generate } from "./generate.ts";
import { OptimizerState, planStateChange } from "./optimizer_state.ts";
import { longest, planDecoderWithin, planWithin, type RunPlan } from "./plan.ts";
import { Programs, type Ready } from "./programs.ts";
import type { Results } from "./readback.ts";
import { learningRate } from "./schedule.ts";
import { routeBatch, stepMetrics } from "./telemetry.ts";

/** What a run trains on, and what it trains from the first step. */
export interface TrainingInput {
  readonly plan: TrainablePlan;
  readonly batches: TrainingBatches;
  readonly data: DataStatistics;
}

/** A training input under the freeze plan in force. */
interface Training extends TrainingInput {
  readonly trainable: TrainableSet;
}

/** The part of a run's configuration that does not depend on its data. */
export type RunSettings = Omit<
  RunConfig,
  "modelDirectory" | "trainFiles" | "mixingCap" | "evaluationFiles" | "trainable"
>;

export interface OpenOptions {
  /** Absent: the model can only evaluate and generate. */
  readonly training?: TrainingInput;
  /** Lengths evaluation and generation are prepared for; they grow when more is asked. */
  readonly inference: Lengths;
  /** Data files of the same model and limits that may be tokenised already. */
  readonly files?: EncodedFiles;
  /** A checkpoint directory; the parameters come from `source` all the same. */
  readonly resumeFrom?: string;
  readonly memoryLimitBytes?: number;
}

export class Run implements TrainingRun {
  readonly device: Device;
  readonly source: OpenModel;
  readonly config: RunSettings;
  onRoutes: ((batch: RouteBatch) => void) | undefined;
  readonly #memory: DeviceMemory;
  readonly #programs: Programs;
  readonly #optimizer: OptimizerState;
  readonly #memoryLimitBytes: number | undefined;
  #training: Training | undefined;
  #inferenceLengths: Lengths;
  #step = 0;
  /** Steps' worth of batches that the data position is ahead of the step. */
  #passedOver = 0;
  /** Steps asked for are submitted one after another. */
  #submitted: Promise<unknown> = Promise.resolve();
  /** The last step's results, which end its time. */
  #arrived: Promise<unknown> = Promise.resolve();
  #lastArrival = 0;
  #secondsPerFlop: number | undefined;
  readonly #files: EncodedFiles;

  private constructor(device: Device, source: OpenModel, config: RunSettings, options: OpenOptions) {
    this.device = device;
    this.source = source;
    this.config = config;
    this.#memoryLimitBytes = options.memoryLimitBytes;
    this.#memory = new DeviceMemory(device);
    this.#programs = new Programs(this.#memory);
    this.#optimizer = new OptimizerState(this.#memory);
    this.#inferenceLengths = options.inference;
    this.#files = options.files ?? encodedFiles(source, config);
  }

  /** Plans, allocates, loads. On any error nothing stays allocated. */
  static async open(device: Device, source: OpenModel, config: RunSettings, options: OpenOptions): Promise<Run> {
    const run = new Run(device, source, config, options);
    try {
      await run.#open(options);
      return run;
    } catch (error) {
      run.close();
      throw error;
    }
  }

  async #open({ training, resumeFrom }: OpenOptions): Promise<void> {
    const { source } = this;
    const resumed = resumeFrom === undefined ? undefined : await readTrainingState(resumeFrom);
    if (training) {
      const plan = resumed?.plan ?? training.plan;
      const trainable = resolveTrainable(source.model.parameters, plan.selection, "trainable.selection");
      this.#training = { ...training, plan, trainable };
    }
    const plan = this.#planWithin(this.#training, this.#inferenceLengths);
    this.#passedOver = (resumed?.passedOver ?? 0) + (this.config.passedOverSteps ?? 0);
    if (resumed) {
      this.#step = resumed.step;
      for (const [name, state] of resumed.state) this.#optimizer.kept.set(name, state);
    }
    try {
      for (const p of source.model.parameters) {
        const data = await readParameter(source.checkpoint, p);
        const buffer = await this.#memory.create({ name: p.name, bytes: data.byteLength });
        this.#memory.parameters.set(p.name, buffer);
        this.device.upload(buffer, data);
      }
      await this.#install(plan, "keep");
      await this.#loadSelectionBiases();
    } catch (error) {
      // Nobody said how much memory there is; what had been allocated when it ran out is the best figure there is.
      if (error instanceof OutOfMemoryError) throw new MemoryError(plan.bytes.total, this.device.allocatedBytes, 0);
      throw error;
    }
  }

  /** Biases of a checkpoint, into the layers that choose by one; others begin at 0. */
  async #loadSelectionBiases(): Promise<void> {
    const { checkpoint, model } = this.source;
    for (const { key, experts } of model.selectionBiases) {
      const buffer = this.#memory.inputs.get(key);
      if (!buffer || !checkpoint.tensors.has(key)) continue;
      const values = new Float32Array(experts);
      await checkpoint.readInto(key, values);
      this.device.upload(buffer, values);
    }
  }

  #planWithin(input: Training | undefined, inference: Lengths): RunPlan {
    const training = input && { ...input, shapes: input.data.shapes };
    return planWithin(
      { model: this.source.model, capabilities: this.device.capabilities, config: this.config, training, inference },
      this.#memoryLimitBytes,
    );
  }

  /** Makes the device hold exactly what `plan` needs. */
  async #install(plan: RunPlan, policy: TrainablePlan["optimizerState"]): Promise<void> {
    this.#programs.release();
    await this.#optimizer.change(plan.training[0]?.built.optimizer.entries ?? [], policy);
    await this.#programs.install(plan);
  }

  get step(): number {
    return this.#step;
  }

  get cost(): PlanCost {
    return this.#withPrediction(this.#programs.plan.cost);
  }

  get trainable(): readonly MatchedTensor[] {
    return this.#training ? matchedTensors(this.source.model.parameters, this.#training.trainable) : [];
  }

  get data() {
    return this.#trainingOrThrow().data;
  }

  get plan(): TrainablePlan {
    return this.#trainingOrThrow().plan;
  }

  get kernels(): ReadonlyMap<string, number> {
    return this.#programs.kernels;
  }

  #trainingOrThrow(): Training {
    if (!this.#training) throw new Error("this model was opened for inference only");
    return this.#training;
  }

  #withPrediction(cost: PlanCost): PlanCost {
    if (this.#secondsPerFlop === undefined) return cost;
    return { ...cost, predictedStepSeconds: this.#secondsPerFlop * (cost.forwardFlops + cost.backwardFlops) };
  }

  async trainStep(): Promise<StepMetrics> {
    const submission = this.#submitted.then(() => this.#submitStep());
    this.#submitted = submission.catch(() => undefined);
    return (await submission).metrics;
  }

  async #submitStep(): Promise<{ metrics: Promise<StepMetrics> }> {
    const training = this.#trainingOrThrow();
    const { config } = this;
    const { routerLosses } = this.#programs.plan;
    const step = this.#step;
    const { accumulationSteps } = this.#programs.plan;
    const parts = Array.from({ length: accumulationSteps }, (_, i) => {
      const batch = training.batches.batchAt((step + this.#passedOver) * accumulationSteps + i);
      return { batch, program: this.#programs.training(batch) };
    });
    const targetTokens = parts.reduce((n, { batch }) => n + batch.targetTokens, 0);
    const rate = learningRate(config.optimizer, step, config.steps);
    const scalars = this.#memory.inputs.get(parts[0].program.planned.built.optimizer.scalars.name)!;
    this.device.upload(scalars, this.#optimizer.nextScalars(config.optimizer, rate));
    const listening = this.onRoutes !== undefined;
    const submittedAt = performance.now();
    const pending: Promise<Results>[] = [];
    for (const [i, { batch, program }] of parts.entries()) {
      this.upload(batch);
      this.uploadScalars(step * accumulationSteps + i, targetTokens);
      const { built, results, routes } = program.planned;
      const sums = i === 0 && accumulationSteps > 1 ? [...built.gradients.values()] : [];
      const part = { clear: sums, update: i + 1 === parts.length };
      const tensors = listening ? [...results, ...routes] : results;
      pending.push((await program.readback.run(program.recorded, tensors, part)).results);
    }
    this.#step = step + 1;
    const metrics = Promise.all(pending).then((results) => {
      const now = performance.now();
      const seconds = (now - Math.max(submittedAt, this.#lastArrival)) / 1e3;
      this.#lastArrival = now;
      const flops = parts.map(({ program }) => program.planned.lowered.flops);
      this.#secondsPerFlop = seconds / flops.reduce((n, f) => n + f.forward + f.backward, flops[0].optimizer);
      if (listening)
        for (const [i, { batch, program }] of parts.entries())
          this.emitRoutes(this.routesOf(program, results[i], "training", step, batch));
      const known = { step: step + 1, learningRate: rate, stepSeconds: seconds };
      const losses = routerLosses ? config.losses : { ...config.losses, balanceCoefficient: 0, zCoefficient: 0 };
      return stepMetrics(
        parts.map(({ batch, program }, i) => ({ built: program.planned.built, batch, results: results[i] })),
        known,
        losses,
      );
    });
    this.#arrived = metrics.catch(() => undefined);
    return { metrics };
  }

  planTrainable(plan: TrainablePlan): TrainableReport {
    return this.#changeOf(plan).report;
  }

  async setTrainable(plan: TrainablePlan): Promise<TrainableReport> {
    const change = this.#changeOf(plan);
    await this.#quiet();
    await this.#install(change.runPlan, plan.optimizerState);
    this.#training = change.training;
    return { ...change.report, effectiveStep: this.#step };
  }

  #changeOf(plan: TrainablePlan): { training: Training; runPlan: RunPlan; report: TrainableReport } {
    const parameters = this.source.model.parameters;
    const training = {
      ...this.#trainingOrThrow(),
      plan,
      trainable: resolveTrainable(parameters, plan.selection, "plan.selection"),
    };
    const runPlan = this.#planWithin(training, this.#inferenceLengths);
    const entries = runPlan.training[0].built.optimizer.entries;
    const report: TrainableReport = {
      matched: matchedTensors(parameters, training.trainable),
      before: this.cost,
      after: this.#withPrediction(runPlan.cost),
      state: planStateChange(this.#optimizer.entries, entries, this.#optimizer.kept, plan.optimizerState),
      effectiveStep: this.#step,
    };
    return { training, runPlan, report };
  }

  /** Waits for the steps that were asked for. */
  async #quiet(): Promise<void> {
    await this.#submitted;
    await this.#arrived;
  }

  async evaluate(file: string, split: string, maxExamples: number, scoring?: Scoring): Promise<EvaluationResult> {
    await this.#quiet();
    return evaluate(this, file, split, maxExamples, scoring);
  }

  async generate(inputs: readonly string[], options: GenerateOptions): Promise<Generation[]> {
    await this.#quiet();
    return generate(this, inputs, options);
  }

  async saveCheckpoint(directory: string): Promise<{ bytes: number }> {
    const { plan } = this.#trainingOrThrow();
    await this.#quiet();
    const model = await writeModel(this.source, this.#memory, directory);
    const position = { step: this.#step, passedOver: this.#passedOver, plan };
    const state = await writeTrainingState(directory, position, this.#optimizer);
    return { bytes: model + state };
  }

  async exportModel(directory: string): Promise<{ bytes: number }> {
    await this.#quiet();
    return { bytes: await writeModel(this.source, this.#memory, directory) };
  }

  close(): void {
    this.#programs.release();
    this.#memory.destroy();
  }

  // What evaluation, generation and parity build on.

  /** A parameter's present values, row-major. */
  async readParameter(name: string): Promise<Float32Array<ArrayBuffer>> {
    await this.#quiet();
    return new Float32Array(await this.device.read(this.#memory.parameters.get(name)!));
  }

  /** The inference programs, made longer first when `needed` asks for it. */
  async inference(
    needed: Lengths,
  ): Promise<{ encoder: Ready<InferenceGraph>; decoder: Ready<InferenceGraph>; lengths: Lengths }> {
    const lengths = longest(needed, this.#inferenceLengths);
    if (lengths.input > this.#inferenceLengths.input || lengths.target > this.#inferenceLengths.target) {
      await this.#install(this.#planWithin(this.#training, lengths), "keep");
      this.#inferenceLengths = lengths;
    }
    return { encoder: this.#programs.encoder, decoder: this.#programs.decoder, lengths };
  }

  /**
   * Makes what a generation needs; the caller closes it. `lengths` as {@link inference} gave the input's.
   * @throws MemoryError when it does not fit beside the run
   */
  async decoder(lengths: Lengths, beams: number, readLogits: boolean): Promise<Decoder> {
    const { model } = this.source;
    const { capabilities } = this.device;
    const runBytes = this.#programs.plan.bytes.total;
    const request = { model, capabilities, config: this.config, lengths, beams, readLogits, runBytes };
    const plan = planDecoderWithin(request, this.#memoryLimitBytes);
    return Decoder.open(this.device, plan, this.#memory);
  }

  /** A data file as it is scored. @throws InputError with line numbers */
  dataset(file: string): Promise<ScoredData> {
    return this.#files.scored(file);
  }

  upload(batch: Batch, part?: "decoder"): void {
    uploadBatch(this.device, this.#memory.inputs, batch, {
      routePadding: this.config.routing.routePadding,
      vocabularySize: this.source.model.vocabularySize,
      part,
    });
  }

  uploadScalars(step: number, targetTokens: number): void {
    const scalars = packStepScalars({
      step,
      seed: this.config.seed,
      lossScale: 1,
      inverseTargetCount: 1 / Math.max(1, targetTokens),
      maxGradientNorm: this.config.optimizer.maxGradientNorm,
    });
    this.device.upload(this.#memory.inputs.get("step_scalars")!, scalars);
  }

  /** Each sparse layer's routing of a batch that a program has run. */
  routesOf(
    program: Ready<InferenceGraph>,
    results: Results,
    source: RouteBatch["source"],
    step: number,
    batch: Batch,
  ): RouteBatch[] {
    const context = { source, step, batch, routePadding: this.config.routing.routePadding };
    return program.planned.built.sparse.map((layer) => routeBatch(layer, results, context));
  }

  /** Hands routes to the listener, if there is one. */
  emitRoutes(routes: readonly RouteBatch[]): void {
    for (const batch of routes) this.onRoutes?.(batch);
  }
}
