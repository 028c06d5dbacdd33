// A study file on disk with what it points to: the folders of data and models beside it are looked up and digested, so that
// a cell of other data is another cell.

import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { readdir, readFile } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { splitOfFile } from "../typescript/index.ts";
import { type Mistake, mistakesText, readText } from "./fields.ts";
import { isDatasetFolder, isModelFolder, isTaskFile, type StudyFile, type StudyTask, studyFile } from "./schema.ts";

/** Files to upload, and a digest of their contents. */
export interface LocalFolder {
  readonly directory: string;
  /** Names in the folder. */
  readonly files: readonly string[];
  /** 8 hexadecimal digits. */
  readonly digest: string;
}

/** A folder of data, and what its lines are of; the digest is of both. */
export interface LocalDataset extends LocalFolder {
  readonly task?:
    | { readonly case: "readyTask"; readonly value: string }
    | { readonly case: "taskDefinition"; readonly value: string };
}

export interface Study extends StudyFile {
  /** By name of the task, where its dataset is a folder. */
  readonly datasets: Readonly<Record<string, LocalDataset>>;
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
  const datasets: Record<string, LocalDataset> = {};
  for (const task of value.tasks) {
    if (isDatasetFolder(task.dataset)) datasets[task.name] = await localDataset(folder, task, value.evaluation.test);
  }
  const folders: Record<string, LocalFolder> = {};
  for (const { name, source } of value.models) {
    if (isModelFolder(source)) folders[name] = await localFolder(resolve(folder, source), MODEL_FILE);
  }
  return { ...value, datasets, folders };
}

/** @param test whether the test split is scored: a benchmark's own has no answers, which its task would refuse */
async function localDataset(base: string, { dataset, task }: StudyTask, test: boolean): Promise<LocalDataset> {
  const directory = resolve(base, dataset);
  if (task === undefined) return localFolder(directory, /^(train|validation|test)\.jsonl$/);
  const wanted = ["train", "validation", ...(test ? ["test"] : [])];
  const names = (await readdir(directory)).filter((name) => name.endsWith(".jsonl")).sort();
  const files = wanted.flatMap((split) => names.findLast((name) => splitOfFile(name) === split) ?? []);
  const source = isTaskFile(task)
    ? { case: "taskDefinition" as const, value: await readFile(resolve(base, task), "utf8") }
    : { case: "readyTask" as const, value: task };
  return { ...(await digested(directory, files, source.value)), task: source };
}

/** What uploadModel sends. */
const MODEL_FILE = /\.(json|safetensors|model|txt)$/;

async function localFolder(directory: string, wanted: RegExp): Promise<LocalFolder> {
  return digested(directory, (await readdir(directory)).filter((name) => wanted.test(name)).sort());
}

async function digested(directory: string, files: readonly string[], task = ""): Promise<LocalFolder> {
  const hash = createHash("sha256").update(task);
  for (const name of files) {
    hash.update(`${name}\0`);
    for await (const piece of createReadStream(join(directory, name))) hash.update(piece as Uint8Array);
  }
  return { directory, files, digest: hash.digest("hex").slice(0, 8) };
}
