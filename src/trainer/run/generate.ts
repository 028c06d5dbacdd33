// Generation: encodes inputs, then decodes position after position over a key-value cache, choosing tokens greedily, by
// sampling or by beam search. With a capacity, tokens of one position compete with each other for slots, not with those
// of other positions: a decoded token can keep an expert that teacher forcing would have dropped it from.

import { NO_ROW } from "../../kernels/moe_dispatch.ts";
import { type Batch, NO_EXAMPLE, sequentialBatches } from "../data/batches.ts";
import { endSequence } from "../data/dataset.ts";
import { inputError } from "../formats/problems.ts";
import type { Decoding, GenerateOptions, Generation, RouteBatch } from "../types.ts";
import { advanceBeams, beginBeamSearch, type Hypothesis } from "./beam_search.ts";
import type { Decoded, Decoder } from "./decoder.ts";
import type { Run } from "./run.ts";
import { sampleToken, softmax, uniformDraw } from "./sampling.ts";
import { routesOfExample } from "./telemetry.ts";

/** What was generated for one row of a batch; end of sequence included where it was reached. */
export type GeneratedRow = Pick<Hypothesis, "tokenIds" | "rows"> & {
  /** Of beam search. */
  readonly score?: number;
};

export interface DecodedBatch {
  /** By row of the batch; empty for rows without an example. */
  readonly rows: readonly GeneratedRow[];
  /** Results of each position, where routes were asked for. */
  readonly positions: readonly Decoded[];
}

export const beamsOf = (decoding: Decoding): number => (decoding.kind === "beam" ? decoding.beams : 1);

/** Decodes from the encoder output on the device until every example has ended or `decoder` is full. */
export async function decodeBatch(
  run: Run,
  decoder: Decoder,
  batch: Batch,
  decoding: Decoding,
  keepPositions = false,
): Promise<DecodedBatch> {
  decoder.begin();
  const positions: Decoded[] = [];
  const decode: DecodePosition = async (tokens, position, live) => {
    const decoded = await decoder.decode(tokens, position, live);
    if (keepPositions) positions.push(decoded);
    return decoded;
  };
  const rows =
    decoding.kind === "beam"
      ? await decodeBeams(run, decoder, decode, batch, decoding)
      : await decodeRows(run, decoder, decode, batch, decoding);
  return { rows, positions };
}

type DecodePosition = Decoder["decode"];

const examplesOf = (batch: Batch): number[] =>
  [...batch.exampleIds.keys()].filter((row) => batch.exampleIds[row] !== NO_EXAMPLE);

/** Greedy or sampled: every row goes its own way. */
async function decodeRows(
  run: Run,
  { shape }: Decoder,
  decode: DecodePosition,
  batch: Batch,
  decoding: Exclude<Decoding, { kind: "beam" }>,
): Promise<GeneratedRow[]> {
  const { eosTokenId, decoderStartTokenId, padTokenId, vocabularySize } = run.source.model;
  const generated = Array.from({ length: batch.size }, () => ({ tokenIds: [] as number[], rows: [] as number[] }));
  const tokens = new Uint32Array(batch.size).fill(padTokenId);
  const live = new Uint32Array(batch.size);
  for (const row of examplesOf(batch)) {
    tokens[row] = decoderStartTokenId;
    live[row] = 1;
  }
  for (let position = 0; position < shape.length && live.includes(1); position++) {
    const { predicted, logits } = await decode(tokens, position, live);
    live.forEach((alive, row) => {
      if (!alive) return;
      let token = predicted[row];
      if (decoding.kind === "sample") {
        const rowLogits = logits!.subarray(row * vocabularySize, (row + 1) * vocabularySize);
        token = sampleToken(rowLogits, decoding, uniformDraw(decoding.seed, batch.exampleIds[row], position));
      }
      generated[row].tokenIds.push(token);
      generated[row].rows.push(row);
      tokens[row] = token === eosTokenId ? padTokenId : token;
      if (token === eosTokenId) live[row] = 0;
    });
  }
  return generated;
}

async function decodeBeams(
  run: Run,
  decoder: Decoder,
  decode: DecodePosition,
  batch: Batch,
  { beams, lengthPenalty }: Extract<Decoding, { kind: "beam" }>,
): Promise<GeneratedRow[]> {
  const { eosTokenId, decoderStartTokenId, padTokenId, vocabularySize } = run.source.model;
  const { rows, length } = decoder.shape;
  const searches = new Map(
    examplesOf(batch).map((row) => [row, beginBeamSearch({ beams, lengthPenalty, eosTokenId })]),
  );
  for (let position = 0; position < length && [...searches.values()].some((s) => !s.done); position++) {
    const tokens = new Uint32Array(rows).fill(padTokenId);
    const live = new Uint32Array(rows);
    for (const [row, search] of searches) {
      if (search.done) continue;
      search.running.forEach(({ tokenIds }, beam) => {
        tokens[row * beams + beam] = tokenIds.at(-1) ?? decoderStartTokenId;
        live[row * beams + beam] = 1;
      });
    }
    const { logits } = await decode(tokens, position, live);
    const parents = Uint32Array.from({ length: rows }, (_, r) => r);
    for (const [row, search] of searches) {
      if (search.done) continue;
      const beamRows = search.running.map((_, beam) => row * beams + beam);
      const logProbabilities = beamRows.map((r) =>
        softmax(logits!.subarray(r * vocabularySize, (r + 1) * vocabularySize)).map(Math.log),
      );
      advanceBeams(search, logProbabilities, beamRows, position + 1 === length).forEach((parent, beam) => {
        parents[row * beams + beam] = beamRows[parent];
      });
    }
    if (parents.some((parent, r) => parent !== r)) decoder.reorder(parents);
  }
  return Array.from({ length: batch.size }, (_, row) => {
    const best = searches.get(row)?.finished[0];
    return best ?? { tokenIds: [], rows: [] };
  });
}

