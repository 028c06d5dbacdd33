// How fast something grows, so that single high samples (a garbage collection that is due, a run that is being opened) count
// for little: the median of the slopes between all pairs of samples (Theil 1950, Sen 1968).

/** @param samples hours and values @returns per hour */
export function slope(samples: readonly (readonly [hours: number, value: number])[]): number {
  const slopes: number[] = [];
  for (const [i, [from, before]] of samples.entries()) {
    for (const [to, after] of samples.slice(i + 1)) slopes.push((after - before) / (to - from));
  }
  slopes.sort((a, b) => a - b);
  return slopes[slopes.length >> 1] ?? 0;
}
