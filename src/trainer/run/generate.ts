// Greedy generation: at every position the most probable token, the lower id among equals. The decoder's program runs
// over all target positions at each turn; only the next position's prediction is used.

import { type Batch, completeBatch, IGNORED_LABEL, NO_EXAMPLE } from "../data/batches.ts";
import { inputError } from "../formats/problems.ts";
import type { InferenceGraph } from "../model/family.ts";
import type { GenerateOptions, Generation, RouteBatch } from "../types.ts";
import type { Ready } from "./programs.ts";
import type { Results } from "./readback.ts";
import type { Run } from "./run.ts";
import { routeBatch, routesOfExample } from "./telemetry.ts";

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
  const encoded = inputs.map((text) => encodeInput(tokenizer.encode(text, { special: true }), run));
  const input = Math.max(...encoded.map((ids) => ids.length));
  const { encoder, decoder, lengths } = await run.inference({ input, target: options.maxNewTokens });
  const generations: Generation[] = [];
  const size = run.config.batchSize;
  for (let first = 0; first < inputs.length; first += size) {
    const batch = inputBatch(encoded.slice(first, first + size), first, run, lengths);
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
      ...layerRoutes(run, encoder, encoderResults, batch),
      ...(last ? layerRoutes(run, decoder, last.results, last.batch) : []),
    ];
    for (const listen of run.onRoutes ? routes : []) run.onRoutes?.(listen);
    rows.slice(0, Math.min(size, inputs.length - first)).forEach(({ tokenIds }, row) => {
      generations.push({
        input: inputs[first + row],
        text: tokenizer.decode(tokenIds, { skipSpecial: true }),
        inputIds: [...encoded[first + row]],
        tokenIds,
        routes: routes.map((r) => routesOfExample(r, first + row)),
      });
    });
  }
  return generations;

  function encodeInput(ids: readonly number[], { config }: Run): number[] {
    const content = ids.at(-1) === model.eosTokenId ? ids.slice(0, -1) : ids;
    return [...content.slice(0, config.maxInputTokens - 1), model.eosTokenId];
  }
}

function layerRoutes(run: Run, program: Ready<InferenceGraph>, results: Results, batch: Batch): RouteBatch[] {
  const context = {
    source: "generation",
    step: run.step,
    batch,
    routePadding: run.config.routing.routePadding,
  } as const;
  return program.planned.built.sparse.map((layer) => routeBatch(layer, results, context));
}

/** Inputs without targets as a batch; example ids count from `firstId`. */
function inputBatch(
  inputs: readonly (readonly number[])[],
  firstId: number,
  run: Run,
  lengths: { input: number; target: number },
): Batch {
  const size = run.config.batchSize;
  const { padTokenId, decoderStartTokenId } = run.source.model;
  const inputIds = new Uint32Array(size * lengths.input).fill(padTokenId);
  const inputMask = new Uint32Array(size * lengths.input);
  const exampleIds = new Uint32Array(size).fill(NO_EXAMPLE);
  inputs.forEach((ids, row) => {
    inputIds.set(ids, row * lengths.input);
    inputMask.fill(1, row * lengths.input, row * lengths.input + ids.length);
    exampleIds[row] = firstId + row;
  });
  const labels = new Int32Array(size * lengths.target).fill(IGNORED_LABEL);
  return completeBatch(
    { inputIds, inputMask, labels, exampleIds },
    { size, inputLength: lengths.input, targetLength: lengths.target, padTokenId, decoderStartTokenId },
  );
}
