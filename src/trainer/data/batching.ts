// A run's training batches by its choice of batching, and what they turned out to be.
//
//   padded     one example a row, every row as long as the longest example
//   packed     several examples a row; rows are as long as an example may be, where they fill so far (packing.ts)
//   bucketed   one example a row, batches of a few shapes (bucketing.ts)

import type { Batching, DataStatistics, Problem, RunConfig } from "../types.ts";
import { type BatchShape, LENGTH_STEP, type Lengths, NO_EXAMPLE } from "./batches.ts";
import { bucketedBatches, chooseBuckets } from "./bucketing.ts";
import type { EncodedExample } from "./dataset.ts";
import { type ExampleOrder, paddedBatches, type TrainingBatches } from "./order.ts";
import { packedBatches, packedLengths } from "./packing.ts";

export interface BatchingOptions extends Pick<BatchShape, "size" | "padTokenId" | "decoderStartTokenId"> {
  readonly batching: Batching;
  /** Lengths that no example exceeds. */
  readonly limits: Lengths;
  readonly seed: number;
}

export interface TrainingData extends Pick<DataStatistics, "padding" | "shapes"> {
  readonly batches: TrainingBatches;
}

/** Batches that shares are measured over, at most; an epoch of them where that is less. */
const MEASURED_BATCHES = 64;

/** Lengths that hold every example, within the limits. */
export function lengthsOf(examples: readonly EncodedExample[], limits: Lengths): Lengths {
  const padded = (tokens: number, limit: number) => Math.min(limit, Math.ceil(tokens / LENGTH_STEP) * LENGTH_STEP);
  const input = examples.reduce((n, e) => Math.max(n, e.inputIds.length), 1);
  const target = examples.reduce((n, e) => Math.max(n, e.labels.length), 1);
  return { input: padded(input, limits.input), target: padded(target, limits.target) };
}

/** Batches of `examples`, at least one, in `order`. */
export function trainingData(
  examples: readonly EncodedExample[],
  order: ExampleOrder,
  options: BatchingOptions,
): TrainingData {
  const { batching, limits, seed, ...fixed } = options;
  const longest = lengthsOf(examples, limits);
  const shape = ({ input, target }: Lengths) => ({ ...fixed, inputLength: input, targetLength: target });
  switch (batching) {
    case "padded":
      return measured(paddedBatches(examples, order, shape(longest)), [longest], examples.length);
    case "packed": {
      const lengths = packedLengths(examples, order, longest, limits);
      return measured(packedBatches(examples, order, shape(lengths)), [lengths], examples.length);
    }
    case "bucketed": {
      const buckets = chooseBuckets(examples, longest);
      return measured(bucketedBatches(examples, order, buckets, fixed, seed), buckets, examples.length);
    }
  }
}

/** Shares over the first epoch, of `epoch` examples. */
function measured(batches: TrainingBatches, shapes: readonly Lengths[], epoch: number): TrainingData {
  const counts = shapes.map(() => 0);
  let [seen, tokens, positions, index] = [0, 0, 0, 0];
  for (; seen < epoch && index < MEASURED_BATCHES; index++) {
    const batch = batches.batchAt(index);
    const { size, inputLength, targetLength } = batch;
    counts[shapes.findIndex(({ input, target }) => input === inputLength && target === targetLength)]++;
    seen += batch.exampleIds.filter((id) => id !== NO_EXAMPLE).length;
    positions += size * (inputLength + targetLength);
    for (const segments of [batch.inputSegments, batch.decoderSegments])
      tokens += segments.reduce((n, segment) => n + Number(segment !== 0), 0);
  }
  return {
    batches,
    shapes: shapes.map((lengths, i) => ({ ...lengths, share: counts[i] / index })),
    padding: 1 - tokens / positions,
  };
}

/** What of a routing supposes that a row is one example; fields are `routing.…`. */
export function packingProblems({ batching, routing }: Pick<RunConfig, "batching" | "routing">): Problem[] {
  if (batching !== "packed") return [];
  const problems: Problem[] = [];
  if (routing.group === "sequence")
    problems.push({ field: "routing.group", message: "`sequence` needs one example a row; packed rows hold several" });
  if (routing.routePadding)
    problems.push({
      field: "routing.route_padding",
      message: "reproduces models whose rows are padded; packed rows have hardly any padding",
    });
  return problems;
}
