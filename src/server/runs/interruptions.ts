// Taking a run's steps, or the run itself, off the GPU, with what it has learnt since its newest checkpoint kept.

import { CheckpointReason } from "../../../proto/gen/thaw/v1/checkpoint_pb.ts";
import { WorkerGone } from "../gpu/failures.ts";
import { idIn } from "../ids.ts";
import type { Live, LiveParts } from "./live.ts";
import { hasEnded } from "./states.ts";

export function interruptions({ gpu, checkpoints, log }: Pick<LiveParts, "gpu" | "checkpoints" | "log">) {
  /** Stops stepping; false when the process died, or the run diverged, meanwhile. */
  async function stopStepping(live: Live): Promise<boolean> {
    try {
      await gpu.request({ case: "pause", value: { run: live.run.name } });
    } catch (error) {
      if (error instanceof WorkerGone) return false;
      await live.settled();
      // It diverged meanwhile: the worker has closed it, and it is opened again from a checkpoint.
      if (!live.open && !hasEnded(live.run.state)) return false;
      if (!hasEnded(live.run.state)) throw error;
    }
    await live.settled();
    return true;
  }

  /** Keeps what was learnt since the newest checkpoint. A failure costs only that. */
  async function saveInterrupted(live: Live): Promise<void> {
    const newest = await checkpoints.newest(idIn("runs", live.run.name)!);
    if (live.run.step === (newest?.checkpoint.step ?? live.run.startStep)) return;
    try {
      await checkpoints.save(live, CheckpointReason.INTERRUPTED);
    } catch (error) {
      log("warning", `no checkpoint at step ${live.run.step}: ${error}`, { run: live.run.name });
    }
  }

  /** Closes it on the worker, and waits until it no longer holds the GPU. */
  async function close(live: Live): Promise<void> {
    await saveInterrupted(live);
    try {
      await gpu.request({ case: "closeRun", value: { run: live.run.name } });
    } catch (error) {
      log("info", `closing: ${error}`, { run: live.run.name });
    }
    live.release();
    await live.over;
  }

  return { stopStepping, saveInterrupted, close };
}
