// The server's side of the worker protocol, for tests: sends requests, keeps everything that comes back, waits for it.

import type { MessageInitShape } from "@bufbuild/protobuf";
import { create } from "@bufbuild/protobuf";
import {
  type Failure,
  type FromWorker,
  type Reply,
  type RunUpdate,
  type ToWorker,
  ToWorkerSchema,
} from "../../proto/gen/thaw/worker/v1/worker_pb.ts";

export type WorkerRequest = NonNullable<MessageInitShape<typeof ToWorkerSchema>["request"]>;

/** Milliseconds. A software adapter compiles a model's kernels in seconds, on a busy machine in half a minute. */
const PATIENCE = 120_000;

export interface WorkerClient {
  readonly messages: FromWorker[];
  readonly updates: () => RunUpdate[];
  /** Sends a request; returns its id. */
  send(request: WorkerRequest): bigint;
  /** Takes a message from the worker. */
  accept(message: FromWorker): void;
  /** The first message, past or future, for which `find` returns something. */
  until<R>(find: (message: FromWorker) => R | undefined): Promise<R>;
  /** The last reply to a request. @throws when it failed */
  reply(id: bigint): Promise<Reply["result"]>;
  /** The failure of a request. @throws when it succeeded */
  failure(id: bigint): Promise<NonNullable<Failure["error"]>["error"]>;
  /** The first update of a kind. */
  update<C extends UpdateCase>(kind: C): Promise<UpdateValue<C>>;
}

type UpdateCase = NonNullable<RunUpdate["update"]["case"]>;
type UpdateValue<C extends UpdateCase> = Extract<RunUpdate["update"], { case: C }>["value"];

export function workerClient(deliver: (message: ToWorker) => void): WorkerClient {
  const messages: FromWorker[] = [];
  const watchers = new Set<() => void>();
  let nextId = 1n;

  function until<R>(find: (message: FromWorker) => R | undefined): Promise<R> {
    return new Promise((resolve, reject) => {
      const last = () => JSON.stringify(messages.at(-1)?.message.case);
      const timer = setTimeout(() => {
        watchers.delete(look);
        reject(new Error(`the worker did not send what was waited for; its last message is ${last()}`));
      }, PATIENCE);
      let seen = 0;
      function look(): void {
        for (; seen < messages.length; seen++) {
          const found = find(messages[seen]);
          if (found === undefined) continue;
          clearTimeout(timer);
          watchers.delete(look);
          resolve(found);
          return;
        }
      }
      watchers.add(look);
      look();
    });
  }
  const answer = (id: bigint) =>
    until(({ message: m }) => {
      if (m.case === "failure" && m.value.id === id) return m.value;
      return m.case === "reply" && m.value.id === id && !m.value.more ? m.value : undefined;
    });
  return {
    messages,
    updates: () => messages.flatMap(({ message: m }) => (m.case === "update" ? [m.value] : [])),
    send(request) {
      const id = nextId++;
      deliver(create(ToWorkerSchema, { id, request }));
      return id;
    },
    accept(message) {
      messages.push(message);
      for (const look of watchers) look();
    },
    until,
    async reply(id) {
      const found = await answer(id);
      if (found.$typeName === "thaw.worker.v1.Failure")
        throw new Error(`request ${id} failed: ${JSON.stringify(found.error?.error)}`);
      return found.result;
    },
    async failure(id) {
      const found = await answer(id);
      if (found.$typeName !== "thaw.worker.v1.Failure") throw new Error(`request ${id} succeeded`);
      return found.error?.error ?? { case: undefined };
    },
    update: <C extends UpdateCase>(kind: C) =>
      until<UpdateValue<C>>(({ message: m }) =>
        m.case === "update" && m.value.update.case === kind ? (m.value.update.value as UpdateValue<C>) : undefined,
      ),
  };
}
