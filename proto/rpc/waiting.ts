// Waiting that ends with the call. Both helpers take their listeners off again: `Promise.race` against one long-lived
// promise would keep every message of a stream alive until the stream ends.

interface Emitter {
  on(event: "drain", listener: () => void): unknown;
  off(event: "drain", listener: () => void): unknown;
}

/** The promise's outcome, or a rejection with the signal's reason when that comes first. */
export function untilAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const abort = () => reject(signal.reason);
    if (signal.aborted) {
      promise.catch(() => {}); // Nobody waits for it any more, and a rejection that nobody takes ends the process.
      return abort();
    }
    signal.addEventListener("abort", abort, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", abort));
  });
}

/** Resolves when the stream, whose write() returned false, has room again; rejects when the call is over. */
export async function drained(stream: Emitter, signal: AbortSignal): Promise<void> {
  let done = () => {};
  const drain = new Promise<void>((resolve) => {
    done = resolve;
    stream.on("drain", done);
  });
  try {
    await untilAborted(drain, signal);
  } finally {
    stream.off("drain", done);
  }
}

/** The same messages; a reader parked in next() wakes with the signal's reason when the call is over. */
export async function* abortable<T>(messages: AsyncIterable<T>, signal: AbortSignal): AsyncGenerator<T> {
  const iterator = messages[Symbol.asyncIterator]();
  try {
    while (true) {
      const next = await untilAborted(iterator.next(), signal);
      if (next.done) return;
      yield next.value;
    }
  } finally {
    // Not awaited: a parked generator runs its finally blocks only when it wakes.
    Promise.resolve(iterator.return?.()).catch(() => {});
  }
}
