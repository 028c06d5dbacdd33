import { test } from "uvu";
import * as assert from "uvu/assert";
import { type Batch, completeBatch, IGNORED_LABEL } from "../../src/trainer/data/batches.ts";
import { tensorBytes } from "../../src/trainer/graph/graph.ts";
import { openModelDirectory } from "../../src/trainer/model/open.ts";
import { beamsOf, decodeBatch, type GeneratedRow } from "../../src/trainer/run/generate.ts";
import { planDecoderWithin } from "../../src/trainer/run/plan.ts";
import { Run } from "../../src/trainer/run/run.ts";
import { type Decoding, MemoryError, type RunConfig } from "../../src/trainer/types.ts";
import { testDevice } from "../support/gpu.ts";
import { tinyModel, tinyRun } from "../support/tiny_model.ts";

const device = await testDevice();
const LENGTHS = { input: 6, target: 9 };
const SIZE = 4;

async function open(
  changes: Record<string, unknown> = {},
  memoryLimitBytes?: () => number,
  precision: RunConfig["precision"] = "f32",
): Promise<Run> {
  const directory = await tinyModel(changes);
  const source = await openModelDirectory(directory);
  const settings = tinyRun(directory, "", { batchSize: SIZE, precision });
  const run = await Run.open(device, source, settings, { inference: LENGTHS, memoryLimitBytes });
  await source.checkpoint.close();
  return run;
}

/** Three examples of different lengths and an empty row, with labels to teach the decoder. */
function batchOf(run: Run, labels?: readonly (readonly number[])[]): Batch {
  const { input, target } = LENGTHS;
  const lengths = [6, 3, 1, 0];
  const at = (i: number) => ({ row: Math.floor(i / input), position: i % input });
  const real = (i: number) => at(i).position < lengths[at(i).row];
  const { padTokenId, decoderStartTokenId } = run.source.model;
  const content = {
    inputIds: Uint32Array.from({ length: SIZE * input }, (_, i) => (real(i) ? 2 + ((i * 11) % 35) : padTokenId)),
    inputSegments: Uint32Array.from({ length: SIZE * input }, (_, i) => Number(real(i))),
    labels: Int32Array.from(
      { length: SIZE * target },
      (_, i) => labels?.[Math.floor(i / target)]?.[i % target] ?? IGNORED_LABEL,
    ),
    exampleIds: Uint32Array.of(0, 1, 2, 0xffffffff),
  };
  return completeBatch(content, {
    size: SIZE,
    inputLength: input,
    targetLength: target,
    padTokenId,
    decoderStartTokenId,
  });
}

async function generated(run: Run, decoding: Decoding, length = LENGTHS.target): Promise<readonly GeneratedRow[]> {
  const { encoder } = await run.inference(LENGTHS);
  const batch = batchOf(run);
  run.upload(batch);
  run.uploadScalars(0, 1);
  await (await encoder.readback.run(encoder.recorded)).results;
  const decoder = await run.decoder({ ...LENGTHS, target: length }, beamsOf(decoding), decoding.kind !== "greedy");
  try {
    return (await decodeBatch(run, decoder, batch, decoding)).rows;
  } finally {
    decoder.close();
  }
}

/** The decoder's program over whole sequences, with `labels` as targets. */
async function teach(run: Run, labels: readonly (readonly number[])[]) {
  const { encoder, decoder } = await run.inference(LENGTHS);
  const taught = batchOf(run, labels);
  run.upload(taught);
  run.uploadScalars(0, 1);
  await (await encoder.readback.run(encoder.recorded)).results;
  const results = await (await decoder.readback.run(decoder.recorded)).results;
  const { rowLoss, rowCorrect } = decoder.planned.built.loss!;
  return { taught, rowLoss: results.f32(rowLoss), rowCorrect: results.u32(rowCorrect) };
}

const tokensOf = (rows: readonly GeneratedRow[]) => rows.map((row) => [...row.tokenIds]);

// Untied: with a tied head an untrained model repeats its input for ever.
for (const [changes, precision] of [
  [{ tie_word_embeddings: false }, "f32"],
  [{ num_heads: 1, num_decoder_layers: 4, num_sparse_decoder_layers: 2 }, "f32"],
  [{ tie_word_embeddings: false, d_model: 16, d_ff: 24, d_kv: 8, num_heads: 2 }, "mixed"],
] as const)
  test(`greedy decoding over the cache is what teacher forcing predicts (${precision}, ${JSON.stringify(changes)})`, async () => {
    const run = await open(changes, undefined, precision);
    const rows = tokensOf(await generated(run, { kind: "greedy" }));
    assert.equal(rows[3], [], "an empty row generates nothing");
    assert.ok(rows.slice(0, 3).every((row) => row.length === LENGTHS.target || row.at(-1) === 1));
    const { rowCorrect, taught } = await teach(run, rows);
    assert.equal([...rowCorrect], [...taught.decoderMask], "every generated token is the most probable one");
    run.close();
  });

