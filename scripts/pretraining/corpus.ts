// Text to learn from, as lying in files and folders: documentation whole, of Python sources what is written for people.
// A document is what one file says, or one docstring; its white space is folded into single spaces. Documents that occur
// twice, as vendored packages make them, count once.

import { createHash } from "node:crypto";
import { readdir, readFile, stat } from "node:fs/promises";
import { join } from "node:path";

const PROSE = /\.(txt|md|rst)$/;
const PYTHON = /\.py$/;
const DOCSTRING = /"""([\s\S]*?)"""|'''([\s\S]*?)'''/g;
/** Shorter ones say too little to learn from. */
const MIN_DOCUMENT_LENGTH = 200;

/** Files below `path` with one of the endings, sorted by path; `path` itself when it is a file. */
async function filesBelow(path: string): Promise<string[]> {
  if ((await stat(path)).isFile()) return [path];
  const entries = await readdir(path, { recursive: true, withFileTypes: true });
  return entries
    .filter((entry) => entry.isFile() && (PROSE.test(entry.name) || PYTHON.test(entry.name)))
    .map((entry) => join(entry.parentPath, entry.name))
    .sort();
}

const fold = (text: string): string => text.replaceAll(/\s+/g, " ").trim();

/** The documents of one file's content. */
export function documentsOf(name: string, content: string): string[] {
  const texts = PYTHON.test(name) ? Array.from(content.matchAll(DOCSTRING), ([, a, b]) => a ?? b) : [content];
  return texts.map(fold).filter((text) => text.length >= MIN_DOCUMENT_LENGTH);
}

export interface Corpus {
  readonly documents: readonly string[];
  readonly files: number;
  /** UTF-16 code units of all documents. */
  readonly characters: number;
}

/** Every document below `paths`, each once, in the order of paths and files, until `maxCharacters` are reached. */
export async function readCorpus(paths: readonly string[], maxCharacters: number): Promise<Corpus> {
  const documents: string[] = [];
  const seen = new Set<string>();
  let files = 0;
  let characters = 0;
  for (const path of paths) {
    for (const file of await filesBelow(path)) {
      files++;
      for (const document of documentsOf(file, await readFile(file, "utf8"))) {
        const digest = createHash("sha256").update(document).digest("base64");
        if (seen.has(digest)) continue;
        seen.add(digest);
        documents.push(document);
        characters += document.length;
        if (characters >= maxCharacters) return { documents, files, characters };
      }
    }
  }
  return { documents, files, characters };
}
