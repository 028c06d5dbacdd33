// A run on a device: parameters, optimizer state and three recorded programs, and what can be asked of them.
//
// A step uploads a batch and a few scalars, encodes the training program and returns a promise of its metrics; the next
// step may be asked for while one is in flight. A change of the freeze plan waits for the steps in flight, plans anew,
// and records anew; parameters and the optimizer state of what goes on training stay where they are.

import type { Device } from "../../kernels/device/device.ts";
import { OutOfMemoryError } from "../../kernels/device/errors.ts";
import { packStepScalars } from "../../kernels/step_scalars.ts";
import type { Batch, Lengths } from "../data/batches.ts";
import { matchedTensors, resolveTrainable, type TrainableSet } from "../groups.ts";
import type { InferenceGraph } from "../model/family.ts";
import type { OpenModel } from "../model/open.ts";
import type { Scoring } from "../tasks/task.ts";
import {
  type DrivenBatch,
  type DrivenExample,
  type DrivenOptions,
  type EvaluationResult,
  type GenerateOptions,
  type Generation,
  type MatchedTensor,
  MemoryError,
  type PlanCost,
  type RouteBatch,
  type StepMetrics,
  type TrainablePlan,
  type TrainableReport,
  type TrainingRun,
} from "../types.ts";
import { uploadBatch } from "./batch_upload.ts";
import { readTrainingState, writeModel, writeTrainingState } from "./checkpoint.ts";
import { limitsOf } from "./data.ts";
import { Decoder } from "./decoder.ts";
import { DeviceMemory } from "./device_memory.ts";
import { DrivenSteps, encodeDriven } from "./driven_steps.ts";
import { type EncodedFiles, encodedFiles, type ScoredData } from "./encoded_files.ts";
import { evaluate } from "./evaluate.ts";
import { generate } from "./generate.ts";
import { loadLossScale, loadParameters, loadSelectionBiases, readLossScale } from "./load.ts";
import { OptimizerState, planStateChange } from "./optimizer_state.ts";
import type { OpenOptions, RunSettings, TrainingInput } from "./options.ts";
import { longest, planDecoderWithin, planWithin, type RunPlan } from "./plan.ts";
import type { OperationTime } from "./profile.ts";
import { beginCompiling, Programs, type Ready } from "./programs.ts";
import type { Results } from "./readback.ts";
import { routeBatch } from "./telemetry.ts";
import { TrainingSteps } from "./training_steps.ts";

/** A training input under the freeze plan in force. */
interface Training extends TrainingInput {
  readonly trainable: TrainableSet;
}

export class Run implements TrainingRun {
  readonly device: Device;
  readonly source: OpenModel;
  readonly config: RunSettings;
  onRoutes: ((batch: RouteBatch) => void) | undefined;
  readonly #memory: DeviceMemory;
  readonly #programs: Programs;
  readonly #optimizer: OptimizerState;
  readonly #memoryLimitBytes: (() => number) | undefined;
  #training: Training | undefined;
  #inferenceLengths: Lengths;
  #step = 0;
  /** Steps' worth of batches that the data position is ahead of the step. */
  #passedOver = 0;
  readonly #steps: TrainingSteps;
  readonly #drivenSteps: DrivenSteps;
  /** Whether the programs are those of a caller's own loop. */
  #driven = false;
  readonly #files: EncodedFiles;
  #closed = false;

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
    this.#steps = new TrainingSteps(this, this.#programs, this.#optimizer);
    this.#drivenSteps = new DrivenSteps(this, this.#programs, this.#optimizer);
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
    beginCompiling(this.device, plan);
    try {
      await loadParameters(source, plan.encoder.built.graph.parameters, this.#memory);
      await this.#install(plan, "keep");
      await loadSelectionBiases(source, this.#memory);
      loadLossScale(this.#memory, resumed?.lossScale);
    } catch (error) {
      // Nobody said how much memory there is; what had been allocated when it ran out is the best figure there is.
      if (error instanceof OutOfMemoryError) throw new MemoryError(plan.bytes.total, this.device.allocatedBytes, 0);
      throw error;
    }
  }

  #planWithin(input: Training | undefined, inference: Lengths, driven = false): RunPlan {
    const shapes = driven ? [{ ...limitsOf(this.config), share: 1 }] : input?.data.shapes;
    const training = input && shapes && { ...input, shapes, driven };
    return planWithin(
      { model: this.source.model, capabilities: this.device.capabilities, config: this.config, training, inference },
      this.#memoryLimitBytes?.(),
    );
  }

  /** Makes the device hold exactly what `plan` needs. */
  async #install(plan: RunPlan, policy: TrainablePlan["optimizerState"]): Promise<void> {
    this.#programs.release();
    this.#drivenSteps.forget();
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
    const { secondsPerFlop } = this.#steps;
    if (secondsPerFlop === undefined) return cost;
    return { ...cost, predictedStepSeconds: secondsPerFlop * (cost.forwardFlops + cost.backwardFlops) };
  }

  trainStep(): Promise<StepMetrics> {
    return this.#steps.train(() => this.#nextStep());
  }

