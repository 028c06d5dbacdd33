// The end of a run: one line for each figure that sums a part up, beside PyTorch's where its twin has run.

import type { PartResult } from "./bench.ts";
import { figure, type Row, textTable } from "./rows.ts";

/** The best row of that name among the twins of a part. */
function twinOf(row: Row, part: string, results: readonly PartResult[]): Row | undefined {
  const rows = results.filter((r) => r.side === "reference" && r.name === part).flatMap((r) => r.rows);
  const value = (r: Row): number => Number(r.figures[row.rate!]);
  return rows.filter((r) => r.name === row.name).sort((a, b) => value(b) - value(a))[0];
}

/** Compared beside the rate where both sides have it: lower is better. */
const MEMORY = "peak GiB";

/** `part row  figure  unit  PyTorch  ratio` of every row that has a rate, its peak of memory below it. */
export function summaryTable(results: readonly PartResult[]): string {
  const lines = results
    .filter((r) => r.side === "thaw")
    .flatMap(({ name: part, rows }) =>
      rows
        .filter((row) => row.rate !== undefined)
        .flatMap((row) => {
          const twin = twinOf(row, part, results)?.figures;
          const name = `${part} ${row.name}${row.wrong ? " WRONG" : ""}`;
          const line = (unit: string): string[] => {
            const [ours, theirs] = [row.figures[unit], twin?.[unit]];
            const ratio = theirs === undefined ? "" : `${(Number(ours) / Number(theirs)).toFixed(2)}×`;
            return [name, figure(ours), unit, figure(theirs), ratio];
          };
          const memory = row.figures[MEMORY] !== undefined && twin?.[MEMORY] !== undefined;
          return memory ? [line(row.rate!), line(MEMORY)] : [line(row.rate!)];
        }),
    );
  const compared = lines.some((cells) => cells[3] !== "");
  const head = ["", "thaw", "", "PyTorch", "ratio"];
  const table = [head, ...lines].map((cells) => (compared ? cells : cells.slice(0, 3)));
  const unfinished = results.filter((r) => r.outcome !== "done");
  const said = unfinished.map((r) => `${r.name}${r.side === "reference" ? " (PyTorch)" : ""}: ${r.outcome}`);
  return [textTable(table), ...said].join("\n");
}
