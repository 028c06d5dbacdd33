// What a checkpoint says of itself. The trainer writes training.json and checks it when a run goes on from it; here single
// values of it are looked up.

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { verifyCheckpointFiles } from "../../trainer/run/verify_checkpoint.ts";
import type { TrainablePlan } from "../../trainer/types.ts";

/** @throws DamagedCheckpointError when it is not as it was written */
async function trainingState(directory: string): Promise<{ readonly step: number; readonly plan: TrainablePlan }> {
  await verifyCheckpointFiles(directory);
  return JSON.parse(await readFile(join(directory, "training.json"), "utf8"));
}

/** Optimizer steps completed when the checkpoint was written. */
export const checkpointStep = async (directory: string): Promise<number> => (await trainingState(directory)).step;

/** The freeze plan in force when the checkpoint was written. */
export const checkpointPlan = async (directory: string): Promise<TrainablePlan> =>
  (await trainingState(directory)).plan;
