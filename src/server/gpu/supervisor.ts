// Keeps one GPU process up and talks to it. Drivers and shader compilers abort processes, so an end is ordinary: what was
// asked fails with WorkerGone, the run manager is told, and a new process is started, each time later than the last until
// one has proved itself by answering.

import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { status } from "@grpc/grpc-js";
import {
  type FromWorker,
  type Hello,
  LogLevel,
  type Reply,
  type RunUpdate,
  type ToWorker,
  ToWorkerSchema,
} from "../../../proto/gen/thaw/worker/v1/worker_pb.ts";
import type { Level, Log } from "../log.ts";
import { refusal } from "../rpc/errors.ts";
import type { StartWorker, WorkerConnection } from "./connection.ts";
import { WorkerFailure, WorkerGone } from "./failures.ts";
import { watchProgress } from "./watchdog.ts";

const PROTOCOL_VERSION = 1;
const FIRST_DELAY_MS = 250;
const LONGEST_DELAY_MS = 30_000;
/** How long a request waits for a process to come up. */
const READY_MS = 60_000;
/** How long a process may take to close everything when asked to. */
const SHUTDOWN_MS = 10_000;

export type WorkerRequest = NonNullable<MessageInitShape<typeof ToWorkerSchema>["request"]>;

/** Hears of every request when it is sent to the GPU process; what it returns hears of its end. */
export type BeginRequest = (kind: string) => (failure: unknown) => void;

export interface Gpu {
  /** The process that is up. */
  readonly hello: Hello | undefined;
  /** Processes started so far. */
  readonly starts: number;
  /**
   * Carries out one request.
   * @param signal gives the request up: it then fails as cancelled, or succeeds if it was too late
   * @throws WorkerFailure, WorkerGone; RpcError UNAVAILABLE when no process comes up
   */
  request(request: WorkerRequest, signal?: AbortSignal): Promise<Reply>;
  /** The same for requests with many replies. */
  stream(request: WorkerRequest, signal?: AbortSignal): AsyncGenerator<Reply>;
  /** Called when a process has come up. */
  onUp: () => void;
  /** Called for everything that happens to the run, in order. */
  onUpdate: (update: RunUpdate) => void;
  /** Called when a process ended that had come up. */
  onGone: (how: string) => void;
  /** Ends the process at once and starts no other; what was asked of it fails with WorkerGone. */
  kill(): void;
  /** Lets the process close everything and end, and starts no other. */
  stop(): Promise<void>;
}

interface Pending {
  reply(reply: Reply): void;
  fail(error: Error): void;
}

interface Current {
  readonly connection: WorkerConnection;
  readonly pending: Map<bigint, Pending>;
  hello?: Hello;
}

const LEVELS: Readonly<Record<number, Level>> = {
  [LogLevel.DEBUG]: "debug",
  [LogLevel.WARNING]: "warning",
  [LogLevel.ERROR]: "error",
};

