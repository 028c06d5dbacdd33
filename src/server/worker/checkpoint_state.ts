// What a checkpoint says about the run it belongs to. The trainer writes training.json and checks it when a run goes on
// from it; here it is only looked up.

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import type { TrainablePlan } from "../../trainer/types.ts";

export interface CheckpointState {
  /** Optimizer steps completed. */
  readonly step: number;
  /** The freeze plan in force. */
  readonly plan: TrainablePlan;
}

export async function checkpointState(directory: string): Promise<CheckpointState> {
  return JSON.parse(await readFile(join(directory, "training.json"), "utf8")) as CheckpointState;
}
