// What parts measure, as plain data, and as text.

/** One thing that was measured. */
export interface Row {
  readonly name: string;
  /** Column → figure; a column's name says its unit. */
  readonly figures: Readonly<Record<string, number | string>>;
  /**
   * The column by which the row is summed up, and compared with PyTorch's row of the same part and name: higher is better.
   */
  readonly rate?: string;
  /** Set where a result was off by more than its arithmetic allows. */
  readonly wrong?: boolean;
}

/** Three significant digits, whole numbers whole. */
export const figure = (value: number | string | undefined): string => {
  if (value === undefined) return "";
  if (typeof value === "string") return value;
  if (Number.isInteger(value) || Math.abs(value) >= 1000) return String(Math.round(value));
  return Math.abs(value) >= 1e-3 || value === 0 ? value.toPrecision(3) : value.toExponential(1);
};

/** Rows of cells in aligned columns: the first to the left, the others to the right. */
export function textTable(rows: readonly (readonly string[])[]): string {
  const widths = rows[0].map((_, column) => Math.max(...rows.map((cells) => cells[column].length)));
  const line = (cells: readonly string[]): string =>
    cells.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]) : cell.padStart(widths[i]))).join("  ");
  return rows.map((cells) => line(cells).trimEnd()).join("\n");
}

/** A part's rows, in the columns that any of them has. */
export function rowsTable(rows: readonly Row[]): string {
  const columns = [...new Set(rows.flatMap((row) => Object.keys(row.figures)))];
  const cells = rows.map((row) => [
    row.wrong ? `${row.name} WRONG` : row.name,
    ...columns.map((c) => figure(row.figures[c])),
  ]);
  return textTable([["", ...columns], ...cells]);
}
