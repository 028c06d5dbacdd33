// Batches drawn from several sources, each in proportion to its size, or to a cap where it is larger (Raffel et al. 2020,
// §3.5.2: "examples-proportional mixing", K the cap). As in batches.ts the order is a function of (seed, step) alone.
//
// Positions come in rounds. A round holds min(size, cap) positions of every source, shuffled; so proportions are exact
// once a round, and how many positions a source had before any position follows without going through them. The k-th
// draw of a source is the k-th of its own endless sequence of epochs, whatever the others do: no example comes again
// before its source has been gone through.

import { type BatchShape, collate, type TrainingBatches } from "./batches.ts";
import type { EncodedExample } from "./dataset.ts";
import { randomPermutation, randomU32 } from "./random.ts";

/** Stream of a run's seed that the seeds below come from; no epoch gets so far. */
const SEEDS = 0xffffffff;

/**
 * Shuffled batches without end. A batch's example ids count through the sources one after another. One source alone, not
 * capped, comes in the order of `trainingBatches`.
 *
 * @param sources none of them empty
 * @param options.cap at most so many examples of a source count; none unless given
 */
export function mixtureBatches(
  sources: readonly (readonly EncodedExample[])[],
  shape: BatchShape,
  seed: number,
  options: { readonly cap?: number } = {},
): TrainingBatches {
  const cap = options.cap ?? Number.POSITIVE_INFINITY;
  if (sources.length === 0 || sources.some((source) => source.length === 0) || !(cap >= 1)) {
    throw new RangeError("a mixture needs sources with examples, and a cap of at least one");
  }
  const examples = sources.flat();
  let firstId = 0;
  const states = sources.map((source, index) => {
    const state = {
      size: source.length,
      /** Positions in a round. */
      share: Math.min(source.length, Math.floor(cap)),
      firstId,
      seed: index === 0 ? seed : randomU32(seed, SEEDS, index),
      epoch: -1,
      order: new Uint32Array(0),
    };
    firstId += source.length;
    return state;
  });
  const roundLength = states.reduce((sum, { share }) => sum + share, 0);
  const slots = states.flatMap(({ share }, source) => new Array<number>(share).fill(source));
  const mixSeed = randomU32(seed, SEEDS, 0);

  /** Of every position of a round, its source and how many of that source came before it in the round. */
  function roundOf(round: number): { round: number; source: Uint32Array; rank: Uint32Array } {
    const source = randomPermutation(roundLength, mixSeed, round).map((slot) => slots[slot]);
    const drawn = new Uint32Array(states.length);
    return { round, source, rank: source.map((s) => drawn[s]++) };
  }
  let cached = roundOf(0);

  function idAt(position: number): number {
    const round = Math.floor(position / roundLength);
    if (cached.round !== round) cached = roundOf(round);
    const within = position % roundLength;
    const state = states[cached.source[within]];
    const draw = round * state.share + cached.rank[within];
    const epoch = Math.floor(draw / state.size);
    if (state.epoch !== epoch) {
      state.epoch = epoch;
      state.order = randomPermutation(state.size, state.seed, epoch);
    }
    return state.firstId + state.order[draw % state.size];
  }

  return {
    batchAt(step) {
      const ids = Array.from({ length: shape.size }, (_, row) => idAt(step * shape.size + row));
      return collate(examples, ids, shape);
    },
  };
}
