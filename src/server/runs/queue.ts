// Which runs hold the GPU: the queue's next when there is room for it, or when it can take the place of others
// (scheduling.ts). And one command on a run at a time, its moves to the GPU and off it among them.

import { RunState } from "../../../proto/gen/thaw/v1/run_state_pb.ts";
import { idIn } from "../ids.ts";
import { interruptions } from "./interruptions.ts";
import { changeState, type Live, type LiveParts, liveRun } from "./live.ts";
import { gpuShares, makeRoom, nextOf } from "./scheduling.ts";
import { hasEnded } from "./states.ts";

export interface RunQueue {
  /** The runs on the GPU, in the order in which they came. */
  readonly active: readonly Live[];
  /** Puts queued runs on the GPU as long as there is room. */
  schedule(): void;
  /** Starts nothing more. @returns the runs on the GPU, when none is being started any more */
  halt(): Promise<readonly Live[]>;
  /** Runs `work` when what was asked of the run before is done, however it ended. */
  exclusively<T>(id: string, work: () => Promise<T>): Promise<T>;
}

/** @param maxRuns runs on the GPU at a time */
export function runQueue(parts: LiveParts, maxRuns: number): RunQueue {
  const { registry, runLog, log, gpu } = parts;
  const { takeOff } = interruptions(parts);
  /** With when each has left. */
  const active = new Map<Live, Promise<void>>();
  const shares = gpuShares();
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
    scheduling = scheduling.then(fill).catch((error) => log("error", `scheduling: ${error}`));
  }

  async function fill(): Promise<void> {
    // How a run stands that left the GPU meanwhile may not be on the disk: it would be begun again and again.
    while (!halted && !runLog.refused) {
      const queued = await registry.runsInStates([RunState.QUEUED]);
      const on = [...active.keys()];
      // The registry hears a tick later of one that has left the queue.
      const waiting = queued.map(({ run }) => run).filter(({ name }) => !on.some(({ run }) => run.name === name));
      const now = Date.now();
      const next = nextOf(waiting, (owner) => shares.used(owner, now));
      if (!next || halted) return;
      const room = { runs: maxRuns, bytes: gpu.hello?.memoryBytes ?? 0n };
      const leaving = makeRoom(
        next,
        on.map(({ run }) => run),
        room,
      );
      if (!leaving) return;
      if (leaving.length === 0) await exclusively(idIn("runs", next.name)!, () => begin(next.name));
      for (const live of on) if (leaving.includes(live.run)) await preempt(live, next.name);
    }
  }

  async function begin(name: string): Promise<void> {
    const now = await registry.run(idIn("runs", name)!);
    if (now?.run.state !== RunState.QUEUED) return;
    const live = liveRun(now, parts);
    active.set(
      live,
      live.over.then(() => left(live)),
    );
    tellShares();
  }

  const tellShares = (): void =>
    shares.changed(
      [...active.keys()].map(({ run }) => run.owner),
      Date.now(),
    );

  async function left(live: Live): Promise<void> {
    if (live.wanted === "cancel" && !hasEnded(live.run.state)) changeState(runLog, live, RunState.CANCELLED);
    if (hasEnded(live.run.state)) parts.onEnd(live.run.name);
    await runLog.flush().catch(() => {});
    active.delete(live);
    tellShares();
    schedule();
  }

  /** Back into the queue with it, to go on from a checkpoint when there is room again. */
  async function preempt(live: Live, by: string): Promise<void> {
    const message = `${by}, of a higher priority, takes its place; the run goes on when there is room`;
    await exclusively(idIn("runs", live.run.name)!, async () => {
      await takeOff(live, "PREEMPTED", message);
      await active.get(live);
    });
  }

  return {
    get active() {
      return [...active.keys()];
    },
    schedule,
    async halt() {
      halted = true;
      await scheduling;
      return [...active.keys()];
    },
    exclusively,
  };
}
