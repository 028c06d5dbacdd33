// Compares generation with the reference implementation's: greedy and beam search from a model folder's batch, token by
// token, and the scores of the beams. Format: `generate.safetensors` of the reference fixtures' model folders, each
// sequence beginning with the decoder's start token and padded behind its end.

import { join } from "node:path";
import type { Device } from "../../kernels/device/device.ts";
import type { Batch } from "../data/batches.ts";
import { openSafetensors } from "../formats/safetensors.ts";
import { openModelDirectory } from "../model/open.ts";
import { beamsOf, decodeBatch, type GeneratedRow } from "../run/generate.ts";
import type { RunSettings } from "../run/options.ts";
import { Run } from "../run/run.ts";
import type { Decoding } from "../types.ts";
import type { ErrorTable } from "./table.ts";

const SCORES = 1e-4;

/** Adds rows of `greedy`, `beam<n>` and `beam<n>_score`, whichever the file has. */
export async function generationParity(
  device: Device,
  directory: string,
  batch: Batch,
  settings: RunSettings,
  table: ErrorTable,
): Promise<void> {
  const file = await openSafetensors(join(directory, "generate.safetensors"));
  const source = await openModelDirectory(directory);
  const lengths = { input: batch.inputLength, target: batch.targetLength };
  const run = await Run.open(device, source, settings, { inference: lengths });
  try {
    for (const [name, { shape }] of file.tensors) {
      const beams = /^beam(\d+)$/.exec(name)?.[1];
      if (beams === undefined && name !== "greedy") continue;
      const expected = (await file.read(name)) as Int32Array;
      const decoding: Decoding =
        beams === undefined ? { kind: "greedy" } : { kind: "beam", beams: Number(beams), lengthPenalty: 1 };
      const rows = await generateRows(run, batch, decoding, shape[1] - 1);
      const { padTokenId, decoderStartTokenId } = source.model;
      rows.forEach(({ tokenIds }, row) => {
        const sequence = [decoderStartTokenId, ...tokenIds];
        const wrong = Array.from({ length: shape[1] }, (_, i) => sequence[i] ?? padTokenId).filter(
          (token, i) => token !== expected[row * shape[1] + i],
        ).length;
        table.add("generated tokens", `${name} row ${row}`, wrong, 0);
      });
      if (!file.tensors.has(`${name}_score`)) continue;
      const scores = (await file.read(`${name}_score`)) as Float32Array;
      rows.forEach(({ score }, row) => {
        table.add("generation scores", `${name} row ${row}`, Math.abs((score ?? Number.NaN) - scores[row]), SCORES);
      });
    }
  } finally {
    run.close();
    await Promise.all([file.close(), source.checkpoint.close()]);
  }
}

async function generateRows(
  run: Run,
  batch: Batch,
  decoding: Decoding,
  maxNewTokens: number,
): Promise<readonly GeneratedRow[]> {
  const { encoder, lengths } = await run.inference({ input: batch.inputLength, target: 1 });
  run.upload(batch);
  run.uploadScalars(0, 1);
  await (await encoder.readback.run(encoder.recorded)).results;
  const decoder = await run.decoder(
    { input: lengths.input, target: maxNewTokens },
    beamsOf(decoding),
    decoding.kind !== "greedy",
  );
  try {
    return (await decodeBatch(run, decoder, batch, decoding)).rows;
  } finally {
    decoder.close();
  }
}
