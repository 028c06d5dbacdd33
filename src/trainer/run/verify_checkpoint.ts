// Whether a checkpoint of a run is as it was written: every file there, and the bytes of every tensor and of every other
// file those of its checksum. Asked before a run goes on from it, so that the run can go on from the one before it instead.

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { openSafetensors } from "../formats/safetensors.ts";
import { InputError } from "../types.ts";
import { damagedFiles } from "./file_checksums.ts";

const JSON_FILES = ["config.json", "training.json"];

/** The checkpoint is not as it was written; the message names every file and tensor that is wrong. */
export class DamagedCheckpointError extends Error {
  override readonly name = "DamagedCheckpointError";
}

/**
 * Reads all of a checkpoint, a tensor at a time.
 * @throws DamagedCheckpointError; errors of the disk pass through
 */
export const verifyCheckpoint = (directory: string): Promise<void> => verify(directory, true);

/**
 * Reads what of a checkpoint is no tensor.
 * @throws DamagedCheckpointError; errors of the disk pass through
 */
export const verifyCheckpointFiles = (directory: string): Promise<void> => verify(directory, false);

async function verify(directory: string, tensors: boolean): Promise<void> {
  const model = await check(join(directory, "model.safetensors"), tensors);
  const optimizer = await check(join(directory, "optimizer.safetensors"), tensors);
  const files = new Map([...(await damagedFiles(directory, optimizer.metadata)), ...(await unreadable(directory))]);
  const problems = [...files].map(([name, what]) => `${name} ${what}`);
  problems.push(...model.problems, ...optimizer.problems);
  if (problems.length > 0) throw new DamagedCheckpointError(problems.join("; "));
}

/** What is wrong with the files without which there is no checkpoint, by name. */
async function unreadable(directory: string): Promise<Map<string, string>> {
  const wrong = new Map<string, string>();
  for (const name of JSON_FILES) {
    try {
      JSON.parse(await readFile(join(directory, name), "utf8"));
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code !== undefined && code !== "ENOENT") throw error;
      wrong.set(name, code ? "is missing" : "is not JSON");
    }
  }
  return wrong;
}

/** Every message about the file and, with `tensors`, about them; and its metadata, nothing when it does not open. */
async function check(
  path: string,
  tensors: boolean,
): Promise<{ readonly problems: string[]; readonly metadata: Readonly<Record<string, string>> }> {
  const messages = async (work: Promise<unknown>): Promise<string[]> => {
    try {
      await work;
      return [];
    } catch (error) {
      if (error instanceof InputError) return error.problems.map(({ message }) => message);
      throw error;
    }
  };
  const opening = openSafetensors(path);
  const unreadable = await messages(opening);
  if (unreadable.length > 0) return { problems: unreadable, metadata: {} };
  const file = await opening;
  try {
    const problems: string[] = [];
    for (const name of tensors ? file.tensors.keys() : []) problems.push(...(await messages(file.read(name))));
    return { problems, metadata: file.metadata };
  } finally {
    await file.close();
  }
}
