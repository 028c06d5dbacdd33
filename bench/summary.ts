// The end of a run: one line for each figure that sums a part up, beside PyTorch's where its twin has run.

import type { PartResult } from "./bench.ts";
import { figure, type Row, textTable } from "./rows.ts";

/** The best row of that name among the twins of a part. */
function twinOf(row: Row, part: string, results: readonly PartResult[]): Row | undefined {
  const rows = results.filter((r) => r.side === "reference" && r.name === part).flatMap((r) => r.rows);
  const value = (r: Row): number => Number(r.figures[row.rate!]);
  return rows.filter((r) => r.name === row.name).sort((a, b) => value(b) - value(a))[0];
}

/** `part row  rate  PyTorch  ratio` of every row that has a rate. */
export function summaryTable(results: readonly PartResult[]): string {
  const lines = results
    .filter((r) => r.side === "thaw")
    .flatMap(({ name: part, rows }) =>
      rows
        .filter((row) => row.rate !== undefined)
        .map((row) => {
          const value = Number(row.figures[row.rate!]);
          const twin = twinOf(row, part, results)?.figures[row.rate!];
          const ratio = twin === undefined ? "" : `${(value / Number(twin)).toFixed(2)}×`;
          const name = `${part} ${row.name}${row.wrong ? " WRONG" : ""}`;
          return [name, figure(value), row.rate!, figure(twin), ratio];
        }),
    );
  const compared = lines.some((cells) => cells[3] !== "");
  const head = ["", "thaw", "", "PyTorch", "ratio"];
  const table = [head, ...lines].map((cells) => (compared ? cells : cells.slice(0, 3)));
  const unfinished = results.filter((r) => r.outcome !== "done");
  const said = unfinished.map((r) => `${r.name}${r.side === "reference" ? " (PyTorch)" : ""}: ${r.outcome}`);
  return [textTable(table), ...said].join("\n");
}
