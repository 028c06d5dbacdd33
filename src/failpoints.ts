// Failpoints: named places in the code where a test can make the process die, fail or wait, as a power cut, a driver or a
// full disk would. All of them are listed here; without THAW_FAILPOINTS passing one costs a look at one variable.
//
//   THAW_FAILPOINTS=log.in_transaction:exit:3,worker.step:delay      name:action[:count], separated by commas
//
// An action acts on the count-th passing of its point in this process, counted from 1, or on every one without a count.

import process from "node:process";

/** Every point, with what has happened when it is passed. */
export const FAILPOINTS = {
  "log.before_write": "events are to be written to the log; nothing is on the disk",
  "log.in_transaction": "the events are inserted; the transaction is not committed",
  "log.after_commit": "the events are on the disk; no reader has heard of them",
  "checkpoint.begun": "the GPU process has made the temporary folder of a checkpoint",
  "checkpoint.before_tensor": "the next tensor of a safetensors file is to be written",
  "checkpoint.before_sync": "a safetensors file is complete and not flushed",
  "checkpoint.before_state": "a small file of a checkpoint is complete and not flushed",
  "checkpoint.before_rename": "the GPU process has written and flushed a checkpoint under its temporary name",
  "checkpoint.renamed": "the checkpoint has its name in the temporary folder; the server does not know it",
  "checkpoint.before_publish": "the server knows of the checkpoint; it is still in the temporary folder",
  "checkpoint.published": "the checkpoint is in its run's folder and not in the index",
  "checkpoint.indexed": "the checkpoint is in the index; older ones are still there",
  "checkpoint.before_discard": "an old checkpoint is out of the index; its folder is still there",
  "worker.step": "the GPU process is to take a training step",
  "device.lost": "results are to be read; `error` loses the device",
  "device.out_of_memory": "a buffer is to be made; `error` says that it does not fit",
} as const;

export type Failpoint = keyof typeof FAILPOINTS;

/** `exit` is kill -9 of this process, `delay` stops all of it for a second, `enospc` is the error of a full disk. */
const ACTIONS = ["exit", "error", "delay", "enospc"] as const;
type Action = (typeof ACTIONS)[number];

const DELAY_MS = 1000;

interface Armed {
  readonly action: Action;
  readonly count: number | undefined;
  passed: number;
}

let armed: ReadonlyMap<string, Armed> | undefined;

/**
 * Replaces what is armed in this process; "" disarms everything.
 * @throws Error naming every entry that is wrong
 */
export function armFailpoints(text: string): void {
  const wrong: string[] = [];
  const entries = text.split(",").filter(Boolean);
  const points = entries.map((entry): [string, Armed] => {
    const [name, action, count, ...rest] = entry.split(":");
    const known = Object.hasOwn(FAILPOINTS, name) && ACTIONS.includes(action as Action) && rest.length === 0;
    if (!known || !/^[1-9]\d*$/.test(count ?? "1")) wrong.push(entry);
    return [name, { action: action as Action, count: count === undefined ? undefined : Number(count), passed: 0 }];
  });
  if (wrong.length > 0) {
    throw new Error(`THAW_FAILPOINTS: ${wrong.join(", ")} is not name:${ACTIONS.join("|")}[:count]`);
  }
  armed = points.length > 0 ? new Map(points) : undefined;
}

/**
 * Passes a point.
 * @param error what `error` throws here, where it must be of a kind
 */
export function failpoint(name: Failpoint, error: () => Error = () => new Error(`failpoint ${name}`)): void {
  if (armed === undefined) return;
  const point = armed.get(name);
  if (!point) return;
  point.passed++;
  if (point.count !== undefined && point.passed !== point.count) return;
  switch (point.action) {
    case "exit":
      process.kill(process.pid, "SIGKILL");
      wait(DELAY_MS); // A signal to oneself may arrive a moment later; nothing more is to happen before it.
      return;
    case "delay":
      wait(DELAY_MS);
      return;
    case "error":
      throw error();
    case "enospc":
      throw Object.assign(new Error(`ENOSPC: no space left on device, failpoint ${name}`), { code: "ENOSPC" });
  }
}

/** Stops the whole thread, as a system call that does not return would. */
function wait(milliseconds: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, milliseconds);
}

armFailpoints(process.env.THAW_FAILPOINTS ?? "");
