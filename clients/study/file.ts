// A study file on disk with what it points to: the folders of data and models beside it are looked up and digested, so that
// a cell of other data is another cell.

import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { readdir, readFile } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { inOrder, type Mistake, mistakesText, readText } from "./fields.ts";
import { type StudyFile, studyFile } from "./schema.ts";

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
 * @throws StudyFileError with every mistake; Error when the file cannot be read
 */
export async function readStudy(path: string, claims: readonly string[]): Promise<Study> {
  const { value, mistakes, mistakeAt } = readText(await readFile(path, "utf8"), studyFile(claims));
  if (!value) throw new StudyFileError(path, mistakes);
  const all = [...mistakes];
  const base = dirname(resolve(path));
  const folders = async (
    entries: readonly { readonly name: string; readonly folder: string; readonly path: string }[],
    wanted: RegExp,
    needed: readonly string[],
  ): Promise<Record<string, LocalFolder>> => {
    const found: Record<string, LocalFolder> = {};
    for (const entry of entries) {
      const folder = await localFolder(resolve(base, entry.folder), wanted);
      const missing = needed.filter((name) => !folder?.files.includes(name));
      if (folder && missing.length === 0) found[entry.name] = folder;
      else all.push(mistakeAt(entry.path, complaint(folder, missing)));
    }
    return found;
  };
  const datasets = value.tasks.flatMap(({ name, dataset }, i) =>
    dataset.startsWith("datasets/") ? [] : [{ name, folder: dataset, path: `tasks[${i}].dataset` }],
  );
  const models = value.models.flatMap(({ name, source }, i) =>
    /^\.\.?\//.test(source) ? [{ name, folder: source, path: `models[${i}]` }] : [],
  );
  const study: Study = {
    ...value,
    datasets: await folders(datasets, /^(train|validation|test)\.jsonl$/, ["train.jsonl", "validation.jsonl"]),
    folders: await folders(models, /\.(json|safetensors|model|txt)$/, ["config.json"]),
  };
  if (all.length > 0) throw new StudyFileError(path, inOrder(all));
  return study;
}

const complaint = (folder: LocalFolder | undefined, missing: readonly string[]): string =>
  folder ? `the folder has no ${missing.join(" and no ")}` : "there is no such folder beside this file";

/** The wanted files of a folder, or undefined when there is no such folder. */
async function localFolder(directory: string, wanted: RegExp): Promise<LocalFolder | undefined> {
  const entries = await readdir(directory).catch(() => undefined);
  if (!entries) return undefined;
  const files = entries.filter((name) => wanted.test(name)).sort();
  const hash = createHash("sha256");
  for (const name of files) {
    hash.update(`${name}\0`);
    for await (const piece of createReadStream(join(directory, name))) hash.update(piece as Uint8Array);
  }
  return { directory, files, digest: hash.digest("hex").slice(0, 8) };
}
