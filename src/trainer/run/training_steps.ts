// Optimizer steps on the device. A step is one or more batches, each by the program of its shape, and the optimizer behind
// the last. Steps are submitted one after another, each as soon as it is asked for; results arrive later, in order.

import type { Batch } from "../data/batches.ts";
import { type Tensor, wholes } from "../graph/graph.ts";
import type { TrainingGraph } from "../model/family.ts";
import type { StepMetrics } from "../types.ts";
import type { OptimizerState } from "./optimizer_state.ts";
import { type OperationTime, profileGraph } from "./profile.ts";
import type { Programs, Ready } from "./programs.ts";
import type { Results } from "./readback.ts";
import type { Run } from "./run.ts";
import { learningRate } from "./schedule.ts";
import { minimised, stepMetrics } from "./telemetry.ts";

/** A batch and the program that it goes through. */
interface Part {
  readonly batch: Batch;
  readonly program: Ready<TrainingGraph>;
}

export class TrainingSteps {
  readonly #run: Run;
  readonly #programs: Programs;
  readonly #optimizer: OptimizerState;
  /** Steps asked for are submitted one after another. */
  #submitted: Promise<unknown> = Promise.resolve();
  /** The last step's results, which end its time. */
  #arrived: Promise<unknown> = Promise.resolve();
  #lastArrival = 0;
  #secondsPerFlop: number | undefined;

  constructor(run: Run, programs: Programs, optimizer: OptimizerState) {
    this.#run = run;
    this.#programs = programs;
    this.#optimizer = optimizer;
  }

  /** Measured in the last step that arrived; undefined before the first. */
  get secondsPerFlop(): number | undefined {
    return this.#secondsPerFlop;
  }

  /**
   * Trains on the batches that `begin` gives when the steps before it have been submitted; `step` is the number of those.
   * @throws what `begin` throws; DeviceLostError, KernelError
   */
  async train(begin: () => { readonly step: number; readonly batches: readonly Batch[] }): Promise<StepMetrics> {
    const submission = this.#submitted.then(() => {
      const { step, batches } = begin();
      return this.#submit(step, batches);
    });
    this.#submitted = submission.catch(() => undefined);
    return (await submission).metrics;
  }

  /** Waits for the steps that were asked for. */
  async quiet(): Promise<void> {
    await this.#submitted;
    await this.#arrived;
  }

  /**
   * Trains a step with every dispatch timed, the operations of its batches one after another. Its metrics are not read.
   * @throws what `begin` throws; Error when the adapter has no timestamp queries; DeviceLostError, KernelError
   */
  async profile(begin: () => { readonly step: number; readonly batches: readonly Batch[] }): Promise<OperationTime[]> {
    const { device } = this.#run;
    if (!device.capabilities.timestampQuery) throw new Error("this adapter has no timestamp queries");
    await this.quiet();
    const { step, batches } = begin();
    const { parts } = this.#prepared(step, batches);
    const times: OperationTime[] = [];
    for (const [i, { program }] of parts.entries()) {
      uploadPart(this.#run, parts, i, step);
      const { recorded } = program;
      const encoder = device.gpu.createCommandEncoder();
      for (const t of sumsBefore(parts, i)) {
        const { buffer, offset, size } = recorded.range(t);
        encoder.clearBuffer(buffer, offset, size);
      }
      device.submit(encoder.finish());
      const whole = i + 1 === parts.length;
      times.push(...(await profileGraph(device, whole ? recorded : { ...recorded, update: undefined })));
    }
    return times;
  }

  /** A step's batches with their programs, the optimizer's scalars uploaded. */
  #prepared(step: number, batches: readonly Batch[]): { parts: readonly Part[]; rate: number } {
    const { config } = this.#run;
    const parts = batches.map((batch): Part => ({ batch, program: this.#programs.training(batch) }));
    const rate = learningRate(config.optimizer, step, config.steps);
    const { scalars } = parts[0].program.planned.built.optimizer;
    this.#run.uploadInput(scalars.name, this.#optimizer.nextScalars(config.optimizer, rate));
    return { parts, rate };
  }

  async #submit(step: number, batches: readonly Batch[]): Promise<{ metrics: Promise<StepMetrics> }> {
    const run = this.#run;
    const { config } = run;
    const losses = minimised(config.losses, this.#programs.plan);
    const { parts, rate } = this.#prepared(step, batches);
    const listening = run.onRoutes !== undefined;
    const submittedAt = performance.now();
    const { results } = await submitParts(run, parts, step, listening);
    const metrics = results.then((arrived) => {
      const stepSeconds = this.#timed(parts, submittedAt);
      if (listening)
        for (const [i, { batch, program }] of parts.entries())
          run.emitRoutes(run.routesOf(program, arrived[i], "training", step, batch));
      return stepMetrics(
        parts.map(({ batch, program }, i) => ({ built: program.planned.built, batch, results: arrived[i] })),
        { step: step + 1, learningRate: rate, stepSeconds },
        losses,
      );
    });
    this.#arrived = metrics.catch(() => undefined);
    return { metrics };
  }

  /** Seconds of a step whose results have just arrived: since the one before it, when that was in its way. */
  #timed(parts: readonly Part[], submittedAt: number): number {
    const now = performance.now();
    const seconds = (now - Math.max(submittedAt, this.#lastArrival)) / 1e3;
    this.#lastArrival = now;
    const flops = parts.map(({ program }) => program.planned.lowered.flops);
    this.#secondsPerFlop = seconds / flops.reduce((n, f) => n + f.forward + f.backward, flops[0].optimizer);
    return seconds;
  }
}

/** Uploads the `index`-th batch of a step. */
function uploadPart(run: Run, parts: readonly Part[], index: number, step: number): void {
  run.upload(parts[index].batch);
  run.uploadScalars(
    step * parts.length + index,
    parts.reduce((n, { batch }) => n + batch.targetTokens, 0),
  );
}

/** What to clear before the `index`-th batch: the gradients that its step sums, before the first. */
const sumsBefore = (parts: readonly Part[], index: number): Iterable<Tensor> =>
  index === 0 && parts.length > 1 ? wholes(parts[0].program.planned.built.gradients.values()) : [];

/** Uploads and submits a step's batches in turn; returns when all are submitted. */
async function submitParts(
  run: Run,
  parts: readonly Part[],
  step: number,
  listening: boolean,
): Promise<{ results: Promise<Results[]> }> {
  const pending: Promise<Results>[] = [];
  for (const [i, { program }] of parts.entries()) {
    uploadPart(run, parts, i, step);
    const { results, routes } = program.planned;
    const part = { clear: sumsBefore(parts, i), batch: true, update: i + 1 === parts.length };
    const tensors = listening ? [...results, ...routes] : results;
    pending.push((await program.readback.run(program.recorded, tensors, part)).results);
  }
  return { results: Promise.all(pending) };
}