test("one beam is greedy", async () => {
  const run = await open({ tie_word_embeddings: false });
  const one = await generated(run, { kind: "beam", beams: 1, lengthPenalty: 1 });
  assert.equal(tokensOf(one), tokensOf(await generated(run, { kind: "greedy" })));
  run.close();
});

test("a beam's score is the log-probability teacher forcing gives its tokens, also where beams changed places", async () => {
  let overtaken = 0;
  for (const changes of [{ num_heads: 1 }, { d_ff: 16 }, { num_heads: 2, tie_word_embeddings: false }, { d_kv: 3 }]) {
    const run = await open(changes);
    const rows = await generated(run, { kind: "beam", beams: 5, lengthPenalty: 1 });
    overtaken += rows.filter((row) => new Set(row.rows).size > 1).length;
    const rowLoss = (await teach(run, tokensOf(rows))).rowLoss;
    for (const row of [0, 1, 2]) {
      const { score, tokenIds } = rows[row];
      const losses = rowLoss.subarray(row * LENGTHS.target, row * LENGTHS.target + tokenIds.length);
      const expected = -losses.reduce((a, b) => a + b, 0) / tokenIds.length;
      // Two f32 forward passes of a few layers, added up over at most nine tokens.
      assert.ok(Math.abs(score! - expected) < 1e-4, `row ${row}: ${score} is not ${expected}`);
    }
    run.close();
  }
  assert.ok(overtaken > 0, "no beam was overtaken, so no cache was reordered");
});

test("sampling repeats with its seed, varies with it, and is greedy when cold", async () => {
  const run = await open({ tie_word_embeddings: false });
  const sample = async (seed: number, temperature = 2, topP = 1) =>
    tokensOf(await generated(run, { kind: "sample", temperature, topP, seed }));
  assert.equal(await sample(1), await sample(1));
  assert.not.equal(await sample(1), await sample(2));
  const greedy = tokensOf(await generated(run, { kind: "greedy" }));
  assert.equal(await sample(1, 1e-3), greedy);
  assert.equal(await sample(1, 2, 1e-6), greedy, "a nucleus of one token");
  run.close();
});

test("a generation's memory is freed after it and refused when it does not fit", async () => {
  const run = await open();
  const before = device.allocatedBytes;
  await generated(run, { kind: "beam", beams: 3, lengthPenalty: 1 });
  assert.is(device.allocatedBytes, before);
  const needed = run.cost.peakBytes;
  run.close();
  const tight = await open({}, () => needed + 100);
  const opened = device.allocatedBytes;
  try {
    await generated(tight, { kind: "beam", beams: 16, lengthPenalty: 1 });
    assert.unreachable();
  } catch (error) {
    assert.instance(error, MemoryError);
  }
  assert.is(device.allocatedBytes, opened, "nothing is left half-made");
  tight.close();
});

test("a generation whose largest tensor exceeds a binding is refused with both sizes", async () => {
  const run = await open();
  const { capabilities } = device;
  const limited = (maxStorageBufferBindingSize: number) => ({
    ...capabilities,
    limits: { ...capabilities.limits, maxStorageBufferBindingSize },
  });
  const request = {
    model: run.source.model,
    config: run.config,
    lengths: LENGTHS,
    beams: 2,
    readLogits: true,
    runBytes: 0,
  };
  const plan = (bytes: number) => planDecoderWithin({ ...request, capabilities: limited(bytes) });
  // Arenas of parameters are no larger than a binding; only what lies in them can be.
  const { tensors } = plan(2 ** 30).step.lowered.graph;
  const largest = Math.max(...tensors.filter((t) => t.role !== "parameter" || t.part).map(tensorBytes));
  assert.is(plan(largest).shape.rows, 2 * SIZE);
  try {
    plan(largest - 1);
    assert.unreachable();
  } catch (error) {
    assert.instance(error, MemoryError);
    const { neededBytes, availableBytes } = error as MemoryError;
    assert.equal([neededBytes, availableBytes], [largest, largest - 1]);
  }
  run.close();
});

test.run();
