// A step in parts, for a loop of somebody else's: gradients of batch after batch are added up, and the optimizer runs when
// it is told to. The programs are those of a run that accumulates, at the longest lengths that the run allows, in which
// tokens can be given the experts that they took in another pass.

import { CHOOSES_FREELY } from "../../kernels/router.ts";
import { type Batch, collate } from "../data/batches.ts";
import { type EncodedDataset, encodeDataset } from "../data/dataset.ts";
import { inputError } from "../formats/problems.ts";
import type { SparseLayer } from "../model/family.ts";
import type { DrivenBatch, DrivenExample, DrivenOptions, RouteBatch, StepMetrics } from "../types.ts";
import { limitsOf } from "./data.ts";
import type { OptimizerState } from "./optimizer_state.ts";
import type { Programs } from "./programs.ts";
import type { Results } from "./readback.ts";
import type { Run } from "./run.ts";
import { learningRate } from "./schedule.ts";
import { layerMetrics, minimised, routesOfExample, type StepPart, stepMetrics } from "./telemetry.ts";

export class DrivenSteps {
  readonly #run: Run;
  readonly #programs: Programs;
  readonly #optimizer: OptimizerState;
  /** The batches whose gradients are in the sum. */
  #parts: StepPart[] = [];
  #seconds = 0;

  constructor(run: Run, programs: Programs, optimizer: OptimizerState) {
    this.#run = run;
    this.#programs = programs;
    this.#optimizer = optimizer;
  }

  /** Batches whose gradients are in the sum. */
  get batches(): number {
    return this.#parts.length;
  }

  /** The gradients are gone. */
  forget(): void {
    this.#parts = [];
    this.#seconds = 0;
  }