  /**
   * One optimizer step like {@link trainStep}, with the time of every operation instead of metrics. Each dispatch runs in a
   * pass of its own, so that the whole takes somewhat longer than a step.
   * @throws Error when the adapter has no timestamp queries; nothing has been trained then
   */
  profileStep(): Promise<OperationTime[]> {
    return this.#steps.profile(() => this.#nextStep());
  }

  #nextStep(): { readonly step: number; readonly batches: readonly Batch[] } {
    if (this.#driven) throw new Error("the run is driven by a loop of the caller's");
    const { batches } = this.#trainingOrThrow();
    const { accumulationSteps } = this.#programs.plan;
    const first = (this.#step + this.#passedOver) * accumulationSteps;
    const own = Array.from({ length: accumulationSteps }, (_, i) => batches.batchAt(first + i));
    return { step: this.#step++, batches: own };
  }

  async forwardBackward(examples: readonly DrivenExample[], options: DrivenOptions = {}): Promise<DrivenBatch> {
    const encoded = encodeDriven(this, examples);
    await this.#drive(true);
    return this.#drivenSteps.forwardBackward(encoded, this.#step, options);
  }

  get drivenBatches(): number {
    return this.#drivenSteps.batches;
  }

  async optimStep(rate?: number): Promise<StepMetrics> {
    const metrics = await this.#drivenSteps.optimStep(this.#step, rate);
    this.#step++;
    return metrics;
  }

  endDriving(): Promise<void> {
    return this.#drive(false);
  }

  /** Has the programs of a caller's loop, or of the run's own. */
  async #drive(driven: boolean): Promise<void> {
    if (this.#driven === driven) return;
    await this.#steps.quiet();
    // What a generation or an evaluation may need meanwhile: to plan anew would clear the gradients.
    const lengths = driven ? longest(limitsOf(this.config), this.#inferenceLengths) : this.#inferenceLengths;
    const plan = this.#planWithin(this.#trainingOrThrow(), lengths, driven);
    await this.#install(plan, "keep");
    this.#inferenceLengths = lengths;
    this.#driven = driven;
  }

  planTrainable(plan: TrainablePlan): TrainableReport {
    return this.#changeOf(plan).report;
  }

  async setTrainable(plan: TrainablePlan): Promise<TrainableReport> {
    const change = this.#changeOf(plan);
    await this.#steps.quiet();
    await this.#install(change.runPlan, plan.optimizerState);
    this.#driven = false;
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

  async evaluate(file: string, split: string, maxExamples: number, scoring?: Scoring): Promise<EvaluationResult> {
    await this.#steps.quiet();
    return evaluate(this, file, split, maxExamples, scoring);
  }

  async generate(inputs: readonly string[], options: GenerateOptions): Promise<Generation[]> {
    await this.#steps.quiet();
    return generate(this, inputs, options);
  }

  async saveCheckpoint(directory: string): Promise<{ bytes: number }> {
    const { plan } = this.#trainingOrThrow();
    await this.#steps.quiet();
    const model = await writeModel(this.source, this.#memory, directory);
    const lossScale = await readLossScale(this.#memory);
    const position = { step: this.#step, passedOver: this.#passedOver, plan, lossScale };
    const state = await writeTrainingState(directory, position, this.#optimizer);
    return { bytes: model + state };
  }

  async exportModel(directory: string): Promise<{ bytes: number }> {
    await this.#steps.quiet();
    return { bytes: await writeModel(this.source, this.#memory, directory) };
  }

  /** Device memory it has planned, bytes; 0 once it is closed. */
  get plannedBytes(): number {
    return this.#closed ? 0 : this.#programs.plan.bytes.total;
  }

  close(): void {
    this.#closed = true;
    this.#programs.release();
    this.#memory.destroy();
  }

  // What evaluation, generation and parity build on.

  /** A parameter's present values, row-major. */
  async readParameter(name: string): Promise<Float32Array<ArrayBuffer>> {
    await this.#steps.quiet();
    const { buffer, offset, size } = this.#memory.parameters.get(name)!;
    return new Float32Array(await this.device.read(buffer, size, offset));
  }

  /** The inference programs, made longer first when `needed` asks for it. */
  async inference(
    needed: Lengths,
  ): Promise<{ encoder: Ready<InferenceGraph>; decoder: Ready<InferenceGraph>; lengths: Lengths }> {
    const lengths = longest(needed, this.#inferenceLengths);
    if (lengths.input > this.#inferenceLengths.input || lengths.target > this.#inferenceLengths.target) {
      await this.#install(this.#planWithin(this.#training, lengths, this.#driven), "keep");
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
    const plan = planDecoderWithin(request, this.#memoryLimitBytes?.());
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
    this.uploadInput("step_scalars", scalars);
  }

  /** The contents of an input that some program has. */
  uploadInput(
    name: string,
    data: Float32Array<ArrayBuffer> | Uint8Array<ArrayBuffer> | Uint32Array<ArrayBuffer>,
  ): void {
    this.device.upload(this.#memory.inputs.get(name)!, data);
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
