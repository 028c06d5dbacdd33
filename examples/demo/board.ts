// The demo's progress: on a terminal one line per run, painted over and over; through a pipe plain lines, one when a run's
// stage changes.

import type { WriteStream } from "node:tty";

export interface Board {
  /** Shows how a run stands. `stage` is what a pipe gets a line for when it changes. */
  show(run: string, stage: string, detail: string): void;
  /** A line that stays. */
  say(line: string): void;
  /** Leaves the lines as they are and begins anew below. */
  settle(): void;
}

const PAINT_MS = 100;

/** @param output what is written to; lines are cut to its width, or they would wrap and leave traces */
export function openBoard(output: Pick<WriteStream, "write"> & { isTTY?: boolean; columns?: number }): Board {
  const rows = new Map<string, { stage: string; line: string }>();
  let painted = 0;
  let timer: ReturnType<typeof setTimeout> | undefined;
  const up = () => (painted > 0 ? `\x1b[${painted}A\r\x1b[J` : "");

  function paint(): void {
    clearTimeout(timer);
    timer = undefined;
    const width = (output.columns ?? 80) - 1;
    const lines = [...rows.values()].map(({ line }) => `${[...line].slice(0, width).join("")}\n`);
    output.write(up() + lines.join(""));
    painted = lines.length;
  }

  return {
    show(run, stage, detail) {
      const line = `  ${run.padEnd(10)} ${stage.padEnd(10)} ${detail}`.trimEnd();
      const changed = rows.get(run)?.stage !== stage;
      rows.set(run, { stage, line });
      if (output.isTTY) timer ??= setTimeout(paint, PAINT_MS);
      else if (changed) output.write(`${line}\n`);
    },
    say(line) {
      if (!output.isTTY) {
        output.write(`${line}\n`);
        return;
      }
      output.write(`${up()}${line}\n`);
      painted = 0;
      paint();
    },
    settle() {
      if (output.isTTY && rows.size > 0) paint();
      rows.clear();
      painted = 0;
    },
  };
}
