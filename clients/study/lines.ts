// A file of one JSON object a line that only grows. A line is on the disk before it counts: a client or a machine that dies
// while writing leaves at most a torn last line, which the next opening cuts off.

import { open, readFile } from "node:fs/promises";

export interface Lines<T> {
  /** What the file held when it was opened. */
  readonly read: readonly T[];
  /** Writes a line; resolves when it is on the disk. Lines are written one after another. */
  append(value: T): Promise<void>;
  close(): Promise<void>;
}

/** @throws Error when a line before the last is no JSON: the file is not one of these */
export async function openLines<T>(path: string): Promise<Lines<T>> {
  const before = await readFile(path, "utf8").catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return "";
    throw error;
  });
  const whole = before.slice(0, before.lastIndexOf("\n") + 1);
  const read = whole.split("\n").flatMap((line, i): T[] => {
    if (line === "") return [];
    try {
      return [JSON.parse(line) as T];
    } catch {
      throw new Error(`${path}:${i + 1} is no JSON`);
    }
  });
  const file = await open(path, "a");
  if (whole.length < before.length) await file.truncate(new TextEncoder().encode(whole).length);
  let written: Promise<void> = Promise.resolve();
  return {
    read,
    append: (value) => {
      written = written.then(async () => {
        await file.appendFile(`${JSON.stringify(value)}\n`);
        await file.sync();
      });
      return written;
    },
    close: () => file.close(),
  };
}
