// Scores a data file: cross-entropy and token accuracy under teacher forcing, and what greedy generation writes by the
// metrics of the data's task.

import { type Batch, NO_EXAMPLE, sequentialBatches } from "../data/batches.ts";
import { lengthsOf } from "../data/batching.ts";
import type { EncodedExample } from "../data/dataset.ts";
import { type ScoredExample, score, scorePlain } from "../tasks/score.ts";
import type { Scoring } from "../tasks/task.ts";
import type { EvaluationResult, RouterLayerMetrics } from "../types.ts";
import { limitsOf } from "./data.ts";
import { decodeBatch } from "./generate.ts";
import type { Run } from "./run.ts";
import { layerMetrics, mergeLayerMetrics } from "./telemetry.ts";

/** Evaluates a data file, at most its first `maxExamples` examples (0 = all). */
export async function evaluate(
  run: Run,
  file: string,
  split: string,
  maxExamples: number,
  scoring: Scoring | undefined,
): Promise<EvaluationResult> {
  const started = performance.now();
  const data = await run.dataset(file);
  const examples = firstExamples(data.examples, maxExamples);
  const { encoder, decoder, lengths } = await run.inference(lengthsOf(examples, limitsOf(run.config)));
  const { padTokenId, decoderStartTokenId } = run.source.model;
  const shape = {
    size: run.config.batchSize,
    inputLength: lengths.input,
    targetLength: lengths.target,
    padTokenId,
    decoderStartTokenId,
  };
  const routed = run.onRoutes !== undefined;
  const read = (program: typeof encoder) =>
    routed ? [...program.planned.results, ...program.planned.routes] : program.planned.results;
  const metrics: RouterLayerMetrics[][] = [];
  const texts = { predictions: [] as string[], examples: [] as ScoredExample[] };
  const count = { loss: 0, tokens: 0, correct: 0, whole: 0, exact: 0 };

  const generator = await run.decoder(lengths, 1, false);
  try {
    for (const batch of sequentialBatches(examples, shape)) {
      run.upload(batch);
      run.uploadScalars(run.step, batch.targetTokens);
      const encoded = await (await encoder.readback.run(encoder.recorded, read(encoder))).results;
      const decoded = await (await decoder.readback.run(decoder.recorded, read(decoder))).results;
      metrics.push([
        ...encoder.planned.built.sparse.map((layer) => layerMetrics(layer, encoded)),
        ...decoder.planned.built.sparse.map((layer) => layerMetrics(layer, decoded)),
      ]);
      if (routed) {
        run.emitRoutes(run.routesOf(encoder, encoded, "evaluation", run.step, batch));
        run.emitRoutes(run.routesOf(decoder, decoded, "evaluation", run.step, batch));
      }
      const loss = decoder.planned.built.loss!;
      const rowLoss = decoded.f32(loss.rowLoss);
      const rowCorrect = decoded.u32(loss.rowCorrect);
      for (let i = 0; i < rowLoss.length; i++) {
        count.loss += rowLoss[i];
        count.correct += rowCorrect[i];
      }
      count.tokens += batch.targetTokens;
      const generated = (await decodeBatch(run, generator, batch, { kind: "greedy" })).rows;
      forEachExample(batch, examples, (example, row) => {
        const from = row * batch.targetLength;
        const all = batch.decoderMask.subarray(from, from + batch.targetLength);
        if (all.every((counts, i) => counts === 0 || rowCorrect[from + i] === 1)) count.whole++;
        if (matches(run, example, generated[row].tokenIds)) count.exact++;
        const prediction = textOf(run, example, generated[row].tokenIds);
        if (prediction === undefined) return;
        texts.predictions.push(prediction);
        texts.examples.push({ ...example, target: example.target! });
      });
    }
  } finally {
    generator.close();
  }
  return {
    step: run.step,
    split,
    examples: examples.length,
    loss: count.loss / Math.max(1, count.tokens),
    tokenAccuracy: count.correct / Math.max(1, count.tokens),
    exactMatch: count.exact / examples.length,
    accuracy: count.whole / examples.length,
    metrics: scoresOf(texts, scoring),
    ...(scoring && { primaryMetric: scoring.metrics[0] }),
    layers: mergeLayerMetrics(metrics),
    seconds: (performance.now() - started) / 1e3,
  };
}

/**
 * At most `most` examples (0 = all), cut between two groups: a question of which half the answers are missing is easier. A
 * first group of more than `most` examples is cut all the same.
 */
export function firstExamples(examples: readonly EncodedExample[], most: number): readonly EncodedExample[] {
  if (most <= 0 || most >= examples.length) return examples;
  const { group } = examples[most];
  let end = most;
  while (group !== undefined && end > 0 && examples[end - 1].group === group) end--;
  return examples.slice(0, end || most);
}

function scoresOf(
  { predictions, examples }: { readonly predictions: readonly string[]; readonly examples: readonly ScoredExample[] },
  scoring: Scoring | undefined,
): EvaluationResult["metrics"] {
  if (predictions.length === 0) return {};
  return scoring ? score(scoring, predictions, examples) : scorePlain(predictions, examples);
}

function forEachExample(
  batch: Batch,
  examples: readonly EncodedExample[],
  visit: (example: EncodedExample, row: number) => void,
): void {
  batch.exampleIds.forEach((id, row) => {
    if (id !== NO_EXAMPLE) visit(examples[id], row);
  });
}

/** Texts are compared where there are texts, white space at the ends aside; token ids otherwise. */
function matches(run: Run, example: EncodedExample, tokenIds: readonly number[]): boolean {
  const { model } = run.source;
  const text = textOf(run, example, tokenIds);
  if (text !== undefined) return text.trim() === example.target?.trim();
  const expected = [...example.labels].filter((id) => id !== model.eosTokenId);
  const actual = tokenIds.filter((id) => id !== model.eosTokenId);
  return expected.length === actual.length && expected.every((id, i) => id === actual[i]);
}

/** The generated text, where the example is text. */
function textOf({ source }: Run, example: EncodedExample, tokenIds: readonly number[]): string | undefined {
  if (example.target === undefined || !source.tokenizer) return undefined;
  return source.tokenizer.decode(tokenIds, { skipSpecial: true });
}
