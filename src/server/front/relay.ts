// The server's end of a front in a process of its own. Deno's HTTP/2 server can abort its whole process when a client
// disconnects (denoland/deno#36788); here that costs the open streams and nothing else: registry, runs and GPU process
// live in this process, which speaks no HTTP/2, and the front is started again on the same port.

import { type ChildProcess, spawn } from "node:child_process";
import { create, type DescMethod, fromBinary, type Message, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { Metadata, status } from "@grpc/grpc-js";
import { StatusSchema } from "../../../proto/gen/google/rpc/status_pb.ts";
import { publicError, RpcError, toStatus } from "../../../proto/rpc/status.ts";
import type { RefusalListener } from "../access/gate.ts";
import { ending, logStderr, runtimeCommand } from "../gpu/connection.ts";
import type { Log } from "../log.ts";
import { requestIdOf } from "../rpc/request_id.ts";
import type { CallContext } from "../rpc/serve.ts";
import { type Front, type FrontOptions, type HandlersFor, SERVICES } from "./front.ts";
import { decodeNotes, encodeNote, type Incoming, incoming, type Note, type Outgoing, outgoing } from "./pipe.ts";

const FIRST_DELAY_MS = 100;
const LONGEST_DELAY_MS = 10_000;
const PROVEN_MS = 10_000;

interface Call {
  readonly requests: Incoming;
  readonly responses: Outgoing;
  readonly over: AbortController;
}

type Say = (note: Note, payload?: Uint8Array) => void;
type Handler = (request: unknown, context: CallContext) => unknown;
type Output = MessageInitShape<DescMethod["output"]>;

const METHODS: ReadonlyMap<string, DescMethod> = new Map(
  SERVICES.flatMap((service) =>
    (service.methods as readonly DescMethod[]).map((method) => [`${service.typeName}/${method.name}`, method] as const),
  ),
);

export interface RelayedFront extends Front {
  /** The front's process; another one after each end. */
  readonly processId: number | undefined;
}

/** Starts the front process and keeps it up. Resolves when it listens. */
export async function startRelayedFront(
  options: FrontOptions,
  handlersFor: HandlersFor,
  log: Log,
  onRefused: RefusalListener,
): Promise<RelayedFront> {
  let port = options.port;
  let child: ChildProcess | undefined;
  let stopping = false;
  let delay = FIRST_DELAY_MS;
  let listening: (port: number) => void = () => {};
  let ended: Promise<string> = Promise.resolve("");

  async function live(): Promise<void> {
    const [command, ...args] = runtimeCommand(new URL("./process.ts", import.meta.url));
    const own = spawn(command, [...args, JSON.stringify({ ...options, port })], { stdio: ["pipe", "pipe", "pipe"] });
    const started = Date.now();
    child = own;
    logStderr(own, "front", log);
    own.stdin.on("error", () => {}); // It is gone; `ending` says how.
    ended = ending(own);
    const calls = new Map<number, Call>();
    const say: Say = (note, payload) => void own.stdin.write(encodeNote(note, payload));
    try {
      for await (const { note, payload } of decodeNotes(own.stdout)) hear(note, payload, calls, say);
    } catch (error) {
      log("error", `front: ${error}`);
      own.kill("SIGKILL");
    }
    for (const { requests, responses, over } of calls.values()) {
      over.abort(new RpcError(status.CANCELLED, "the call is over"));
      requests.end(over.signal.reason);
      responses.close();
    }
    const how = await ended;
    child = undefined;
    if (stopping) return;
    if (Date.now() - started > PROVEN_MS) delay = FIRST_DELAY_MS;
    log("warning", `the front ended (${how}); it starts again`);
    setTimeout(() => void live(), delay);
    delay = Math.min(2 * delay, LONGEST_DELAY_MS);
  }

  function hear(note: Note, payload: Uint8Array, calls: Map<number, Call>, say: Say): void {
    switch (note.kind) {
      case "listening":
        port = note.port;
        listening(port);
        return;
      case "call": {
        const { call } = note;
        const one: Call = {
          requests: incoming(() => say({ kind: "taken", call })),
          responses: outgoing((message) => say({ kind: "message", call }, message)),
          over: new AbortController(),
        };
        calls.set(call, one);
        void answer(note, one).then((status) => {
          calls.delete(call);
          say({ kind: "end", call }, status);
        });
        return;
      }
      case "refused":
        onRefused(note.code);
        return;
      case "message":
        calls.get(note.call)?.requests.push(payload);
        return;
      case "end":
        calls.get(note.call)?.requests.end();
        return;
      case "taken":
        calls.get(note.call)?.responses.taken();
        return;
      case "cancel": {
        const one = calls.get(note.call);
        one?.over.abort(new RpcError(status.CANCELLED, "the call is over"));
        one?.requests.end(one.over.signal.reason);
        one?.responses.close();
        return;
      }
    }
  }

  /** Runs the handler of a call. Resolves with the call's status, nothing for OK. */
  async function answer(note: Extract<Note, { kind: "call" }>, { requests, responses, over }: Call) {
    const method = METHODS.get(note.path)!;
    const metadata = new Metadata();
    for (const [key, value] of note.metadata) metadata.add(key, value);
    const requestId = requestIdOf(metadata);
    const from = { peer: note.peer, certificate: undefined };
    const context: CallContext = { method, metadata, requestId, ...from, signal: over.signal };
    async function* decoded(): AsyncGenerator<Message> {
      for await (const payload of requests) yield fromBinary(method.input, payload);
    }
    const send = (output: Output): Promise<void> =>
      responses.send(toBinary(method.output, create(method.output, output)));
    try {
      const handlers = handlersFor(method.parent) as unknown as Readonly<Record<string, Handler>>;
      const streaming = method.methodKind === "client_streaming" || method.methodKind === "bidi_streaming";
      const input = streaming ? decoded() : (await decoded().next()).value;
      const result = handlers[method.localName](input, context);
      if (method.methodKind === "unary" || method.methodKind === "client_streaming")
        await send((await result) as Output);
      else
        for await (const output of result as AsyncIterable<Output>) {
          await send(output);
          if (over.signal.aborted) break;
        }
      return undefined;
    } catch (thrown) {
      const expected = thrown instanceof RpcError || over.signal.aborted;
      if (!expected)
        log("error", `${note.path}: ${thrown instanceof Error ? thrown.stack : thrown}`, { request_id: requestId });
      return toBinary(StatusSchema, toStatus(publicError(thrown)));
    }
  }

  const bound = new Promise<void>((resolve, reject) => {
    listening = () => resolve();
    // Before it has listened once, an end means that the port cannot be had.
    queueMicrotask(() => void ended.then((how) => reject(new Error(`the front cannot listen (${how})`))));
  });
  void live();
  await bound;

  const tell = (note: Note): void => void child?.stdin?.write(encodeNote(note));
  return {
    get port() {
      return port;
    },
    get processId() {
      return child?.pid;
    },
    draining: () => tell({ kind: "drain" }),
    async stop(deadlineMs) {
      stopping = true;
      if (!child) return;
      tell({ kind: "stop", deadlineMs });
      const timer = setTimeout(() => child?.kill("SIGKILL"), deadlineMs + 2000);
      await ended;
      clearTimeout(timer);
    },
  };
}
