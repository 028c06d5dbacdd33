// A run that goes back when it diverges, and what it passes over: the batches it has seen since the place it goes back to.
// To go back to one place again and again is no progress, so the number of times is bounded; a new checkpoint is another
// place.

/** Times a run goes back to one place. */
export const MAX_ROLLBACKS = 3;

export interface Rollbacks {
  /**
   * The run diverged at `step` and is to go on from `place` (a checkpoint's name, or "" for its start) at step `placeStep`.
   * @returns how often it has gone back there, this time included; above {@link MAX_ROLLBACKS} it may not
   */
  diverged(place: string, placeStep: bigint, step: bigint): number;
  /** Steps' worth of batches to pass over when the run goes on from `place`. */
  passedOver(place: string): bigint;
}

/** Remembers the newest place only: a checkpoint knows what was passed over before it. */
export function trackRollbacks(): Rollbacks {
  let newest = { place: "", times: 0, passedOver: 0n };
  return {
    diverged(place, placeStep, step) {
      const before = newest.place === place ? newest : { times: 0, passedOver: 0n };
      newest = { place, times: before.times + 1, passedOver: before.passedOver + step - placeStep };
      return newest.times;
    },
    passedOver: (place) => (newest.place === place ? newest.passedOver : 0n),
  };
}
