// Taking a run's steps, or the run itself, off the GPU, with what it has learnt since its newest checkpoint kept.

import { CheckpointReason } from "../../../proto/gen/thaw/v1/checkpoint_pb.ts";
import { RunState } from "../../../proto/gen/thaw/v1/run_state_pb.ts";
import { WorkerGone } from "../gpu/failures.ts";
import { idIn } from "../ids.ts";
import { changeState, type Live, type LiveParts } from "./live.ts";
import { hasEnded } from "./states.ts";

type Parts = Pick<LiveParts, "gpu" | "checkpoints" | "log" | "runLog">;

export function interruptions({ gpu, checkpoints, log, runLog }: Parts) {
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

  /** The step it would go on from. */
  const savedStep = async ({ run }: Live): Promise<bigint> =>
    (await checkpoints.newest(idIn("runs", run.name)!))?.checkpoint.step ?? run.startStep;

  /** Keeps what was learnt since the newest checkpoint. A failure costs only that. */
  async function saveInterrupted(live: Live): Promise<void> {
    if (live.run.step === (await savedStep(live))) return;
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

  /**
   * Takes a run off the GPU that is not done with it: it goes back into the queue, and one that is paused stays paused.
   * @param reason of the warning in its log, and `message` its words, to which it is added where the run goes on from
   */
  async function takeOff(live: Live, reason: string, message: string): Promise<void> {
    if (hasEnded(live.run.state)) return;
    const { wanted } = live;
    if (wanted === "cancel") return void (await live.over);
    live.wanted = "stop";
    if (live.open && (await stopStepping(live)) && !hasEnded(live.run.state)) await close(live);
    else live.release();
    await live.over;
    if (hasEnded(live.run.state)) return;
    const step = await savedStep(live);
    const again = step === live.run.step ? "" : ` from step ${step}, and later steps are repeated`;
    live.run.step = step;
    runLog.append(live, { case: "warning", value: { reason, message: `${message}${again}` } });
    changeState(runLog, live, wanted === "pause" ? RunState.PAUSED : RunState.QUEUED);
    await runLog.flush();
  }

  return { stopStepping, saveInterrupted, close, takeOff };
}
