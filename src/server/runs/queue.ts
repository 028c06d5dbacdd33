// Which run holds the GPU: the first of those that wait, in the order in which they were created, when the one before it is
// done. And one command on a run at a time, its move to the GPU among them.

import { RunState } from "../../../proto/gen/thaw/v1/run_state_pb.ts";
import { idIn } from "../ids.ts";
import { changeState, type Live, type LiveParts, liveRun } from "./live.ts";
import { hasEnded } from "./states.ts";

export interface RunQueue {
  /** The run on the GPU. */
  readonly active: Live | undefined;
  /** Puts the first queued run on the GPU when it is free. */
  schedule(): void;
  /** Starts nothing more. @returns the run on the GPU, when none is being started any more */
  halt(): Promise<Live | undefined>;
  /** Runs `work` when what was asked of the run before is done, however it ended. */
  exclusively<T>(id: string, work: () => Promise<T>): Promise<T>;
}

export function runQueue(parts: LiveParts): RunQueue {
  const { registry, runLog, log } = parts;
  let active: Live | undefined;
  let halted = false;
  let scheduling: Promise<void> = Promise.resolve();
  const locks = new Map<string, Promise<unknown>>();

  function exclusively<T>(id: string, work: () => Promise<T>): Promise<T> {
    const result = (locks.get(id) ?? Promise.resolve()).then(work, work);
    locks.set(id, result);
    const clear = () => void (locks.get(id) === result && locks.delete(id));
    result.then(clear, clear);
    return result;
  }

  function schedule(): void {
    scheduling = scheduling.then(async () => {
      if (active || halted) return;
      const [next] = await registry.runsInStates([RunState.QUEUED]);
      if (!next || halted) return;
      await exclusively(idIn("runs", next.run.name)!, async () => {
        const now = await registry.run(idIn("runs", next.run.name)!);
        if (now?.run.state !== RunState.QUEUED) return;
        const live = liveRun(now, parts);
        active = live;
        void live.over.then(() => released(live));
      });
      if (!active) schedule();
    });
    scheduling.catch((error) => log("error", `scheduling: ${error}`));
  }

  function released(live: Live): void {
    if (live.wanted === "cancel" && !hasEnded(live.run.state)) changeState(runLog, live, RunState.CANCELLED);
    if (hasEnded(live.run.state)) parts.onEnd(live.run.name);
    void runLog
      .flush()
      .catch(() => {})
      .then(() => {
        if (active === live) active = undefined;
        schedule();
      });
  }

  return {
    get active() {
      return active;
    },
    schedule,
    async halt() {
      halted = true;
      await scheduling;
      return active;
    },
    exclusively,
  };
}
