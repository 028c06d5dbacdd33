// The small study that tests of study files and of their runs begin with: two strategies, two seeds, nothing on disk but
// the file itself.

import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { CLAIM_IDS } from "../../../clients/study/claims.ts";
import { readStudy, type Study } from "../../../clients/study/file.ts";

export const SMALL = {
  name: "small",
  question: "which?",
  baseline: "all",
  models: ["models/m"],
  tasks: [{ name: "t", dataset: "datasets/d", steps: 2 }],
  strategies: ["all", "ffn"],
  seeds: [1, 2],
};

/** Writes a study file: its text, or {@link SMALL} with other fields. @returns its path */
export async function writeStudy(folder: string, content: string | object): Promise<string> {
  const path = join(folder, "study.yaml");
  await writeFile(path, typeof content === "string" ? content : JSON.stringify({ ...SMALL, ...content }));
  return path;
}

export const smallStudy = async (folder: string, change: object = {}): Promise<Study> =>
  readStudy(await writeStudy(folder, change), CLAIM_IDS);
