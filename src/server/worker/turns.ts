// Whose turn it is among the runs that can go on: each has its share of the turns, by weight, however long its turns take.
// Stride scheduling (Waldspurger and Weihl 1995): a turn moves a run ahead by 1 / weight, and the one furthest behind is
// next.
//
// Turns change when a run steps, never what it computes: runs share nothing but the device.

import type { ActiveRun } from "./active_run.ts";

export interface Turns {
  /** The run whose turn it is; undefined when none is ready. */
  next(runs: Iterable<ActiveRun>): ActiveRun | undefined;
}

export function takeTurns(): Turns {
  /** How far each has come; those that were not ready have nothing to make up for. */
  let places = new Map<ActiveRun, number>();
  return {
    next(runs) {
      const ready = [...runs].filter((run) => run.ready);
      const known = ready.flatMap((run) => places.get(run) ?? []);
      const last = known.length > 0 ? Math.min(...known) : 0;
      places = new Map(ready.map((run) => [run, places.get(run) ?? last]));
      let first: ActiveRun | undefined;
      for (const [run, place] of places) if (!first || place < places.get(first)!) first = run;
      if (first) places.set(first, places.get(first)! + 1 / first.weight);
      return first;
    },
  };
}
