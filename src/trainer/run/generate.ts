// Greedy generation: at every position the most probable token, the lower id among equals. The decoder's program runs
// over all target positions at each turn; only the next position's prediction is used.

import { type Batch, IGNORED_LABEL, NO_EXAMPLE, sequentialBatches } from "../data/batches.ts";
import { endSequence } from "../data/dataset.ts";
import { inputError } from "../formats/problems.ts";
import type { InferenceGraph } from "../model/family.ts";
import type { GenerateOptions, Generation, RouteBatch } from "../types.ts";
import type { Ready } from "./programs.ts";
import type { Results } from "./readback.ts";
import type { Run } from "./run.ts";
import { routesOfExample } from "./telemetry.ts";

/** One row's generated tokens, end of sequence included where it was reached. */
export interface GeneratedRow {
  readonly tokenIds: number[];
}

/** A batch as the decoder has seen it last, with its results. */
export interface LastPass {
  readonly batch: Batch;
  readonly results: Results;
}

/** Continues from the encoder output on the device; empty rows (NO_EXAMPLE) generate nothing. */
export async function greedy(
  run: Run,
  decoder: Ready<InferenceGraph>,
  batch: Batch,
  maxNewTokens: number,
  options: { routes?: boolean; onLastPass?: (pass: LastPass) => void } = {},
): Promise<GeneratedRow[]> {
  const { eosTokenId, decoderStartTokenId, padTokenId } = run.source.model;
  const { size, targetLength } = batch;
  const rows: GeneratedRow[] = Array.from({ length: size }, () => ({ tokenIds: [] }));
  const open = new Set([...batch.exampleIds.keys()].filter((row) => batch.exampleIds[row] !== NO_EXAMPLE));
  const decoderInputIds = new Uint32Array(size * targetLength).fill(padTokenId);
  const decoderMask = new Uint32Array(size * targetLength);
  const labels = new Int32Array(size * targetLength).fill(IGNORED_LABEL);
  for (const row of open) decoderInputIds[row * targetLength] = decoderStartTokenId;
  const predicted = decoder.planned.built.loss!.predicted!;
  const tensors = options.routes ? [predicted, ...decoder.planned.routes] : [predicted];

  for (let position = 0; position < Math.min(maxNewTokens, targetLength) && open.size > 0; position++) {
    for (const row of open) decoderMask[row * targetLength + position] = 1;
    const pass: Batch = { ...batch, labels, decoderInputIds, decoderMask, targetTokens: 0 };
    run.upload(pass, "decoder");
    const { results } = await decoder.readback.run(decoder.recorded, tensors);
    const arrived = await results;
    const next = arrived.u32(predicted);
    for (const row of [...open]) {
      const token = next[row * targetLength + position];
      rows[row].tokenIds.push(token);
      if (token === eosTokenId) open.delete(row);
      else if (position + 1 < targetLength) decoderInputIds[row * targetLength + position + 1] = token;
    }
    options.onLastPass?.({ batch: pass, results: arrived });
  }
  return rows;
}

/** Generates for texts; routes are those of the encoder and of the decoder's last pass. */
export async function generate(run: Run, inputs: readonly string[], options: GenerateOptions): Promise<Generation[]> {
  const { tokenizer, model } = run.source;
  if (!tokenizer) throw inputError("inputs", ["the model has no tokenizer, so it cannot read text"]);
  const encoded = inputs.map(
    (text) => endSequence(tokenizer.encode(text, { special: true }), run.config.maxInputTokens, model.eosTokenId).ids,
  );
  const examples = encoded.map((ids) => ({ inputIds: Uint32Array.from(ids), labels: new Int32Array(0) }));
  const input = Math.max(...encoded.map((ids) => ids.length));
  const { encoder, decoder, lengths } = await run.inference({ input, target: options.maxNewTokens });
  const generations: Generation[] = [];
  const { padTokenId, decoderStartTokenId } = model;
  const lengthsOfBatch = { inputLength: lengths.input, targetLength: lengths.target };
  const shape = { size: run.config.batchSize, ...lengthsOfBatch, padTokenId, decoderStartTokenId };
  for (const batch of sequentialBatches(examples, shape)) {
    run.upload(batch);
    run.uploadScalars(run.step, 1);
    const encoderResults = await (
      await encoder.readback.run(encoder.recorded, [...encoder.planned.results, ...encoder.planned.routes])
    ).results;
    let last: LastPass | undefined;
    const rows = await greedy(run, decoder, batch, options.maxNewTokens, {
      routes: true,
      onLastPass: (pass) => {
        last = pass;
      },
    });
    const routes: RouteBatch[] = [
      ...run.routesOf(encoder, encoderResults, "generation", run.step, batch),
      ...(last ? run.routesOf(decoder, last.results, "generation", run.step, last.batch) : []),
    ];
    run.emitRoutes(routes);
    rows.forEach(({ tokenIds }, row) => {
      const example = batch.exampleIds[row];
      if (example === NO_EXAMPLE) return;
      generations.push({
        input: inputs[example],
        text: tokenizer.decode(tokenIds, { skipSpecial: true }),
        inputIds: [...encoded[example]],
        tokenIds,
        routes: routes.map((r) => routesOfExample(r, example)),
      });
    });
  }
  return generations;
}
