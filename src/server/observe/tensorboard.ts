// A folder of TensorBoard event files per run: loss, learning rate, gradient norm, speed and the load of every sparse layer
// by training step, and the scores of evaluations. They are a copy for looking at: the run's own log is the truth, and a
// disk that refuses them costs the copy and never the run.

import { createWriteStream, mkdirSync, type WriteStream } from "node:fs";
import { join } from "node:path";
import type { EvaluationResult } from "../../../proto/gen/thaw/v1/evaluation_pb.ts";
import type { RunEvent, StepMetrics } from "../../../proto/gen/thaw/v1/event_pb.ts";
import type { RouterLayerMetrics } from "../../../proto/gen/thaw/v1/routing_pb.ts";
import type { Log } from "../log.ts";
import { loadImbalance } from "../routing/summary.ts";
import { hasEnded } from "../runs/states.ts";
import * as enums from "../worker/convert/enums.ts";
import { encodeRecord, type LogEvent, type Scalars } from "./event_file.ts";

export interface TensorBoard {
  /** An event of a run is on disk. */
  written(run: string, event: RunEvent): void;
  /** Resolves when everything is written. */
  stop(): Promise<void>;
}

interface File {
  readonly stream: WriteStream;
  /** The newest training step in it. */
  step: bigint;
  failed: boolean;
}

const imbalances = (prefix: string, layers: readonly RouterLayerMetrics[]): Scalars =>
  layers.map(({ stack, layer, load }) => [
    `${prefix}/${enums.stack.fromProto(stack, "stack")}_${layer}/load_imbalance`,
    loadImbalance(load),
  ]);

const stepScalars = (metrics: StepMetrics): Scalars => [
  ["train/loss", metrics.loss],
  ["train/total_loss", metrics.totalLoss],
  ["train/learning_rate", metrics.learningRate],
  ["train/gradient_norm", metrics.gradientNorm],
  ["train/tokens_per_second", metrics.tokensPerSecond],
  ...imbalances("routing", metrics.layers),
];

const evaluationScalars = ({ split, loss, tokenAccuracy, exactMatch, accuracy, metrics, layers }: EvaluationResult) => {
  const scores = { token_accuracy: tokenAccuracy, exact_match: exactMatch, accuracy, ...metrics };
  return [
    [`evaluation/${split}/loss`, loss] as const,
    ...Object.entries(scores).map(([name, score]) => [`evaluation/${split}/${name}`, score] as const),
    ...imbalances(`routing_${split}`, layers),
  ];
};

const closed = (stream: WriteStream): Promise<void> =>
  new Promise((resolve) => {
    if (stream.closed) resolve();
    else stream.once("close", resolve).end();
  });

/** @param directory each run has a folder of its id in it */
export function createTensorBoard(directory: string, log: Log): TensorBoard {
  const files = new Map<string, File>();

  function open(run: string): File {
    const folder = join(directory, run.replace(/^runs\//, ""));
    try {
      mkdirSync(folder, { recursive: true });
    } catch {
      // Opening the file in it says the same.
    }
    // TensorBoard reads the files of a folder in the order of their names.
    const stream = createWriteStream(join(folder, `events.out.tfevents.${Date.now()}.thaw`));
    const file: File = { stream, step: 0n, failed: false };
    stream.on("error", (error: NodeJS.ErrnoException) => {
      file.failed = true;
      log("warning", `the TensorBoard file cannot be written (${error.code}); it ends here`, { run });
    });
    return file;
  }

  return {
    written(run, { event, step, time }) {
      const wallTime = time ? Number(time.seconds) + time.nanos / 1e9 : Date.now() / 1000;
      const scalars = (at: bigint, values: Scalars): LogEvent => ({ case: "scalars", step: at, scalars: values });
      if (event.case === "state") {
        if (hasEnded(event.value.to)) {
          files.get(run)?.stream.end();
          files.delete(run);
        }
        return;
      }
      if (event.case !== "metrics" && event.case !== "evaluation") return;
      const known = files.get(run);
      const file = known ?? open(run);
      files.set(run, file);
      if (file.failed) return;
      const write = (entry: LogEvent): void => void file.stream.write(encodeRecord(entry, wallTime));
      if (!known) write({ case: "version" });
      if (event.case === "evaluation") {
        write(scalars(step, evaluationScalars(event.value)));
        return;
      }
      // Steps that are repeated, after a checkpoint or in a run that an earlier server left, replace the earlier ones.
      const at = event.value.step;
      if (at <= file.step || (!known && at > 1n)) write({ case: "restart", step: at });
      write(scalars(at, stepScalars(event.value)));
      file.step = at;
    },
    async stop() {
      const all = [...files.values()];
      files.clear();
      await Promise.all(all.map(({ stream }) => closed(stream)));
    },
  };
}
