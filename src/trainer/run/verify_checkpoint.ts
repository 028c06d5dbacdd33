// Whether a checkpoint of a run is as it was written: every file there, every tensor's bytes those of its checksum. Asked
// before a run goes on from it, so that the run can go on from the one before it instead.

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { openSafetensors } from "../formats/safetensors.ts";
import { InputError } from "../types.ts";

const JSON_FILES = ["config.json", "training.json"];
const TENSOR_FILES = ["model.safetensors", "optimizer.safetensors"];

/** The checkpoint is not as it was written; the message names every file and tensor that is wrong. */
export class DamagedCheckpointError extends Error {
  override readonly name = "DamagedCheckpointError";
}

/**
 * Reads all of a checkpoint, a tensor at a time.
 * @throws DamagedCheckpointError; errors of the disk pass through
 */
export async function verifyCheckpoint(directory: string): Promise<void> {
  const problems: string[] = [];
  for (const name of JSON_FILES) {
    try {
      JSON.parse(await readFile(join(directory, name), "utf8"));
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code !== undefined && code !== "ENOENT") throw error;
      problems.push(`${name} ${code ? "is missing" : "is not JSON"}`);
    }
  }
  for (const name of TENSOR_FILES) problems.push(...(await tensorProblems(join(directory, name))));
  if (problems.length > 0) throw new DamagedCheckpointError(problems.join("; "));
}

async function tensorProblems(path: string): Promise<string[]> {
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
  if (unreadable.length > 0) return unreadable;
  const file = await opening;
  try {
    const problems: string[] = [];
    for (const name of file.tensors.keys()) problems.push(...(await messages(file.read(name))));
    return problems;
  } finally {
    await file.close();
  }
}
