// The order in which a run sees its examples: an endless sequence of epochs, each epoch its own permutation. Everything
// here follows from the run's seed and a step alone: a resumed run needs the step and nothing else, and no example is
// skipped or repeated at an epoch's end: the batch there reaches into the next epoch.

import { type Batch, type BatchShape, collate } from "./batches.ts";
import type { EncodedExample } from "./dataset.ts";
import { randomPermutation } from "./random.ts";

/** The id of the example at a position, 0 …; equal positions give equal ids, in any order of asking. */
export type ExampleOrder = (position: number) => number;

export interface TrainingBatches {
  /** Batch `index`, 0 …; equal indices give equal batches, in any order of asking. */
  batchAt(index: number): Batch;
}

/** The shuffled epochs of `length` examples, at least one. */
export function shuffledOrder(length: number, seed: number): ExampleOrder {
  let cached = { epoch: -1, order: new Uint32Array(0) };
  return (position) => {
    const epoch = Math.floor(position / length);
    if (cached.epoch !== epoch) cached = { epoch, order: randomPermutation(length, seed, epoch) };
    return cached.order[position % length];
  };
}

/** Batches of one shape, an example a row: batch `index` holds positions index·size … of the order. */
export const paddedBatches = (
  examples: readonly EncodedExample[],
  order: ExampleOrder,
  shape: BatchShape,
): TrainingBatches => ({
  batchAt: (index) =>
    collate(
      examples,
      Array.from({ length: shape.size }, (_, row) => order(index * shape.size + row)),
      shape,
    ),
});
