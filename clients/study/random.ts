// Seeded random numbers for resampling: the same seed draws the same resamples, so that a report depends on its results
// alone. Not for secrets.

/**
 * A sequence of integers in [0, below). The generator is mulberry32 (Tommy Ettinger, public domain), which passes gjrand's
 * tests; its period of 2³² is far above the draws of a report.
 *
 * @param seed any integer; its low 32 bits count
 */
export function randomIntegers(seed: number): (below: number) => number {
  let state = seed | 0;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return Math.floor((((t ^ (t >>> 14)) >>> 0) / 2 ** 32) * below);
  };
}