/** Routes of what was generated: one slice per sparse layer, an example's positions together. */
function decoderRoutes(run: Run, decoder: Decoder, batch: Batch, decoded: DecodedBatch): RouteBatch[] {
  const { decoderStartTokenId } = run.source.model;
  return decoder.step.built.sparse.map(({ stack, layer, routing }): RouteBatch => {
    const { topK, experts } = routing;
    const all = {
      exampleIds: [] as number[],
      positions: [] as number[],
      tokenIds: [] as number[],
      expertIds: [] as number[],
      gates: [] as number[],
      kept: [] as number[],
    };
    const values = decoded.positions.map(({ results }) => ({
      expertIds: results.u32(routing.chosenIds),
      gates: results.f32(routing.gates),
      rows: results.u32(routing.rowOfAssignment),
    }));
    decoded.rows.forEach(({ tokenIds, rows }, example) => {
      rows.forEach((row, position) => {
        const { expertIds, gates, rows: expertRows } = values[position];
        all.exampleIds.push(batch.exampleIds[example]);
        all.positions.push(position);
        all.tokenIds.push(position === 0 ? decoderStartTokenId : tokenIds[position - 1]);
        for (let a = row * topK; a < (row + 1) * topK; a++) {
          all.expertIds.push(expertIds[a]);
          all.gates.push(gates[a]);
          all.kept.push(expertRows[a] === NO_ROW ? 0 : 1);
        }
      });
    });
    return {
      source: "generation",
      step: run.step,
      stack,
      layer,
      experts,
      topK,
      exampleIds: Uint32Array.from(all.exampleIds),
      positions: Uint32Array.from(all.positions),
      tokenIds: Uint32Array.from(all.tokenIds),
      expertIds: Uint16Array.from(all.expertIds),
      gates: Float32Array.from(all.gates),
      kept: Uint8Array.from(all.kept),
    };
  });
}

/** Generates for texts; routes are those of the encoder and of the tokens that were generated. */
export async function generate(run: Run, inputs: readonly string[], options: GenerateOptions): Promise<Generation[]> {
  const { tokenizer, model } = run.source;
  const { maxNewTokens, decoding = { kind: "greedy" } } = options;
  if (!tokenizer) throw inputError("inputs", ["the model has no tokenizer, so it cannot read text"]);
  const encoded = inputs.map(
    (text) => endSequence(tokenizer.encode(text, { special: true }), run.config.maxInputTokens, model.eosTokenId).ids,
  );
  const examples = encoded.map((ids) => ({ inputIds: Uint32Array.from(ids), labels: new Int32Array(0) }));
  const input = Math.max(...encoded.map((ids) => ids.length));
  const { encoder, lengths } = await run.inference({ input, target: 1 });
  const { padTokenId, decoderStartTokenId } = model;
  const lengthsOfBatch = { inputLength: lengths.input, targetLength: lengths.target };
  const shape = { size: run.config.batchSize, ...lengthsOfBatch, padTokenId, decoderStartTokenId };
  const decoder = await run.decoder(
    { input: lengths.input, target: maxNewTokens },
    beamsOf(decoding),
    decoding.kind !== "greedy",
  );
  const generations: Generation[] = [];
  try {
    for (const batch of sequentialBatches(examples, shape)) {
      run.upload(batch);
      run.uploadScalars(run.step, 1);
      const encoderResults = await (
        await encoder.readback.run(encoder.recorded, [...encoder.planned.results, ...encoder.planned.routes])
      ).results;
      const decoded = await decodeBatch(run, decoder, batch, decoding, true);
      const routes = [
        ...run.routesOf(encoder, encoderResults, "generation", run.step, batch),
        ...decoderRoutes(run, decoder, batch, decoded),
      ];
      run.emitRoutes(routes);
      decoded.rows.forEach(({ tokenIds, score }, row) => {
        const example = batch.exampleIds[row];
        if (example === NO_EXAMPLE) return;
        generations.push({
          input: inputs[example],
          text: tokenizer.decode([...tokenIds], { skipSpecial: true }),
          inputIds: [...encoded[example]],
          tokenIds: [...tokenIds],
          ...(score !== undefined && { score }),
          routes: routes.map((r) => routesOfExample(r, example)),
        });
      });
    }
  } finally {
    decoder.close();
  }
  return generations;
}
