// What the demo found, as it is written to results.json and read by the report. Plain numbers only; shares are in [0, 1],
// losses in nats per target token, sizes in bytes, times in seconds. Everything came over gRPC.

export interface Results {
  readonly format: 1;
  /** ISO 8601. */
  readonly date: string;
  readonly command: string;
  /** Of the whole demo. */
  readonly seconds: number;
  readonly thawVersion: string;
  /** One line: which adapter ran and why. */
  readonly adapter: string;
  readonly model: ModelFacts;
  readonly task: TaskFacts;
  readonly training: TrainingFacts;
  /** Scores of the model all strategies started from, by split. */
  readonly start: Scores;
  readonly strategies: readonly StrategyResult[];
  readonly freeze?: FreezeResult;
  /** The same inputs before fine-tuning and after, by the model with the best validation accuracy. */
  readonly examples: readonly ExampleResult[];
  /** What was exported: the strategy with the best validation accuracy. */
  readonly exported?: { readonly model: string; readonly strategy: string };
}

export interface ModelFacts {
  readonly name: string;
  readonly modelType: string;
  readonly parameters: number;
  /** Parameters by kind, as GroupService lists them. */
  readonly groups: readonly { readonly kind: string; readonly parameters: number }[];
}

export interface TaskFacts {
  readonly name: string;
  /** Examples by split. */
  readonly splits: Readonly<Record<string, number>>;
  /** Different targets in the training split; chance is 1 over this when they are balanced. */
  readonly distinctTargets: number;
}

export interface TrainingFacts {
  readonly steps: number;
  readonly batchSize: number;
  readonly learningRate: number;
  readonly dropout: number;
  readonly seed: number;
  /** At most so many examples of each split were scored. */
  readonly evaluatedExamples: number;
}

/** By split: `train`, `validation`, `test`. */
export type Scores = Readonly<Record<string, SplitScores>>;

export interface SplitScores {
  readonly examples: number;
  readonly loss: number;
  readonly accuracy: number;
  readonly exactMatch: number;
  readonly layers: readonly LayerLoad[];
}

/** Share of a sparse layer's tokens that chose each expert. */
export interface LayerLoad {
  readonly stack: string;
  readonly layer: number;
  readonly load: readonly number[];
}

export interface StepRecord {
  readonly step: number;
  readonly loss: number;
  readonly seconds: number;
  readonly tokens: number;
}

export interface Cost {
  readonly trainableParameters: number;
  readonly totalParameters: number;
  readonly gradientBytes: number;
  readonly optimizerBytes: number;
  readonly activationBytes: number;
  readonly peakBytes: number;
  readonly forwardFlops: number;
  readonly backwardFlops: number;
  readonly dispatches: number;
  readonly weightGradientDispatches: number;
}

export interface StrategyResult {
  /** The preset's name. */
  readonly strategy: string;
  /** SUCCEEDED, or how it ended instead. */
  readonly state: string;
  readonly steps: readonly StepRecord[];
  readonly cost?: Cost;
  readonly scores: Scores;
  /** Token assignments streamed while it trained and was scored. */
  readonly assignments: { readonly tokens: number; readonly slices: number; readonly droppedSlices: number };
}

/** One change of a freeze plan while a run went on, as the server answered. */
export interface FreezeChange {
  /** `freeze` or `thaw`. */
  readonly action: string;
  /** What it was applied to. */
  readonly kinds: readonly string[];
  /** First step, counted from 0, under the new plan. */
  readonly effectiveStep: number;
  readonly before: Cost;
  readonly after: Cost;
  readonly matchedTensors: number;
  readonly state: Readonly<Record<"restored" | "fresh" | "kept" | "dropped", number>>;
}

export interface FreezeResult {
  readonly steps: readonly StepRecord[];
  readonly changes: readonly FreezeChange[];
}

export interface ExampleResult {
  readonly input: string;
  readonly target: string;
  readonly before: ExamplePass;
  readonly after: ExamplePass;
}

export interface ExamplePass {
  readonly text: string;
  readonly layers: readonly ExampleLayer[];
}

/** Where a sparse layer sent one sequence: an entry per token, in order. */
export interface ExampleLayer {
  readonly stack: string;
  readonly layer: number;
  readonly experts: number;
  readonly tokens: readonly RoutedToken[];
}

export interface RoutedToken {
  readonly text: string;
  readonly expert: number;
  /** Probability the router gave the expert. */
  readonly gate: number;
  /** Whether the expert took it: false when its capacity dropped it. */
  readonly kept: boolean;
}
