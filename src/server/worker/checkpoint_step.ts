// The step a checkpoint was written at. The trainer writes training.json and checks it when a run goes on from it; here
// one number of it is looked up.

import { readFile } from "node:fs/promises";
import { join } from "node:path";

/** Optimizer steps completed when the checkpoint was written. */
export async function checkpointStep(directory: string): Promise<number> {
  const state = JSON.parse(await readFile(join(directory, "training.json"), "utf8")) as { step: number };
  return state.step;
}
