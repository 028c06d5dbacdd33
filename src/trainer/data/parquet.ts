// A Parquet file's rows as JSON Lines: one JSON object a row, of the columns asked for, a null being a field that is not
// there. Read one row group after another through hyparquet, which inflates Snappy itself; gzip and Brotli are Node's.
//
// Not to be called on a file of a stranger's from a thread that others wait for: hyparquet does not end on every damaged
// file. parquet_reader.ts runs this in a thread that can be ended.

import { Buffer } from "node:buffer";
import { type FileHandle, open } from "node:fs/promises";
import { brotliDecompressSync, gunzipSync } from "node:zlib";
import { type AsyncBuffer, type Compressors, parquetMetadataAsync, parquetReadObjects, parquetSchema } from "hyparquet";
import { inputError } from "../formats/problems.ts";
import { InputError } from "../types.ts";

/** Decoded bytes and rows of one row group, as the file declares them. */
const MAX_ROW_GROUP_BYTES = 1 << 30;
const MAX_ROW_GROUP_ROWS = 1 << 24;
/** Rows written at a time. */
const CHUNK_ROWS = 1024;

/** What is read of a file. */
export interface ParquetColumns {
  /** Columns to read, where the file has them. */
  readonly read: readonly string[];
  /** Lists of columns, of which one must be there in full. */
  readonly required: readonly (readonly string[])[];
}

/** The size a page declares bounds what is inflated. */
const compressors: Compressors = {
  GZIP: (bytes, length) => gunzipSync(bytes, { maxOutputLength: length }),
  BROTLI: (bytes, length) => brotliDecompressSync(bytes, { maxOutputLength: length }),
};

/** 64-bit integers come as BigInt, lists of integers as an array or a typed array. */
function plainValue(value: unknown): unknown {
  if (typeof value === "bigint") return Number(value);
  if (ArrayBuffer.isView(value)) return Array.from(value as unknown as ArrayLike<unknown>, plainValue);
  if (Array.isArray(value)) return value.map(plainValue);
  if (typeof value !== "object" || value === null || value instanceof Date) return value;
  return withoutNulls(value);
}

const withoutNulls = (fields: object): Record<string, unknown> =>
  Object.fromEntries(
    Object.entries(fields)
      .filter(([, value]) => value !== null && value !== undefined)
      .map(([column, value]) => [column, plainValue(value)]),
  );

const list = (names: readonly string[]): string => names.map((name) => JSON.stringify(name)).join(" and ");

async function writeRows(
  file: AsyncBuffer,
  columns: ParquetColumns,
  maxBytes: number,
  write: (text: string) => Promise<unknown>,
): Promise<void> {
  const metadata = await parquetMetadataAsync(file);
  const present = parquetSchema(metadata).children.map((column) => column.element.name);
  if (!columns.required.some((names) => names.every((name) => present.includes(name)))) {
    const has = present.map((name) => JSON.stringify(name)).join(", ") || "of none";
    throw inputError("", [`has the columns ${has}; examples need ${columns.required.map(list).join(", or ")}`]);
  }
  const read = columns.read.filter((column) => present.includes(column));
  let rowStart = 0;
  let bytes = 0;
  for (const group of metadata.row_groups) {
    const rows = Number(group.num_rows);
    if (group.total_byte_size > MAX_ROW_GROUP_BYTES || rows > MAX_ROW_GROUP_ROWS) {
      const limits = `${MAX_ROW_GROUP_BYTES} bytes or ${MAX_ROW_GROUP_ROWS} rows`;
      throw inputError("", [`has a row group of more than ${limits}; write it in smaller ones`]);
    }
    const range = { rowStart, rowEnd: rowStart + rows };
    const found = await parquetReadObjects({ file, metadata, columns: read, compressors, ...range });
    if (found.length !== rows) throw new Error(`a row group of ${rows} rows holds ${found.length}`);
    for (let first = 0; first < rows; first += CHUNK_ROWS) {
      const chunk = found.slice(first, first + CHUNK_ROWS);
      const text = chunk.map((row) => `${JSON.stringify(withoutNulls(row))}\n`).join("");
      bytes += Buffer.byteLength(text);
      // A page that says a value once for a million rows: the file's own size says nothing about this one.
      if (bytes > maxBytes) throw inputError("", [`holds more than ${maxBytes} bytes as JSON Lines`]);
      await write(text);
    }
    rowStart += rows;
  }
}

/**
 * Writes the rows of the file at `source` into a new file at `target`, row n as line n.
 *
 * @param maxBytes of the new file
 * @throws InputError with the one problem that the file is no readable Parquet, has not the columns, or has too many rows;
 *   the system's error where a file cannot be read or written
 */
export async function parquetToJsonl(
  source: string,
  target: string,
  columns: ParquetColumns,
  maxBytes: number,
): Promise<void> {
  const input = await open(source, "r");
  try {
    const output = await open(target, "wx");
    try {
      await convert(input, output, columns, maxBytes);
    } finally {
      await output.close();
    }
  } finally {
    await input.close();
  }
}

async function convert(
  input: FileHandle,
  output: FileHandle,
  columns: ParquetColumns,
  maxBytes: number,
): Promise<void> {
  // Reading and writing fail only for what the system says; everything else thrown below is about the file's content.
  let systemError: unknown;
  const system = <T>(call: Promise<T>): Promise<T> =>
    call.catch((error) => {
      systemError = error;
      throw error;
    });
  const byteLength = (await input.stat()).size;
  const read = async (start: number, end: number): Promise<ArrayBuffer> => {
    if (!(start >= 0 && start <= end && end <= byteLength)) throw new Error("it points outside itself");
    const bytes = new Uint8Array(end - start);
    for (let done = 0; done < bytes.length; ) {
      const { bytesRead } = await system(input.read(bytes, done, bytes.length - done, start + done));
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
  try {
    await writeRows({ byteLength, slice }, columns, maxBytes, (text) => system(output.appendFile(text)));
  } catch (error) {
    if (error instanceof InputError || error === systemError) throw error;
    throw inputError("", [`is not a readable Parquet file: ${(error as Error).message}`]);
  }
}
