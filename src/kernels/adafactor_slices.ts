// The table by which Adafactor's few dispatches serve all tensors. As in slices.ts a workgroup finds its slice by binary
// search; what counts the workgroups differs from kernel to kernel: rows, blocks of columns, or chunks of elements.

import { CHUNK } from "./reduce.ts";

/** Rows of which a thread sums one column. */
export const ROW_BLOCK = 64;
/** Columns of a workgroup. */
export const COLUMNS = 64;

/** WGSL: one row of the table. Offsets in elements. */
export const SLICE_STRUCT = /* wgsl */ `
struct Slice {
  parameter: u32,
  gradient: u32,
  rows: u32,
  columns: u32,
  row: u32,    // in the rows' moments, or in v
  column: u32, // in the columns' moments
  scalar: u32,
  column_sums: u32,
  first_row: u32,
  first_column_block: u32,
  first_column: u32,
  first_chunk: u32,
}
`;

/** A trainable matrix, or another tensor as a matrix of one row. Offsets in elements. */
export interface AdafactorSlice {
  readonly parameter: number;
  readonly gradient: number;
  readonly rows: number;
  readonly columns: number;
  /** Of its row moments; of its v, where it is not factored. */
  readonly row: number;
  /** Of its column moments. */
  readonly column: number;
  /** Row of `scalars`. */
  readonly scalar: number;
}

export interface AdafactorTable {
  /** The buffer `slices` of the kernels. */
  readonly slices: Uint32Array<ArrayBuffer>;
  /** The buffer `tensors`. */
  readonly tensors: Uint32Array<ArrayBuffer>;
  readonly sliceCount: number;
  readonly tensorCount: number;
  /** Workgroups of each kind of kernel. */
  readonly rowCount: number;
  readonly columnBlockCount: number;
  readonly columnGroupCount: number;
  readonly chunkCount: number;
  /** f32 elements of the scratch buffers; the last two are used where slices are factored. */
  readonly scratch: Readonly<Record<"partials" | "steps" | "rowMean" | "columnSums", number>>;
}

/** The table of tensors, each a list of slices that have elements. */
export function adafactorTable(tensors: readonly (readonly AdafactorSlice[])[]): AdafactorTable {
  const sliceRows: number[] = [];
  const tensorRows: number[] = [];
  let [sliceCount, columnSums, rowCount, columnBlockCount, columnGroupCount, chunkCount] = [0, 0, 0, 0, 0, 0];
  for (const members of tensors) {
    const [firstSlice, firstChunk] = [sliceCount, chunkCount];
    let size = 0;
    for (const { parameter, gradient, rows, columns, row, column, scalar } of members) {
      sliceRows.push(parameter, gradient, rows, columns, row, column, scalar);
      sliceRows.push(columnSums, rowCount, columnBlockCount, columnGroupCount, chunkCount);
      const blocks = Math.ceil(rows / ROW_BLOCK);
      const groups = Math.ceil(columns / COLUMNS);
      sliceCount++;
      columnSums += blocks * columns;
      rowCount += rows;
      columnBlockCount += blocks * groups;
      columnGroupCount += groups;
      chunkCount += Math.ceil((rows * columns) / CHUNK);
      size += rows * columns;
    }
    tensorRows.push(firstSlice, sliceCount - firstSlice, firstChunk, chunkCount - firstChunk, size);
  }
  return {
    slices: Uint32Array.from(sliceRows),
    tensors: Uint32Array.from(tensorRows),
    sliceCount,
    tensorCount: tensors.length,
    rowCount,
    columnBlockCount,
    columnGroupCount,
    chunkCount,
    scratch: { partials: 2 * chunkCount, steps: 2 * sliceCount, rowMean: sliceCount, columnSums },
  };
}
