// What a run is opened with.

import type { Lengths } from "../data/batches.ts";
import type { TrainingBatches } from "../data/order.ts";
import type { DataStatistics, RoutingOptions, RunConfig, TrainablePlan } from "../types.ts";
import type { EncodedFiles } from "./encoded_files.ts";

/** What a run trains on, and what it trains from the first step. */
export interface TrainingInput {
  readonly plan: TrainablePlan;
  readonly batches: TrainingBatches;
  readonly data: DataStatistics;
}

/** The part of a run's configuration that does not depend on its data. */
export type RunSettings = Omit<
  RunConfig,
  "modelDirectory" | "trainFiles" | "mixingCap" | "evaluationFiles" | "trainable"
>;

export interface OpenOptions {
  /** Absent: the model can only evaluate and generate. */
  readonly training?: TrainingInput;
  /** Lengths evaluation and generation are prepared for; they grow when more is asked. */
  readonly inference: Lengths;
  /** Data files of the same model and limits that may be tokenised already. */
  readonly files?: EncodedFiles;
  /** A checkpoint directory; the parameters come from `source` all the same. */
  readonly resumeFrom?: string;
  /** Device memory there is for it now, bytes; unset: {@link defaultMemoryLimit}. Asked whenever a plan is made. */
  readonly memoryLimitBytes?: () => number;
}

/** Routing that drops nothing and adds no noise. */
export const DROPLESS: RoutingOptions = {
  trainCapacity: { rule: "dropless" },
  evalCapacity: { rule: "dropless" },
  group: "batch",
  routePadding: false,
  jitter: 0,
};
