// Rows of experts for tests of grouped products.

import { PADDING_ROW } from "../../src/kernels/grouped_matmul.ts";

/** Rows as the dispatch writes them, assignments scattered over the experts, and `unused` blocks behind them. */
export function layOut({ counts, rowTile, topK }: { counts: number[]; rowTile: number; topK: number }, unused = 2) {
  const total = counts.reduce((a, b) => a + b, 0);
  const tokens = Math.max(1, Math.ceil(total / topK));
  const expertOffset = new Uint32Array(counts.length + 1);
  counts.forEach((c, e) => {
    expertOffset[e + 1] = expertOffset[e] + Math.ceil(c / rowTile) * rowTile;
  });
  const usedRows = expertOffset[counts.length];
  const maxRows = usedRows + unused * rowTile;
  const sourceOfRow = new Uint32Array(maxRows).fill(PADDING_ROW);
  const expertOfBlock = new Uint32Array(maxRows / rowTile).fill(counts.length);
  // A stride coprime with the number of assignments visits each once, out of order.
  const stride = [7, 5, 3, 1].find((s) => total % s !== 0) ?? 1;
  let next = 0;
  counts.forEach((c, e) => {
    for (let r = 0; r < c; r++) sourceOfRow[expertOffset[e] + r] = (next++ * stride) % total;
    expertOfBlock.fill(e, expertOffset[e] / rowTile, expertOffset[e + 1] / rowTile);
  });
  const padding = [...sourceOfRow.keys()].filter((r) => sourceOfRow[r] === PADDING_ROW);
  return {
    tokens,
    padding,
    maxRows,
    usedRows,
    expertOffset,
    expertCount: Uint32Array.from(counts),
    sourceOfRow,
    expertOfBlock,
  };
}
