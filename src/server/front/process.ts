// The front process (see relay.ts): gRPC on a port, every call handed through to the server process that started this one.
// It keeps nothing. stdout carries frames only.

import process from "node:process";
import { type DescMethod, type DescService, fromBinary, type Message, toBinary } from "@bufbuild/protobuf";
import { status } from "@grpc/grpc-js";
import { StatusSchema } from "../../../proto/gen/google/rpc/status_pb.ts";
import { fromStatus, RpcError } from "../../../proto/rpc/status.ts";
import type { Log } from "../log.ts";
import type { CallContext, Handlers } from "../rpc/serve.ts";
import { standardOutput } from "../worker/outbox.ts";
import { type FrontOptions, startFront } from "./front.ts";
import { decodeNotes, encodeNote, type Incoming, incoming, type Note, type Outgoing, outgoing } from "./pipe.ts";

const calls = new Map<number, { readonly responses: Incoming; readonly requests: Outgoing }>();
let lastCall = 0;
const output = standardOutput();
const say = (note: Note, payload?: Uint8Array): void => void output.write(encodeNote(note, payload));

/** One call, whatever its kind: requests go out, responses come in, and its status ends it. */
async function* relay(
  method: DescMethod,
  requests: AsyncIterable<Message>,
  context: CallContext,
): AsyncGenerator<Message> {
  const call = ++lastCall;
  const responses = incoming(() => say({ kind: "taken", call }));
  const sending = outgoing((message) => say({ kind: "message", call }, message));
  calls.set(call, { responses, requests: sending });
  const metadata = Object.entries(context.metadata.getMap()).flatMap(([key, value]): [string, string][] =>
    typeof value === "string" ? [[key, value]] : [],
  );
  say({ kind: "call", call, path: `${method.parent.typeName}/${method.name}`, peer: context.peer, metadata });
  const cancel = (): void => {
    if (!calls.delete(call)) return;
    say({ kind: "cancel", call });
    sending.close();
    responses.end(new RpcError(status.CANCELLED, "the call is over"));
  };
  context.signal.addEventListener("abort", cancel, { once: true });
  const sent = (async () => {
    for await (const request of requests) await sending.send(toBinary(method.input, request));
    if (calls.has(call)) say({ kind: "end", call });
  })();
  sent.catch(cancel);
  try {
    for await (const payload of responses) yield fromBinary(method.output, payload);
  } finally {
    context.signal.removeEventListener("abort", cancel);
    cancel();
  }
}

async function* one(message: Message): AsyncGenerator<Message> {
  yield message;
}

function handler(method: DescMethod) {
  const stream = (input: Message | AsyncIterable<Message>, context: CallContext): AsyncGenerator<Message> =>
    relay(method, Symbol.asyncIterator in input ? input : one(input), context);
  if (method.methodKind === "server_streaming" || method.methodKind === "bidi_streaming") return stream;
  return async (input: Message | AsyncIterable<Message>, context: CallContext): Promise<Message> => {
    let response: Message | undefined;
    for await (const message of stream(input, context)) response = message;
    if (!response) throw new Error("no response");
    return response;
  };
}

const handlersFor = <S extends DescService>(service: S): Handlers<S> =>
  Object.fromEntries(service.methods.map((method) => [method.localName, handler(method)])) as Handlers<S>;

const options: FrontOptions = JSON.parse(process.argv[2]);
process.on("SIGINT", () => {}); // A terminal sends it to the whole group; the server process decides.
process.on("SIGTERM", () => {});
// The server process takes what is written here into its own log.
const log: Log = (level, message) => void process.stderr.write(`${level}: ${message}\n`);
const front = await startFront(options, handlersFor, log, (code) => say({ kind: "refused", code }));
say({ kind: "listening", port: front.port });

for await (const { note, payload } of decodeNotes(process.stdin)) {
  if (note.kind === "message") calls.get(note.call)?.responses.push(payload);
  else if (note.kind === "taken") calls.get(note.call)?.requests.taken();
  else if (note.kind === "end") {
    const call = calls.get(note.call);
    calls.delete(note.call);
    call?.requests.close();
    call?.responses.end(payload.length > 0 ? fromStatus(fromBinary(StatusSchema, payload)) : undefined);
  } else if (note.kind === "drain") front.draining();
  else if (note.kind === "stop") void front.stop(note.deadlineMs).then(() => process.exit(0));
}
process.exit(1); // The server process is gone.
