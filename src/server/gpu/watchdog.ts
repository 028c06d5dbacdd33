// Notices a GPU process that has hung: it says nothing, or says that it is busy with the same thing as before. A driver may
// wait for a GPU for ever, and a process may be stopped; neither ends by itself.
//
// Time is counted in ticks of this process, so that a server that was itself stopped, with its machine for instance, does
// not take its own sleep for a worker's.

import { clearInterval, setInterval } from "node:timers";
import type { FromWorker } from "../../../proto/gen/thaw/worker/v1/worker_pb.ts";

const TICKS = 10;

export interface Watchdog {
  /** Takes everything the process says. */
  heard(message: FromWorker): void;
  end(): void;
}

/** Calls `onHang` once, when the process has not got on for `timeoutMs`. */
export function watchProgress(timeoutMs: number, onHang: () => void): Watchdog {
  let quiet = 0;
  let progress: bigint | undefined;
  const timer = setInterval(() => {
    if (++quiet < TICKS) return;
    clearInterval(timer);
    onHang();
  }, timeoutMs / TICKS);
  // A server that is ending does not wait to see whether its worker has hung.
  timer.unref();
  return {
    heard({ message }) {
      if (message.case === "heartbeat") {
        if (message.value.busy && message.value.progress === progress) return;
        progress = message.value.progress;
      }
      quiet = 0;
    },
    end: () => clearInterval(timer),
  };
}