/** @param timeoutMs how long a process may be busy without getting on, or silent, before it is ended */
export function superviseWorker(
  start: StartWorker,
  log: Log,
  timeoutMs: number,
  begin: BeginRequest = () => () => {},
): Gpu {
  let current: Current | undefined;
  let stopping = false;
  let failures = 0;
  let starts = 0;
  let lastEnding = "it has not started yet";
  let lastId = 0n;
  let restart: ReturnType<typeof setTimeout> | undefined;
  const waiting = new Set<() => void>();
  const wake = (): void => {
    for (const resolve of waiting) resolve();
    waiting.clear();
  };

  function receive(from: Current, { message }: FromWorker): void {
    switch (message.case) {
      case "hello":
        if (message.value.protocolVersion !== PROTOCOL_VERSION) {
          log("error", `the GPU process speaks protocol ${message.value.protocolVersion}, not ${PROTOCOL_VERSION}`);
          from.connection.kill();
          return;
        }
        from.hello = message.value;
        log("info", message.value.adapter?.line ?? "GPU process ready");
        wake();
        gpu.onUp();
        return;
      case "reply":
        failures = 0;
        from.pending.get(message.value.id)?.reply(message.value);
        return;
      case "failure":
        from.pending.get(message.value.id)?.fail(new WorkerFailure(message.value.error));
        return;
      case "update":
        gpu.onUpdate(message.value);
        return;
      case "log":
        log(LEVELS[message.value.level] ?? "info", `gpu: ${message.value.message}`);
    }
  }

  async function live(): Promise<void> {
    restart = undefined;
    starts++;
    let own: Current;
    try {
      own = { connection: start(), pending: new Map() };
    } catch (error) {
      return ended(undefined, (error as Error).message);
    }
    current = own;
    let hung = "";
    const watchdog = watchProgress(timeoutMs, () => {
      hung = `no progress for ${timeoutMs / 1000} s, `;
      own.connection.kill();
    });
    try {
      for await (const message of own.connection.messages) {
        watchdog.heard(message);
        receive(own, message);
      }
    } catch (error) {
      log("error", `the GPU process sent garbage: ${(error as Error).message}`);
    }
    // Its output is over. One that closes it and lives on is of no use.
    const timer = setTimeout(() => own.connection.kill(), stopping ? SHUTDOWN_MS : 1000);
    const how = hung + (await own.connection.ended);
    watchdog.end();
    clearTimeout(timer);
    ended(own, how);
  }

  function ended(own: Current | undefined, how: string): void {
    lastEnding = how;
    current = undefined;
    for (const { fail } of own?.pending.values() ?? []) fail(new WorkerGone(how));
    if (stopping) {
      wake();
      return;
    }
    const delay = Math.min(FIRST_DELAY_MS * 2 ** failures++, LONGEST_DELAY_MS);
    log("warning", `the GPU process ended (${how}); a new one starts in ${delay / 1000} s`);
    restart = setTimeout(live, delay);
    if (own?.hello) gpu.onGone(how);
  }

  async function ready(signal: AbortSignal | undefined): Promise<Current> {
    const deadline = Date.now() + READY_MS;
    while (!current?.hello) {
      signal?.throwIfAborted();
      const left = deadline - Date.now();
      if (stopping) throw refusal(status.UNAVAILABLE, "STOPPING", "the server is stopping", {}, 5);
      if (left <= 0) {
        throw refusal(status.UNAVAILABLE, "NO_GPU_PROCESS", `no GPU process has come up (${lastEnding})`, {}, 10);
      }
      await new Promise<void>((resolve) => {
        const timer = setTimeout(done, left);
        function done(): void {
          clearTimeout(timer);
          signal?.removeEventListener("abort", done);
          waiting.delete(done);
          resolve();
        }
        signal?.addEventListener("abort", done, { once: true });
        waiting.add(done);
      });
    }
    return current;
  }

  async function* stream(request: WorkerRequest, signal?: AbortSignal): AsyncGenerator<Reply> {
    const own = await ready(signal);
    // It may have ended while this call was on its way here; then nobody would ever answer.
    if (own !== current) throw new WorkerGone(lastEnding);
    const id = ++lastId;
    const end = begin(request.case ?? "");
    const replies: Reply[] = [];
    let failure: Error | undefined;
    let changed = (): void => {};
    own.pending.set(id, {
      reply(reply) {
        replies.push(reply);
        changed();
      },
      fail(error) {
        failure = error;
        changed();
      },
    });
    const giveUp = (): void =>
      own.connection.send(create(ToWorkerSchema, { id: ++lastId, request: { case: "cancelRequest", value: { id } } }));
    signal?.addEventListener("abort", giveUp, { once: true });
    let complete = false;
    try {
      own.connection.send(create(ToWorkerSchema, { id, request }) as ToWorker);
      while (!complete) {
        const next = replies.shift();
        if (next) {
          complete = !next.more;
          yield next;
        } else if (failure) {
          complete = true;
          throw failure;
        } else {
          await new Promise<void>((resolve) => {
            changed = resolve;
          });
        }
      }
    } finally {
      own.pending.delete(id);
      end(failure);
      signal?.removeEventListener("abort", giveUp);
      if (!complete && current === own) giveUp();
    }
  }

  const gpu: Gpu = {
    get hello() {
      return current?.hello;
    },
    get starts() {
      return starts;
    },
    async request(request, signal) {
      for await (const reply of stream(request, signal)) return reply;
      throw new WorkerGone("no reply");
    },
    stream,
    onUp: () => {},
    onUpdate: () => {},
    onGone: () => {},
    kill() {
      stopping = true;
      clearTimeout(restart);
      wake();
      current?.connection.kill();
    },
    async stop() {
      stopping = true;
      clearTimeout(restart);
      wake();
      const own = current;
      if (!own) return;
      own.connection.send(create(ToWorkerSchema, { id: ++lastId, request: { case: "shutdown", value: {} } }));
      const timer = setTimeout(() => own.connection.kill(), SHUTDOWN_MS);
      await own.connection.ended;
      clearTimeout(timer);
    },
  };
  void live();
  return gpu;
}