  /** Adds a batch's gradients; `step` is the number of steps before it. */
  async forwardBackward(data: DrivenData, step: number, options: DrivenOptions): Promise<DrivenBatch> {
    const started = performance.now();
    const run = this.#run;
    const batch = batchOf(run, data);
    const program = this.#programs.training(batch);
    const { built, results: wanted, routes } = program.planned;
    run.upload(batch);
    const { divisor = batch.targetTokens, recordRoutes = false } = options;
    run.uploadScalars(step * this.#programs.plan.accumulationSteps + this.#parts.length, divisor);
    for (const layer of built.sparse) {
      const { forcedIds } = layer.routing;
      if (forcedIds) run.uploadInput(forcedIds.name, forcedExperts(layer, batch, data.routes));
    }
    const listening = recordRoutes || run.onRoutes !== undefined;
    const clear = this.#parts.length === 0 ? [...built.gradients.values()] : [];
    const tensors = listening ? [...wanted, ...routes] : wanted;
    const submitted = await program.readback.run(program.recorded, tensors, { clear, batch: true, update: false });
    const results = await submitted.results;
    const recorded = listening ? run.routesOf(program, results, "training", step, batch) : [];
    run.emitRoutes(recorded);
    this.#parts.push({ built, batch, results });
    this.#seconds += (performance.now() - started) / 1e3;
    const rowLoss = results.f32(built.loss.rowLoss);
    const tokenLosses = data.examples.map(({ labels }, row) => {
      const first = row * batch.targetLength;
      return rowLoss.slice(first, first + labels.length);
    });
    return {
      batches: this.#parts.length,
      loss: tokenLosses.reduce((n, losses) => n + losses.reduce((sum, loss) => sum + loss, 0), 0) / batch.targetTokens,
      targetTokens: batch.targetTokens,
      tokenLosses,
      truncatedInputs: data.truncatedInputs,
      truncatedTargets: data.truncatedTargets,
      layers: built.sparse.map((layer) => layerMetrics(layer, results)),
      routes: recordRoutes ? data.examples.map((_, id) => recorded.map((routes) => routesOfExample(routes, id))) : [],
    };
  }

  /** Runs the optimizer on the sum, which must hold a batch, and clears it. `step` is the number of steps before it. */
  async optimStep(step: number, rate: number | undefined): Promise<StepMetrics> {
    const started = performance.now();
    const run = this.#run;
    const { config } = run;
    const last = this.#parts[this.#parts.length - 1];
    const program = this.#programs.training(last.batch);
    const { optimizer, lossScale } = program.planned.built;
    const used = rate ?? learningRate(config.optimizer, step, config.steps);
    run.uploadInput(optimizer.scalars.name, this.#optimizer.nextScalars(config.optimizer, used));
    const changed = lossScale ? [optimizer.norm, lossScale] : [optimizer.norm];
    const part = { clear: [], batch: false, update: true };
    const updated = await (await program.readback.run(program.recorded, changed, part)).results;
    const { results: before } = last;
    const results: Results = {
      f32: (t) => (changed.includes(t) ? updated : before).f32(t),
      u32: (t) => before.u32(t),
    };
    const parts = [...this.#parts.slice(0, -1), { ...last, results }];
    const stepSeconds = this.#seconds + (performance.now() - started) / 1e3;
    this.forget();
    const known = { step: step + 1, learningRate: used, stepSeconds };
    return stepMetrics(parts, known, minimised(config.losses, this.#programs.plan));
  }
}

/** Padded to the longest that the run allows. */
function batchOf(run: Run, { examples }: EncodedDataset): Batch {
  const { padTokenId, decoderStartTokenId } = run.source.model;
  const { input, target } = limitsOf(run.config);
  const shape = { inputLength: input, targetLength: target, padTokenId, decoderStartTokenId };
  return collate(examples, [...examples.keys()], { size: run.config.batchSize, ...shape });
}

/** What a layer's tokens are told: [tokens, topK], CHOOSES_FREELY where nothing was recorded. */
function forcedExperts(
  { stack, layer, routing }: SparseLayer,
  { size, inputLength, targetLength }: Batch,
  routes: DrivenData["routes"],
): Uint32Array<ArrayBuffer> {
  const { topK } = routing;
  const length = stack === "encoder" ? inputLength : targetLength;
  const forced = new Uint32Array(size * length * topK).fill(CHOOSES_FREELY);
  routes.forEach((recorded, row) => {
    const own = recorded.find((one) => one.stack === stack && one.layer === layer);
    own?.positions.forEach((position, token) => {
      const ids = own.expertIds.subarray(token * topK, (token + 1) * topK);
      forced.set(ids, (row * length + position) * topK);
    });
  });
  return forced;
}

/** A batch's examples as token ids, and the routes of each. */
interface DrivenData extends EncodedDataset {
  readonly routes: readonly (readonly RouteBatch[])[];
}

/** @throws InputError naming every example that cannot be one, and every route that is not of its tokens */
export function encodeDriven(run: Run, examples: readonly DrivenExample[]): DrivenData {
  const { maxInputTokens, maxTargetTokens, batchSize } = run.config;
  const { vocabularySize, eosTokenId, decoderStartTokenId } = run.source.model;
  if (examples.length === 0 || examples.length > batchSize) {
    throw inputError("examples", [`has ${examples.length}; a batch of this run has 1 to ${batchSize}`]);
  }
  const limits = { maxInputTokens, maxTargetTokens, vocabularySize, eosTokenId };
  const numbered = examples.map((example, line) => ({ ...example, line }));
  const encoded = encodeDataset(numbered, run.source.tokenizer, limits, (line) => `examples[${line}]`);
  const routes = examples.map((example) => example.routes ?? []);
  const problems = routes.flatMap((recorded, i) => {
    const { inputIds, labels } = encoded.examples[i];
    const tokens = { encoder: inputIds, decoder: Int32Array.of(decoderStartTokenId, ...labels.subarray(0, -1)) };
    return recorded.flatMap(({ stack, positions, tokenIds }) => {
      const at = positions.findIndex((position, token) => tokens[stack][position] !== tokenIds[token]);
      return at < 0
        ? []
        : [`examples[${i}]: its routes are of other tokens, in the ${stack} from position ${positions[at]} on`];
    });
  });
  if (problems.length > 0) throw inputError("", [...new Set(problems)]);
  return { ...encoded, routes };
}
