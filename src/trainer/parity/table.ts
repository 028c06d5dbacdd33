// The worst error of each quantity against its limit, as a table and a verdict.

export interface Row {
  readonly quantity: string;
  /** Tensors (or scalars) compared. */
  readonly count: number;
  readonly worst: number;
  readonly limit: number;
  /** Which tensor is the worst. */
  readonly where: string;
}

/** Collects comparisons; equal quantities share a row that shows the worst of them. */
export class ErrorTable {
  readonly #rows = new Map<string, Row>();

  /** Adds a measured error; NaN counts as infinitely wrong. */
  add(quantity: string, where: string, error: number, limit: number): void {
    const value = Number.isNaN(error) ? Number.POSITIVE_INFINITY : error;
    const row = this.#rows.get(quantity);
    const worse = !row || value > row.worst;
    this.#rows.set(quantity, {
      quantity,
      limit,
      count: (row?.count ?? 0) + 1,
      worst: worse ? value : row.worst,
      where: worse ? where : row.where,
    });
  }

  /** ‖actual − expected‖ / ‖expected‖; where expected is all zeros, 0 if actual is too and infinite if not. */
  compare(
    quantity: string,
    where: string,
    actual: ArrayLike<number>,
    expected: ArrayLike<number>,
    limit: number,
  ): void {
    this.add(quantity, where, actual.length === expected.length ? relativeError(actual, expected) : Infinity, limit);
  }

  get rows(): readonly Row[] {
    return [...this.#rows.values()];
  }

  get failures(): readonly Row[] {
    return this.rows.filter((row) => !(row.worst <= row.limit));
  }
}

export function relativeError(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  let difference = 0;
  let norm = 0;
  for (let i = 0; i < expected.length; i++) {
    difference += (actual[i] - expected[i]) ** 2;
    norm += expected[i] ** 2;
  }
  if (norm === 0) return difference === 0 ? 0 : Number.POSITIVE_INFINITY;
  return Math.sqrt(difference / norm);
}

/** The table as text, numbers right-aligned. */
export function formatTable(rows: readonly Row[]): string {
  const header = ["quantity", "compared", "worst error", "limit", "", "worst in"];
  const cells = rows.map((r) => [
    r.quantity,
    String(r.count),
    r.worst.toExponential(2),
    r.limit === 0 ? "exact" : r.limit.toExponential(0),
    r.worst <= r.limit ? "ok" : "FAILED",
    r.where,
  ]);
  const widths = header.map((_, i) => Math.max(...[header, ...cells].map((line) => line[i].length)));
  const right = new Set([1, 2, 3]);
  return [header, ...cells]
    .map((line) =>
      line
        .map((cell, i) => (right.has(i) ? cell.padStart(widths[i]) : cell.padEnd(widths[i])))
        .join("  ")
        .trimEnd(),
    )
    .join("\n");
}
