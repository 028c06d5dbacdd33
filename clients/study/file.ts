// A study file on disk with what it points to: the folders of data and models beside it are looked up and digested, so that
// a cell of other data is another cell.

import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { readdir, readFile } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { type Mistake, mistakesText, readText } from "./fields.ts";
import { isDatasetFolder, isModelFolder, type StudyFile, studyFile } from "./schema.ts";

/** Files to upload, and a digest of their contents. */
export interface LocalFolder {
  readonly directory: string;
  /** Names in the folder. */
  readonly files: readonly string[];
  /** 8 hexadecimal digits. */
  readonly digest: string;
}

export interface Study extends StudyFile {
  /** By name of the task, where its dataset is a folder. */
  readonly datasets: Readonly<Record<string, LocalFolder>>;
  /** By name of the model, where its source is a folder to upload. */
  readonly folders: Readonly<Record<string, LocalFolder>>;
}

/** Everything wrong with a study file. */
export class StudyFileError extends Error {
  readonly mistakes: readonly Mistake[];
  constructor(path: string, mistakes: readonly Mistake[]) {
    const lines = mistakesText(mistakes).replaceAll(/^/gm, `  ${path}:`);
    super(`${path} has ${mistakes.length === 1 ? "a mistake" : `${mistakes.length} mistakes`}:\n${lines}`);
    this.mistakes = mistakes;
  }
}

/**
 * @param claims ids of the claims that a study may name
 * @throws StudyFileError with every mistake; Error when a file cannot be read
 */
export async function readStudy(path: string, claims: readonly string[]): Promise<Study> {
  const folder = dirname(resolve(path));
  const { value, mistakes } = readText(await readFile(path, "utf8"), studyFile(claims, folder));
  if (!value || mistakes.length > 0) throw new StudyFileError(path, mistakes);
  const datasets: Record<string, LocalFolder> = {};
  for (const { name, dataset } of value.tasks) {
    if (!isDatasetFolder(dataset)) continue;
    datasets[name] = await localFolder(resolve(folder, dataset), /^(train|validation|test)\.jsonl$/);
  }
  const folders: Record<string, LocalFolder> = {};
  for (const { name, source } of value.models) {
    if (isModelFolder(source)) folders[name] = await localFolder(resolve(folder, source), MODEL_FILE);
  }
  return { ...value, datasets, folders };
}

/** What uploadModel sends. */
const MODEL_FILE = /\.(json|safetensors|model|txt)$/;

async function localFolder(directory: string, wanted: RegExp): Promise<LocalFolder> {
  const files = (await readdir(directory)).filter((name) => wanted.test(name)).sort();
  const hash = createHash("sha256");
  for (const name of files) {
    hash.update(`${name}\0`);
    for await (const piece of createReadStream(join(directory, name))) hash.update(piece as Uint8Array);
  }
  return { directory, files, digest: hash.digest("hex").slice(0, 8) };
}
