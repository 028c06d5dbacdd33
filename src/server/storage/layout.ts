// The data directory. Whatever is written arrives in `tmp`, is made durable there, and is renamed into place as a whole:
// a folder in models, datasets or checkpoints is complete or it is not there. What a crash left behind is swept at start.
//
//   server.lock                     held by the server that uses the directory (lock.ts)
//   thaw.sqlite                     the registry
//   models/{model}/                 uploaded and exported models
//   datasets/{dataset}/{split}.jsonl, or .txt where it is plain text
//   checkpoints/{run}/{checkpoint}/
//   tmp/                            in the making

import { randomUUID } from "node:crypto";
import { closeSync, fsyncSync, mkdirSync, openSync, readdirSync, renameSync, rmSync } from "node:fs";
import { readdir, rm, stat } from "node:fs/promises";
import { dirname, join, relative, resolve, sep } from "node:path";
import { type Dataset, DatasetFormat } from "../../../proto/gen/thaw/v1/dataset_pb.ts";
import { idIn } from "../ids.ts";

export interface Layout {
  readonly registry: string;
  readonly models: string;
  readonly datasets: string;
  readonly checkpoints: string;
  readonly tmp: string;
}

export const registryFile = (root: string): string => join(root, "thaw.sqlite");

export function openLayout(root: string): Layout {
  const layout = {
    registry: registryFile(root),
    models: join(root, "models"),
    datasets: join(root, "datasets"),
    checkpoints: join(root, "checkpoints"),
    tmp: join(root, "tmp"),
  };
  mkdirSync(root, { recursive: true, mode: 0o700 });
  for (const folder of [layout.models, layout.datasets, layout.checkpoints]) mkdirSync(folder, { recursive: true });
  rmSync(layout.tmp, { recursive: true, force: true });
  mkdirSync(layout.tmp);
  return layout;
}

/** A new empty folder under `tmp`. */
export function temporaryDirectory(layout: Layout): string {
  const path = join(layout.tmp, randomUUID());
  mkdirSync(path);
  return path;
}

function syncDirectory(path: string): void {
  const handle = openSync(path, "r");
  try {
    fsyncSync(handle);
  } finally {
    closeSync(handle);
  }
}

/** Flushes a finished folder and its files, moves it to `target`, which must not exist, and flushes the move. */
export function publish(source: string, target: string): void {
  for (const entry of readdirSync(source, { recursive: true, withFileTypes: true })) {
    syncDirectory(join(entry.parentPath, entry.name));
  }
  syncDirectory(source);
  mkdirSync(dirname(target), { recursive: true });
  renameSync(source, target);
  syncDirectory(dirname(target));
  syncDirectory(dirname(dirname(target)));
}

export const discard = (path: string): Promise<void> => rm(path, { recursive: true, force: true });

/** Removes folders of `parent` that are not in `known`: what was complete but never indexed. */
export async function sweep(parent: string, known: ReadonlySet<string>): Promise<void> {
  for (const name of await readdir(parent)) if (!known.has(name)) await discard(join(parent, name));
}

export interface StoredFile {
  /** Below the folder, with `/`. */
  readonly path: string;
  readonly bytes: number;
}

/** Regular files of a folder, at any depth, sorted by path. */
export async function filesOf(directory: string): Promise<StoredFile[]> {
  const files: StoredFile[] = [];
  for (const entry of await readdir(directory, { recursive: true, withFileTypes: true })) {
    const path = join(entry.parentPath, entry.name);
    const found = await stat(path);
    if (found.isFile()) files.push({ path: relative(directory, path).split(sep).join("/"), bytes: found.size });
  }
  return files.sort((a, b) => (a.path < b.path ? -1 : 1));
}

/** A model's folder: below `models`, or where it was loaded from. */
export const modelDirectory = (layout: Layout, directory: string): string => resolve(layout.models, directory);
export const splitFileName = (split: string, format: DatasetFormat): string =>
  `${split}.${format === DatasetFormat.PLAIN_TEXT ? "txt" : "jsonl"}`;
export const splitFile = (layout: Layout, { name, format }: Pick<Dataset, "name" | "format">, split: string): string =>
  join(layout.datasets, idIn("datasets", name)!, splitFileName(split, format));
