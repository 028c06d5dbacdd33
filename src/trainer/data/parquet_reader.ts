// Parquet files read in a thread of their own, with limits: some damaged files make the decoder loop for ever, or ask for
// more memory than there is. A thread over its limits is ended, the file is refused, and the next file gets a new thread.
//
// The memory limit is Node's; Deno has none for a thread. What a file may declare is bounded in parquet.ts all the same.

import { rm, stat } from "node:fs/promises";
import type { Worker } from "node:worker_threads";
import { inputError } from "../formats/problems.ts";
import type { ParquetColumns } from "./parquet.ts";
import type { ParquetReply, ParquetRequest } from "./parquet_thread.ts";
import { startThread } from "./thread.ts";

export interface ParquetLimits {
  /** For a file of no size. */
  readonly seconds: number;
  readonly secondsPerMebibyte: number;
  /** The thread's heap. */
  readonly memoryMebibytes: number;
  /** Of what comes of a file as JSON Lines. */
  readonly maxBytes: number;
}

/** Far more than a slow machine takes, which is about a second for every ten mebibytes. */
const LIMITS = { seconds: 10, secondsPerMebibyte: 2, memoryMebibytes: 2048 };

export interface ParquetReader {
  /**
   * Writes the rows of the file at `source` into a new file at `target` (parquet.ts). One call at a time.
   *
   * @param name what errors call the file; "" for nothing
   * @throws InputError with the one problem of a file that is refused; the system's error where a file cannot be read or
   *   written. Then there is no file at `target`.
   */
  toJsonl(source: string, target: string, columns: ParquetColumns, name?: string): Promise<void>;
  close(): Promise<void>;
}

/** A thread, its next message, and how it ended. */
interface Thread {
  readonly worker: Worker;
  next(): Promise<ParquetReply | { readonly kind: "ended"; readonly error: unknown }>;
}

function startReading(memoryMebibytes: number): Thread {
  const worker = startThread(new URL("./parquet_thread.ts", import.meta.url), {
    resourceLimits: { maxOldGenerationSizeMb: memoryMebibytes },
  });
  let failure: unknown;
  worker.on("error", (error) => {
    failure = error;
  });
  return {
    worker,
    next: () =>
      new Promise((resolve) => {
        const settle = (reply: Awaited<ReturnType<Thread["next"]>>): void => {
          worker.off("message", settle);
          worker.off("exit", end);
          resolve(reply);
        };
        const end = (): void => settle({ kind: "ended", error: failure });
        worker.on("message", settle);
        worker.on("exit", end);
      }),
  };
}

/** Its thread starts with the first file. @param given limits in place of the usual ones; of bytes there is no usual one */
export function openParquetReader(given: Pick<ParquetLimits, "maxBytes"> & Partial<ParquetLimits>): ParquetReader {
  const limits: ParquetLimits = { ...LIMITS, ...given };
  let thread: Thread | undefined;

  async function ready(): Promise<Thread> {
    if (thread) return thread;
    const started = startReading(limits.memoryMebibytes);
    const first = await started.next();
    if (first.kind !== "ready") throw new Error("the thread that reads Parquet did not start", { cause: first });
    thread = started;
    return started;
  }

  async function end(): Promise<void> {
    const ending = thread;
    thread = undefined;
    await ending?.worker.terminate();
  }

  /** @throws InputError, or the system's error */
  async function convert(request: ParquetRequest, name: string): Promise<void> {
    const seconds = limits.seconds + (limits.secondsPerMebibyte * (await stat(request.source)).size) / 2 ** 20;
    const { worker, next } = await ready();
    const reply = next();
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      void end();
    }, seconds * 1e3);
    worker.postMessage(request);
    const told = await reply;
    clearTimeout(timer);
    if (told.kind === "problems") throw inputError(name, told.problems);
    if (told.kind === "fault") throw Object.assign(new Error(told.message), { code: told.code });
    if (told.kind !== "ended") return;
    thread = undefined;
    const refuse = (why: string) => inputError(name, [`is not a readable Parquet file: ${why}`]);
    if (late) throw refuse(`it is not read after ${seconds.toPrecision(2)} seconds`);
    if ((told.error as { code?: string } | undefined)?.code === "ERR_WORKER_OUT_OF_MEMORY") {
      throw refuse(`it takes more than ${limits.memoryMebibytes} MiB of memory; write it in smaller row groups`);
    }
    throw new Error("the thread that reads Parquet ended", { cause: told.error });
  }

  return {
    async toJsonl(source, target, columns, name = "") {
      try {
        await convert({ source, target, columns, maxBytes: limits.maxBytes }, name);
      } catch (error) {
        await rm(target, { force: true });
        throw error;
      }
    },
    close: end,
  };
}
