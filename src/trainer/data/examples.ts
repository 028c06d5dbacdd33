// A data file in either format. The content decides, not the name; the name only tells what a file that is neither was
// meant to be.

import { open } from "node:fs/promises";
import { type Example, parseJsonl } from "./jsonl.ts";
import { parseParquet } from "./parquet.ts";

/** The first (and last) four bytes of a Parquet file: "PAR1". */
const PARQUET_MAGIC = [0x50, 0x41, 0x52, 0x31];

/** True for Parquet, false for JSON Lines. */
async function isParquet(path: string): Promise<boolean> {
  const file = await open(path, "r");
  try {
    const start = new Uint8Array(PARQUET_MAGIC.length);
    await file.read(start, 0, start.length, 0);
    return PARQUET_MAGIC.every((byte, i) => start[i] === byte) || path.endsWith(".parquet");
  } finally {
    await file.close();
  }
}

/**
 * Reads a JSON Lines or Parquet file.
 *
 * @param name what errors call the file; "" to give only lines or rows
 * @throws InputError as `parseJsonl` and `parseParquet` do
 */
export async function parseExamples(path: string, name = ""): Promise<Example[]> {
  return (await isParquet(path)) ? parseParquet(path, name) : parseJsonl(path, name);
}
