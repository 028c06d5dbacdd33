// Packing: several examples in a row, so that short ones do not carry padding through the model. Examples are taken in
// the run's order and put, first fit, into the first of a few open rows that has room for both of their sequences.
//
// The order of rows must follow from a batch's index alone. It is cut into blocks of positions that are packed by
// themselves: which examples share a row depends on nothing before the block, and the number of a block's first row is
// the sum of the rows of those before it. A resumed run packs these once more on the host, a few million examples a
// second. Inside a block an example moves by no more than the open rows hold; blocks do not end with an epoch, so an
// example may come a few rows before the last ones of the epoch before it.

import { type BatchShape, collateRows, LENGTH_STEP, type Lengths } from "./batches.ts";
import type { EncodedExample } from "./dataset.ts";
import type { ExampleOrder, TrainingBatches } from "./order.ts";

/** Positions of the order that are packed together. */
const BLOCK = 1024;
/** Rows that still take examples; the one open longest is closed for another. */
const OPEN_ROWS = 16;

/** Tokens of each example, by id. Apart from the examples, which are too far from each other to be walked quickly. */
export interface TokenCounts {
  readonly inputs: Uint32Array;
  readonly targets: Uint32Array;
}

export const tokenCounts = (examples: readonly EncodedExample[]): TokenCounts => ({
  inputs: Uint32Array.from(examples, ({ inputIds }) => inputIds.length),
  targets: Uint32Array.from(examples, ({ labels }) => labels.length),
});

/** Rows of ids, in the order in which they were opened, that fit the shape's lengths. */
export function packRows(
  { inputs, targets }: TokenCounts,
  ids: readonly number[],
  { inputLength, targetLength }: Pick<BatchShape, "inputLength" | "targetLength">,
): number[][] {
  const rows: number[][] = [];
  const open: { ids: number[]; input: number; target: number }[] = [];
  for (const id of ids) {
    const [input, target] = [inputs[id], targets[id]];
    let row = open.find((r) => r.input + input <= inputLength && r.target + target <= targetLength);
    if (!row) {
      row = { ids: [], input: 0, target: 0 };
      if (open.length === OPEN_ROWS) open.shift();
      open.push(row);
      rows.push(row.ids);
    }
    row.ids.push(id);
    row.input += input;
    row.target += target;
  }
  return rows;
}

const blockOf = (order: ExampleOrder, block: number): number[] =>
  Array.from({ length: BLOCK }, (_, i) => order(block * BLOCK + i));

/** Lengths of a side that are tried. */
const TRIED = 24;

/**
 * Lengths of packed rows within `limits`, holding `longest`, the longest example. One side has its limit; the other is
 * shorter where that packs the first block into fewer positions: what fills rows first leaves the rest of them to padding.
 */
export function packedLengths(
  examples: readonly EncodedExample[],
  order: ExampleOrder,
  longest: Lengths,
  limits: Lengths,
): Lengths {
  const counts = tokenCounts(examples);
  const ids = blockOf(order, 0);
  const positions = ({ input, target }: Lengths) =>
    (input + target) * packRows(counts, ids, { inputLength: input, targetLength: target }).length;
  const between = (least: number, limit: number) => {
    const step = Math.ceil((limit - least) / TRIED / LENGTH_STEP) * LENGTH_STEP;
    return Array.from({ length: step && Math.ceil((limit - least) / step) }, (_, i) => least + i * step);
  };
  const tried = [
    ...between(longest.target, limits.target).map((target) => ({ ...limits, target })),
    ...between(longest.input, limits.input).map((input) => ({ ...limits, input })),
  ];
  return tried
    .map((lengths) => ({ lengths, cost: positions(lengths) }))
    .reduce((best, other) => (other.cost < best.cost ? other : best), { lengths: limits, cost: positions(limits) })
    .lengths;
}

/** Batches of `shape.size` packed rows; every example must fit a row. */
export function packedBatches(
  examples: readonly EncodedExample[],
  order: ExampleOrder,
  shape: BatchShape,
): TrainingBatches {
  const counts = tokenCounts(examples);
  /** Number of each block's first row; the last entry is of the first block that was never packed. */
  const firstRow = [0];
  let cached: { block: number; rows: number[][] } = { block: -1, rows: [] };

  function rowsOf(block: number): number[][] {
    if (cached.block !== block) {
      cached = { block, rows: packRows(counts, blockOf(order, block), shape) };
      firstRow[block + 1] = firstRow[block] + cached.rows.length;
    }
    return cached.rows;
  }

  function rowAt(row: number): number[] {
    while (firstRow[firstRow.length - 1] <= row) rowsOf(firstRow.length - 1);
    const block = firstRow.findLastIndex((first) => first <= row);
    return rowsOf(block)[row - firstRow[block]];
  }

  return {
    batchAt: (index) =>
      collateRows(
        examples,
        Array.from({ length: shape.size }, (_, row) => rowAt(index * shape.size + row)),
        shape,
      ),
  };
}
