// A model opened for requests rather than for a run: kept on the device for a while, because questions about one model
// come in a row. One at a time; a run or another model takes its place.

import type { ModelTarget } from "../../../proto/gen/thaw/worker/v1/worker_pb.ts";
import type { Engine, TrainingRun } from "../../trainer/types.ts";
import { routingOptions } from "./convert/routing_options.ts";

/** Milliseconds a model stays after its last use. */
const KEEP = 60_000;

export interface ModelCache {
  /** Runs `work` with the model, opened if it is not the one that is open. */
  use<R>(target: ModelTarget, work: (model: TrainingRun) => Promise<R>): Promise<R>;
  close(): void;
}

export function openModelCache(engine: Engine): ModelCache {
  let held: { readonly key: string; readonly model: TrainingRun } | undefined;
  let timer: ReturnType<typeof setTimeout> | undefined;

  function close(): void {
    clearTimeout(timer);
    held?.model.close();
    held = undefined;
  }
  return {
    close,
    async use(target, work) {
      clearTimeout(timer);
      // A checkpoint is a whole model directory.
      const directory = target.checkpointDirectory || target.directory;
      const sizes = [target.batchSize, target.maxInputTokens, target.maxTargetTokens].map(Number);
      const routing = target.routing && routingOptions(target.routing);
      const key = JSON.stringify([directory, ...sizes, routing]);
      if (held?.key !== key) {
        close();
        held = { key, model: await engine.openModel(directory, sizes[0], sizes[1], sizes[2], routing) };
      }
      try {
        return await work(held.model);
      } finally {
        timer = setTimeout(close, KEEP);
        timer.unref();
      }
    },
  };
}
