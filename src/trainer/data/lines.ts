// A file as lines, read in chunks: nothing holds the whole file, and a line has a limit so that a file without newlines
// cannot fill the memory.

import { open } from "node:fs/promises";

const MAX_LINE_BYTES = 1 << 20;
const NEWLINE = 0x0a;

async function* fileChunks(path: string): AsyncGenerator<Uint8Array> {
  const file = await open(path, "r");
  try {
    while (true) {
      const chunk = new Uint8Array(1 << 16);
      const { bytesRead } = await file.read(chunk, 0, chunk.length);
      if (bytesRead === 0) return;
      yield chunk.subarray(0, bytesRead);
    }
  } finally {
    await file.close();
  }
}

/** Lines without their newline; a line over the limit comes as undefined. */
async function* splitLines(
  chunks: Iterable<Uint8Array> | AsyncIterable<Uint8Array>,
): AsyncGenerator<Uint8Array | undefined> {
  let parts: Uint8Array[] = []; // of the line that is not complete yet
  let length = 0;
  const line = (): Uint8Array | undefined => {
    if (length > MAX_LINE_BYTES) return undefined;
    const bytes = new Uint8Array(length);
    let offset = 0;
    for (const part of parts) {
      bytes.set(part, offset);
      offset += part.length;
    }
    return bytes;
  };
  for await (const chunk of chunks) {
    for (let start = 0; start < chunk.length; ) {
      const newline = chunk.indexOf(NEWLINE, start);
      const part = chunk.subarray(start, newline < 0 ? chunk.length : newline);
      length += part.length;
      if (length <= MAX_LINE_BYTES) parts.push(part);
      else parts = [];
      if (newline < 0) break;
      yield line();
      parts = [];
      length = 0;
      start = newline + 1;
    }
  }
  if (length > 0) yield line();
}

/** A line's text without its newline and the file's byte order mark, or what is wrong with it. */
export type Line =
  | { readonly number: number; readonly text: string }
  | { readonly number: number; readonly problem: string };

/** Numbered (from 1) lines of UTF-8. @param source a path, or the file's bytes */
export async function* readLines(source: string | Uint8Array): AsyncGenerator<Line> {
  const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  let number = 0;
  for await (const bytes of splitLines(typeof source === "string" ? fileChunks(source) : [source])) {
    number++;
    if (!bytes) {
      yield { number, problem: `is longer than ${MAX_LINE_BYTES} bytes` };
      continue;
    }
    let text: string;
    try {
      text = utf8.decode(bytes);
    } catch {
      yield { number, problem: "is not UTF-8" };
      continue;
    }
    yield { number, text: number === 1 && text.startsWith("\ufeff") ? text.slice(1) : text };
  }
}
