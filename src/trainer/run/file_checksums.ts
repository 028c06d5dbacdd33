// Checksums of a checkpoint's small files: config, training state, tokenizer. They have no header of their own to keep one
// in, so they stand in the metadata of optimizer.safetensors, which is written after them, as `file_sha256.NAME`. Tensors
// have theirs where they are (formats/safetensors_writer.ts).

import { createHash } from "node:crypto";
import { readdir, readFile } from "node:fs/promises";
import { basename, join } from "node:path";

const KEY = "file_sha256.";

const digest = async (path: string): Promise<string> =>
  createHash("sha256")
    .update(await readFile(path))
    .digest("hex");

/** The metadata entries of every file of a checkpoint that holds no tensors. */
export async function fileChecksums(directory: string): Promise<Record<string, string>> {
  const names = (await readdir(directory)).filter((name) => !name.endsWith(".safetensors")).sort();
  const entries = names.map(async (name) => [KEY + name, await digest(join(directory, name))] as const);
  return Object.fromEntries(await Promise.all(entries));
}

/**
 * What is wrong with the files, by name; a checkpoint of a version without these checksums has nothing wrong.
 * @param metadata of its optimizer.safetensors
 */
export async function damagedFiles(
  directory: string,
  metadata: Readonly<Record<string, string>>,
): Promise<Map<string, string>> {
  const wrong = new Map<string, string>();
  for (const [key, expected] of Object.entries(metadata)) {
    if (!key.startsWith(KEY)) continue;
    const name = basename(key.slice(KEY.length));
    try {
      if ((await digest(join(directory, name))) !== expected) {
        wrong.set(name, "is damaged: its bytes are not those written");
      }
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
      wrong.set(name, "is missing");
    }
  }
  return wrong;
}
