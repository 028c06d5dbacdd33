// An order drawn from several sources, each in proportion to its size, or to a cap where it is larger (Raffel et al. 2020,
// §3.5.2: "examples-proportional mixing", K the cap). As in order.ts the order is a function of the seed alone.
//
// Positions come in rounds. A round holds min(size, cap) positions of every source, shuffled; so proportions are exact
// once a round, and how many positions a source had before any position follows without going through them. The k-th
// draw of a source is the k-th of its own endless sequence of epochs, whatever the others do: no example comes again
// before its source has been gone through.

import type { ExampleOrder } from "./order.ts";
import { randomPermutation, randomU32 } from "./random.ts";

/** What an order draws from. */
export interface MixedSource {
  /** Examples, at least one. */
  readonly size: number;
  /** How often each is there under an id of its own; epoch after epoch takes another (plain_text.ts). At least one. */
  readonly variants: number;
}

/** Stream of a run's seed that the seeds below come from; no epoch gets so far. */
const SEEDS = 0xffffffff;

/**
 * Shuffled examples without end. Ids count through the sources one after another, in each through its examples variant by
 * variant. One source alone, not capped, comes in the order of `shuffledOrder`.
 *
 * @param options.cap at most so many examples of a source count; none unless given
 */
export function mixtureOrder(
  sources: readonly MixedSource[],
  seed: number,
  options: { readonly cap?: number } = {},
): ExampleOrder {
  const cap = options.cap ?? Number.POSITIVE_INFINITY;
  if (sources.length === 0 || sources.some(({ size }) => !(size >= 1)) || !(cap >= 1)) {
    throw new RangeError("a mixture needs sources with examples, and a cap of at least one");
  }
  let firstId = 0;
  const states = sources.map(({ size, variants }, index) => {
    const state = {
      size,
      variants,
      /** Positions in a round. */
      share: Math.min(size, Math.floor(cap)),
      firstId,
      seed: index === 0 ? seed : randomU32(seed, SEEDS, index),
      epoch: -1,
      order: new Uint32Array(0),
    };
    firstId += size * variants;
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

  return (position) => {
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
    return state.firstId + (epoch % state.variants) * state.size + state.order[draw % state.size];
  };
}
