// Text-to-text data as Parquet: the columns are the fields of the JSON Lines format (jsonl.ts), other columns are not
// read, and a null is a field that is not there. Read one row group after another through hyparquet, which inflates
// Snappy itself; gzip and Brotli are Node's. What is wrong with rows is reported at once, by row number and column; a
// file that is damaged as a whole is one error.

import { open } from "node:fs/promises";
import { brotliDecompressSync, gunzipSync } from "node:zlib";
import { type AsyncBuffer, type Compressors, parquetMetadataAsync, parquetReadObjects, parquetSchema } from "hyparquet";
import { inputError, problemList } from "../formats/problems.ts";
import { InputError } from "../types.ts";
import { type Example, parseExample } from "./jsonl.ts";

const TEXT_COLUMNS = ["input", "target"];
const TOKEN_COLUMNS = ["input_ids", "target_ids"];
const COLUMNS = [...TEXT_COLUMNS, ...TOKEN_COLUMNS, "id", "task"];
/** Decoded bytes and rows of one row group, as the file declares them. */
const MAX_ROW_GROUP_BYTES = 1 << 30;
const MAX_ROW_GROUP_ROWS = 1 << 24;

/** The size a page declares bounds what is inflated. */
const compressors: Compressors = {
  GZIP: (bytes, length) => gunzipSync(bytes, { maxOutputLength: length }),
  BROTLI: (bytes, length) => brotliDecompressSync(bytes, { maxOutputLength: length }),
};

/** 64-bit integers come as BigInt, lists of integers as an array or a typed array. */
function plainValue(value: unknown): unknown {
  if (typeof value === "bigint") return Number(value);
  if (ArrayBuffer.isView(value)) return Array.from(value as unknown as ArrayLike<unknown>, plainValue);
  return Array.isArray(value) ? value.map(plainValue) : value;
}

/** A row without its nulls. */
const fieldsOf = (row: Record<string, unknown>): Record<string, unknown> =>
  Object.fromEntries(
    Object.entries(row)
      .filter(([, value]) => value !== null && value !== undefined)
      .map(([column, value]) => [column, plainValue(value)]),
  );

async function readRows(file: AsyncBuffer, name: string): Promise<Example[]> {
  const metadata = await parquetMetadataAsync(file);
  const present = parquetSchema(metadata).children.map((column) => column.element.name);
  const columns = COLUMNS.filter((column) => present.includes(column));
  const has = (names: readonly string[]): boolean => names.every((column) => columns.includes(column));
  if (!has(TEXT_COLUMNS) && !has(TOKEN_COLUMNS)) {
    const listed = present.map((column) => JSON.stringify(column)).join(", ");
    throw inputError(name, [
      `has the columns ${listed || "of none"}; examples need "input" and "target", or "input_ids" and "target_ids"`,
    ]);
  }
  const problems = problemList(name);
  const examples: Example[] = [];
  let rowStart = 0;
  for (const group of metadata.row_groups) {
    const rows = Number(group.num_rows);
    if (group.total_byte_size > MAX_ROW_GROUP_BYTES || rows > MAX_ROW_GROUP_ROWS) {
      const limits = `${MAX_ROW_GROUP_BYTES} bytes or ${MAX_ROW_GROUP_ROWS} rows`;
      throw inputError(name, [`has a row group of more than ${limits}; write it in smaller ones`]);
    }
    const read = await parquetReadObjects({ file, metadata, columns, compressors, rowStart, rowEnd: rowStart + rows });
    if (read.length !== rows) throw new Error(`a row group of ${rows} rows holds ${read.length}`);
    read.forEach((row, i) => {
      const example = parseExample(fieldsOf(row), rowStart + i + 1);
      if (Array.isArray(example)) for (const problem of example) problems.add(`row ${rowStart + i + 1}: ${problem}`);
      else examples.push({ ...example, unit: "row" });
    });
    rowStart += rows;
  }
  if (examples.length === 0 && !problems.error()) problems.add("the file has no examples");
  const error = problems.error();
  if (error) throw error;
  return examples;
}

/**
 * Reads a Parquet file.
 *
 * @param name what errors call the file; "" to give only row numbers
 * @throws InputError with every problem (the first twenty in words), its row and its column; or with the one that the
 *   file is no readable Parquet, has not the columns, or no rows
 */
export async function parseParquet(path: string, name = ""): Promise<Example[]> {
  const handle = await open(path, "r");
  // Reading fails only for what the system says; everything else that is thrown below is about the file's content.
  let systemError: unknown;
  try {
    const byteLength = (await handle.stat()).size;
    const read = async (start: number, end: number): Promise<ArrayBuffer> => {
      if (!(start >= 0 && start <= end && end <= byteLength)) throw new Error("it points outside itself");
      const bytes = new Uint8Array(end - start);
      for (let done = 0; done < bytes.length; ) {
        const { bytesRead } = await handle.read(bytes, done, bytes.length - done, start + done).catch((error) => {
          systemError = error;
          throw error;
        });
        if (bytesRead === 0) throw new Error("it ended while it was read");
        done += bytesRead;
      }
      return bytes.buffer;
    };
    const slice = (start: number, end = byteLength): Promise<ArrayBuffer> => {
      const bytes = read(start < 0 ? byteLength + start : start, end);
      // hyparquet asks for several ranges at once and leaves the others alone when one fails.
      bytes.catch(() => {});
      return bytes;
    };
    return await readRows({ byteLength, slice }, name);
  } catch (error) {
    if (error instanceof InputError || error === systemError) throw error;
    throw inputError(name, [`is not a readable Parquet file: ${(error as Error).message}`]);
  } finally {
    await handle.close();
  }
}
