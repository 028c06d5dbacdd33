// Every call to a service is seen here once, whatever its kind and whichever process its connection ends in: by the log, by
// the metrics and by the tracer. What sees a call hears of its beginning and of its end; it changes nothing.

import type { DescMessage, DescMethod, DescService, Message } from "@bufbuild/protobuf";
import { status } from "@grpc/grpc-js";
import { RpcError } from "../../../proto/rpc/status.ts";
import { runIn } from "../ids.ts";
import type { Log } from "../log.ts";
import type { CallContext, Handlers } from "../rpc/serve.ts";

/** A call that is going on. */
export interface ObservedCall {
  /** Runs a part of the call's work. */
  readonly within?: <T>(work: () => T) => T;
  /** @param run what the call was about, `runs/{run}`, where one can tell */
  end(code: string, run: string | undefined): void;
}

export type CallObserver = (context: CallContext) => ObservedCall;

/** `thaw.v1.RunService/CreateRun`. */
export const methodName = (method: DescMethod): string => `${method.parent.typeName}/${method.name}`;

type Handler = (input: unknown, context: CallContext) => unknown;

/** The service's handlers, seen by the observers. */
export function observed<S extends DescService>(
  service: S,
  handlers: Handlers<S>,
  observers: readonly CallObserver[],
): Handlers<S> {
  const untyped = handlers as Readonly<Record<string, Handler>>;
  const entries = service.methods.map(({ localName, methodKind }): [string, Handler] => {
    const one = methodKind === "unary" || methodKind === "client_streaming" ? single : streaming;
    return [localName, one(untyped[localName], observers)];
  });
  return Object.fromEntries(entries) as Handlers<S>;
}

function begin(observers: readonly CallObserver[], context: CallContext, input: unknown) {
  const calls = observers.map((observer) => observer(context));
  const around = calls.flatMap(({ within }) => within ?? []);
  const about = runOf(input);
  return {
    within: <T>(work: () => T): T => around.reduceRight((inner, within) => () => within(inner), work)(),
    end(code: status, output?: unknown): void {
      for (const call of calls) call.end(status[code], about ?? runOf(output));
    },
    /** The code that the call ends with when its handler throws this. */
    codeOf(thrown: unknown): status {
      if (context.signal.aborted) return status.CANCELLED;
      return thrown instanceof RpcError ? thrown.code : status.INTERNAL;
    },
  };
}

const single =
  (handler: Handler, observers: readonly CallObserver[]): Handler =>
  async (input, context) => {
    const call = begin(observers, context, input);
    try {
      const output = await call.within(() => handler(input, context));
      call.end(status.OK, output);
      return output;
    } catch (thrown) {
      call.end(call.codeOf(thrown));
      throw thrown;
    }
  };

const streaming = (handler: Handler, observers: readonly CallObserver[]): Handler =>
  async function* (input, context) {
    const call = begin(observers, context, input);
    // What is left when the reader stops reading.
    let code = status.CANCELLED;
    try {
      const messages = call.within(() => handler(input, context)) as AsyncIterable<Message>;
      const iterator = messages[Symbol.asyncIterator]();
      try {
        while (true) {
          const next = await call.within(() => iterator.next());
          if (next.done) break;
          yield next.value;
        }
      } finally {
        await iterator.return?.();
      }
      code = status.OK;
    } catch (thrown) {
      code = call.codeOf(thrown);
      throw thrown;
    } finally {
      call.end(code);
    }
  };

/** The run that a request or a response is about. */
function runOf(message: unknown): string | undefined {
  for (const key of ["run", "name", "parent", "source"]) {
    const value = (message as Readonly<Record<string, unknown>> | undefined)?.[key];
    const name = typeof value === "object" ? (value as { readonly name?: unknown } | null)?.name : value;
    const run = typeof name === "string" ? runIn(name) : undefined;
    if (run) return run;
  }
  return undefined;
}

/** Whether the method changes something: its request, or what it wraps, then has a `request_id`. */
const mutates = ({ input }: DescMethod): boolean =>
  hasRequestId(input) || input.fields.some((field) => field.fieldKind === "message" && hasRequestId(field.message));

const hasRequestId = ({ field }: DescMessage): boolean => field.requestId !== undefined;

/**
 * One entry per call: what changed something or was refused at `info`, what failed by a fault of ours at `error`, reads and
 * calls that were given up at `debug`.
 */
export function loggedCalls(log: Log): CallObserver {
  return ({ method, requestId }) => {
    const begun = performance.now();
    const read = !mutates(method);
    return {
      end(code, run) {
        const fault = code === "INTERNAL" || code === "UNKNOWN";
        const quiet = code === "CANCELLED" || (code === "OK" && read);
        const ms = Math.round(performance.now() - begun);
        const fields = { code, ms, request_id: requestId, run };
        log(fault ? "error" : quiet ? "debug" : "info", methodName(method), fields);
      },
    };
  };
}
