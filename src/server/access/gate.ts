// The one place every call passes, unary or streaming, ours or health and reflection: a grpc-js interceptor that decides
// on the metadata alone, before a message is read. It bounds what a caller may send and hold open, asks for a token where
// the server wants one, and ends the streams of a token that is revoked or expires while they are open.
//
// The token's record is read from the registry on every call, so a revocation holds from the next call on. Open calls are
// looked at again every `RECHECK_MS`.

import { type Metadata, ServerInterceptingCall, type ServerInterceptor, status } from "@grpc/grpc-js";
import { type RpcError, toWire } from "../../../proto/rpc/status.ts";
import type { Log } from "../log.ts";
import type { TokenRecord, TokenStore } from "../registry/tokens.ts";
import { setCaller } from "../rpc/caller.ts";
import { refusal } from "../rpc/errors.ts";
import type { Limits } from "../settings.ts";
import { accessTo, mayAct } from "./roles.ts";
import { anyToken, authenticate, requireLive } from "./tokens.ts";

/** A revoked token's open streams end within this time. */
const RECHECK_MS = 200;
const REFUSALS_LOG_MS = 1000;

export interface Gate {
  readonly interceptor: ServerInterceptor;
  /** Ends the looking after open calls, and closes the tokens. */
  close(): void;
}

interface OpenCall {
  readonly token: string | undefined;
  end(error: RpcError): void;
}

/** Hears of every call that is turned away, by the name of its code. */
export type RefusalListener = (code: string) => void;

/** @param tokens undefined: the server wants none, and every caller may do everything */
export function createGate(
  limits: Pick<Limits, "maxMetadataBytes" | "maxOpenCalls">,
  tokens: TokenStore | undefined,
  log: Log,
  onRefused: RefusalListener,
): Gate {
  const open = new Set<OpenCall>();
  const tellRefused = refusals(log);
  if (tokens && !anyToken(tokens)) log("warning", "nobody has a token yet: thaw tokens create makes one");

  /** @throws RpcError when the call may not go on */
  function admit(path: string, metadata: Metadata): string | undefined {
    const { maxMetadataBytes, maxOpenCalls } = limits;
    if (open.size >= maxOpenCalls)
      throw exceeded("TOO_MANY_CALLS", maxOpenCalls, "calls are taken at a time (--max-open-calls)", 1);
    if (bytesOf(metadata) > maxMetadataBytes) {
      throw exceeded("METADATA_TOO_LARGE", maxMetadataBytes, "bytes of metadata are taken (--max-metadata-bytes)");
    }
    const needed = accessTo(path);
    if (!tokens || needed === "open") return undefined;
    const token = authenticate(tokens, metadata.get("authorization"));
    if (needed === undefined || !mayAct(token.role, needed)) throw tooLow(token, path, needed ?? "nobody");
    return token.id;
  }

  const interceptor: ServerInterceptor = ({ path }, call) => {
    let own: OpenCall | undefined;
    let over = false;
    let handler: Parameters<ServerInterceptingCall["start"]>[0] | undefined;
    const end = (error: RpcError): void => {
      over = true;
      call.sendStatus({ ...toWire(error), details: error.message });
      // grpc-js would tell the handler when the status is out, which a client that stops reading can put off for ever.
      if (own) handler?.onCancel();
    };
    const guarded = new ServerInterceptingCall(call, {
      // What the handler still says after the end goes nowhere.
      sendMessage: (message, send) => void (over || send(message)),
      sendStatus: (ending, send) => void (over || send(ending)),
      start: (next) =>
        next({
          onReceiveMetadata(metadata, deliver) {
            try {
              own = { token: admit(path, metadata), end };
              open.add(own);
              metadata.remove("authorization"); // No handler and no log needs it.
              setCaller(metadata, own.token);
              deliver(metadata);
            } catch (error) {
              end(error as RpcError);
              onRefused(status[(error as RpcError).code]);
              tellRefused(path, error as RpcError, call.getPeer());
            }
          },
          onReceiveMessage: (message, deliver) => deliver(message),
          onReceiveHalfClose: (deliver) => deliver(),
          onCancel: () => void (own && open.delete(own)), // However the call ends.
        }),
    });
    const start = guarded.start.bind(guarded);
    guarded.start = (listener) => {
      handler = listener;
      start(listener);
    };
    return guarded;
  };

  const recheck = (): void => {
    const ended = new Map<string, RpcError | undefined>();
    for (const call of [...open]) {
      if (call.token === undefined) continue;
      if (!ended.has(call.token)) ended.set(call.token, reasonToEnd(call.token));
      const error = ended.get(call.token);
      if (error && open.delete(call)) call.end(error);
    }
  };
  function reasonToEnd(id: string): RpcError | undefined {
    try {
      requireLive(tokens?.token(id));
      return undefined;
    } catch (error) {
      return error as RpcError;
    }
  }
  const timer = tokens && setInterval(recheck, RECHECK_MS);
  timer?.unref();
  return {
    interceptor,
    close() {
      clearInterval(timer);
      tokens?.close();
    },
  };
}

/** Who is turned away is in the log, one entry a second, so that nobody can fill the disk with it. */
function refusals(log: Log): (path: string, error: RpcError, peer: string) => void {
  let last = 0;
  let untold = 0;
  return (path, { code, message }, peer) => {
    if (Date.now() - last < REFUSALS_LOG_MS) {
      untold++;
      return;
    }
    const more = untold > 0 ? `; ${untold} more before` : "";
    log("warning", `${path.slice(1)} refused to ${peer}: ${status[code]}: ${message}${more}`);
    last = Date.now();
    untold = 0;
  };
}

function exceeded(reason: string, limit: number, what: string, retrySeconds?: number): RpcError {
  const figures = { limit: String(limit) };
  return refusal(status.RESOURCE_EXHAUSTED, reason, `at most ${limit} ${what}`, figures, retrySeconds);
}

function tooLow({ role }: TokenRecord, path: string, needed: string): RpcError {
  const message = `${path.slice(1)} is for the role ${needed}; the token's is ${role}`;
  return refusal(status.PERMISSION_DENIED, "ROLE_TOO_LOW", message, { role, needed });
}

/** Names and values as they are sent. */
function bytesOf(metadata: Metadata): number {
  let bytes = 0;
  for (const [key, values] of Object.entries(metadata.toHttp2Headers())) {
    for (const value of [values ?? ""].flat()) bytes += key.length + String(value).length;
  }
  return bytes;
}
