// Which of the waiting runs is next, and whether the GPU has room for it: by priority, then by who has used the GPU least,
// then by age. Plain decisions over plain values; queue.ts carries them out.
//
// The next run is never passed over for a smaller one behind it, so a large run waits no longer than those before it take.

import { Priority, type Run } from "../../../proto/gen/thaw/v1/run_pb.ts";

/** Its turns on the GPU for each turn of a run of low priority beside it. */
export function weightOf({ priority }: Run): number {
  if (priority === Priority.LOW) return 1;
  return priority === Priority.HIGH ? 4 : 2;
}

/** A share of the GPU is forgotten by half in this time: who used it yesterday is not behind who never did. */
const HALF_LIFE_MS = 3_600_000;

/** GPU time by owner. What several runs hold together counts for each by its part. */
export interface Shares {
  /** The owners of the runs on the GPU, one entry a run, from `now` (milliseconds) on. */
  changed(owners: readonly string[], now: number): void;
  /** Milliseconds of GPU time, older ones forgotten by half an hour after hour. */
  used(owner: string, now: number): number;
}

export function gpuShares(): Shares {
  const used = new Map<string, number>();
  let holders: readonly string[] = [];
  let since = 0;
  function settle(now: number): void {
    const passed = Math.max(0, now - since);
    since = now;
    for (const [owner, ms] of used) used.set(owner, ms * 0.5 ** (passed / HALF_LIFE_MS));
    for (const owner of holders) used.set(owner, (used.get(owner) ?? 0) + passed / holders.length);
  }
  return {
    changed(owners, now) {
      settle(now);
      holders = owners;
    },
    used(owner, now) {
      settle(now);
      return used.get(owner) ?? 0;
    },
  };
}

/** The one of the waiting runs, oldest first, whose turn it is. */
export function nextOf(waiting: readonly Run[], used: (owner: string) => number): Run | undefined {
  const before = (a: Run, b: Run): number => b.priority - a.priority || used(a.owner) - used(b.owner);
  return waiting.toSorted(before)[0];
}

export interface Room {
  /** Runs on the GPU at a time. */
  readonly runs: number;
  /** Device bytes that they may need together; 0 when nobody knows: then there is room for one run. */
  readonly bytes: bigint;
}

/** Device bytes at the peak of a step, planned; undefined while nobody has planned them. */
const bytesOf = (run: Run): bigint | undefined => run.cost?.peakBytes;

/** Whether `run` fits beside those on the GPU. A run whose bytes are not known gets it alone. */
function fits(run: Run, on: readonly Run[], room: Room): boolean {
  if (on.length === 0) return true;
  if (on.length >= room.runs || room.bytes === 0n) return false;
  let sum = 0n;
  for (const one of [...on, run]) {
    const bytes = bytesOf(one);
    if (bytes === undefined) return false;
    sum += bytes;
  }
  return sum <= room.bytes;
}

/**
 * Those of the runs on the GPU, in the order in which they came, that have to leave it so that `next` fits: of a lower
 * priority, the lowest first, among them the last that came. None when there is room; undefined when `next` has to wait.
 */
export function makeRoom(next: Run, on: readonly Run[], room: Room): Run[] | undefined {
  const leaving: Run[] = [];
  const staying = on.toReversed().sort((a, b) => a.priority - b.priority);
  while (!fits(next, staying, room)) {
    if (staying.length === 0 || staying[0].priority >= next.priority) return undefined;
    leaving.push(...staying.splice(0, 1));
  }
  return leaving;
}
