/** Columns for how long something took, in milliseconds. */
export function quantiles(times: readonly number[]): Record<"p50, ms" | "p99, ms" | "max, ms", number> {
  const sorted = [...times].sort((a, b) => a - b);
  const at = (share: number): number => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? 0;
  const rounded = (ms: number): number => Number(ms.toFixed(3));
  return { "p50, ms": rounded(at(0.5)), "p99, ms": rounded(at(0.99)), "max, ms": rounded(at(1)) };
}
