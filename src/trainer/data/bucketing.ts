// Bucketing: batches of a few shapes, each holding examples of about its length, one a row. Every batch has the same
// number of rows, so a run's hyperparameters mean what they mean with padded batches.
//
// The order is cut into blocks of whole batches. A block's examples are sorted by bucket, keeping their order inside it,
// and cut into batches; a batch that reaches across two buckets has the larger one's shape. The block's batches then
// come in a random order, so that short and long take turns. A block is at most an epoch long, and everything follows
// from the seed and a batch's index.

import { type BatchShape, collate, type Lengths } from "./batches.ts";
import type { EncodedExample } from "./dataset.ts";
import type { ExampleOrder, TrainingBatches } from "./order.ts";
import { randomPermutation, randomU32 } from "./random.ts";

const MOST_BUCKETS = 4;
/** A further bucket must leave at most this share of the positions; every shape costs programs of its own. */
const WORTHWHILE = 0.97;
const BLOCK_BATCHES = 64;
/** Stream of a run's seed that the order of batches is drawn from; no epoch gets so far. */
const BATCH_ORDER = 0xfffffffe;

/** 4, 6, 8, 12, 16, 24 … below `longest`, and `longest`. */
function lengthSteps(longest: number): number[] {
  const steps: number[] = [];
  for (let power = 4; power < longest; power *= 2) steps.push(power, ...(power * 1.5 < longest ? [power * 1.5] : []));
  return [...steps, longest];
}

const fits = (a: Lengths, b: Lengths): boolean => a.input <= b.input && a.target <= b.target;
const positions = ({ input, target }: Lengths): number => input + target;

/**
 * The shapes, at most four, each longer than the one before, the last `longest`, that hold the examples in the fewest
 * positions; an example belongs to the first that holds it. Exact over pairs of lengths from a few steps.
 */
export function chooseBuckets(examples: readonly EncodedExample[], longest: Lengths): Lengths[] {
  const steps = { input: lengthSteps(longest.input), target: lengthSteps(longest.target) };
  const cells = steps.input.flatMap((input) => steps.target.map((target) => ({ input, target })));
  // How many examples each pair of steps holds: those of which it is the smallest, summed over smaller pairs.
  const smallest = new Map<string, number>();
  const key = ({ input, target }: Lengths) => `${input} ${target}`;
  for (const { inputIds, labels } of examples) {
    const cell = {
      input: steps.input.find((step) => step >= inputIds.length) ?? longest.input,
      target: steps.target.find((step) => step >= labels.length) ?? longest.target,
    };
    smallest.set(key(cell), (smallest.get(key(cell)) ?? 0) + 1);
  }
  const held = cells.map((cell) =>
    cells.reduce((n, other) => n + (fits(other, cell) ? (smallest.get(key(other)) ?? 0) : 0), 0),
  );
  // Best chain of buckets that ends in each cell, of one bucket, of two, …
  let chains = cells.map((cell, i) => ({ cost: held[i] * positions(cell), buckets: [cell] }));
  let best = chains[cells.length - 1];
  for (let count = 2; count <= MOST_BUCKETS; count++) {
    chains = cells.map((cell, i) => {
      let chain = chains[i];
      cells.forEach((smaller, j) => {
        if (j === i || !fits(smaller, cell)) return;
        const cost = chains[j].cost + (held[i] - held[j]) * positions(cell);
        if (cost < chain.cost) chain = { cost, buckets: [...chains[j].buckets, cell] };
      });
      return chain;
    });
    const last = chains[cells.length - 1];
    if (last.cost > WORTHWHILE * best.cost) break;
    best = last;
  }
  return best.buckets;
}

/** Batches of `shape.size` rows, each in one of the `buckets` of {@link chooseBuckets}. */
export function bucketedBatches(
  examples: readonly EncodedExample[],
  order: ExampleOrder,
  buckets: readonly Lengths[],
  shape: Omit<BatchShape, "inputLength" | "targetLength">,
  seed: number,
): TrainingBatches {
  const { size } = shape;
  const blockBatches = Math.max(1, Math.min(BLOCK_BATCHES, Math.floor(examples.length / size)));
  const batchSeed = randomU32(seed, BATCH_ORDER, 0);
  const bucketOf = examples.map(({ inputIds, labels }) =>
    buckets.findIndex((bucket) => fits({ input: inputIds.length, target: labels.length }, bucket)),
  );

  /** A block's batches in the order in which they come. */
  function blockOf(block: number): { block: number; batches: number[][] } {
    const begin = block * blockBatches * size;
    const ids = Array.from({ length: blockBatches * size }, (_, i) => order(begin + i));
    ids.sort((a, b) => bucketOf[a] - bucketOf[b]);
    const turns = randomPermutation(blockBatches, batchSeed, block);
    return { block, batches: Array.from(turns, (turn) => ids.slice(turn * size, (turn + 1) * size)) };
  }
  let cached = blockOf(0);

  return {
    batchAt(index) {
      const block = Math.floor(index / blockBatches);
      if (cached.block !== block) cached = blockOf(block);
      const ids = cached.batches[index % blockBatches];
      const { input, target } = buckets[Math.max(...ids.map((id) => bucketOf[id]))];
      return collate(examples, ids, { ...shape, inputLength: input, targetLength: target });
    },
  };
}
