// What a study has found: one line of results.jsonl per finished cell, one of failures.jsonl per cell that failed, and the
// words the report needs about the study. Plain JSON, so that a results file can be read by anything.

/** Where a run stood at one of its evaluations. */
export interface CurvePoint {
  step: number;
  /** Mean cross-entropy per target token of the training steps since the point before, dropout on; in nats. */
  trainLoss: number;
  /** Cross-entropy per target token of the validation split, in nats. */
  validationLoss: number;
  /** By the task's metric, in [0, 1]; Matthews' correlation in [-1, 1]. */
  validationScore: number;
}

/** What fine-tuning did to one router on the validation split, the last evaluation against the starting model's. */
export interface LayerDrift {
  stack: "encoder" | "decoder";
  /** Among all layers of the stack, from 0. */
  layer: number;
  /** Total variation distance between the experts' shares of the assignments, in [0, 1]. */
  drift: number;
  /** The largest expert's share over the mean share; 1 is even. */
  loadImbalance: number;
  /** Assignments that found no capacity, in [0, 1]. */
  droppedShare: number;
}

/** The value of every axis: two cells differ in at least one. */
export interface CellSettings {
  task: string;
  strategy: string;
  seed: number;
  model: string;
  learningRate: number;
  batchSize: number;
  /** Not there: the model's own. */
  capacityFactor?: number;
  dropout: number;
  /** Not there: the model's own. */
  expertDropout?: number;
}

export interface CellResult {
  /** The cell's id, stable for the same settings. */
  cell: string;
  settings: CellSettings;
  /** `runs/{run}` */
  run: string;
  steps: number;
  /** `accuracy`, `exact_match`, or the primary metric of the task by name. */
  metric: string;
  /** The best validation score by the metric. */
  score: number;
  finalScore: number;
  /** Of the final weights. */
  testScore?: number;
  bestStep: number;
  curve: CurvePoint[];
  /** Of the task's training split. */
  trainExamples: number;
  trainableParameters: number;
  totalParameters: number;
  optimizerBytes: number;
  peakBytes: number;
  /** Median. */
  stepSeconds: number;
  routing: LayerDrift[];
  /** ISO 8601, UTC. */
  finishedAt: string;
}

/** A cell that ended without a result. */
export interface CellFailure {
  cell: string;
  /** `runs/{run}` */
  run: string;
  error: string;
  /** ISO 8601, UTC. */
  failedAt: string;
}

export interface PlannedCell {
  cell: string;
  settings: CellSettings;
}

export interface StudyDescription {
  name: string;
  question: string;
  /** What is compared. */
  axis: keyof CellSettings;
  /** The value of the axis that the others are paired with. */
  baseline: string;
  /** Ids of claims; verdicts.ts has them. */
  claims: string[];
  /** In score, e.g. 0.02. */
  equivalenceMargin: number;
  /** Every cell of the study, finished or not: what a comparison should rest on. */
  cells: PlannedCell[];
  /** The study file as read. */
  settings: unknown;
}
