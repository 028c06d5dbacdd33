// What every command shares: the connection, how results are printed, and how a command ends. Results go to stdout,
// everything said to a person beside them to stderr.

import process from "node:process";
import { createRegistry, type DescMessage, type MessageShape, toJson } from "@bufbuild/protobuf";
import type { Command } from "commander";
import { file_google_rpc_error_details } from "../../proto/gen/google/rpc/error_details_pb.ts";
import { DEFAULT_ADDRESS, problemsOf, RpcError, type Thaw } from "../typescript/index.ts";
import { connectTo, serverOf, UsageError } from "./connection.ts";
import { EXIT, exitCode } from "./exit_codes.ts";

export { UsageError };

export interface Session {
  readonly thaw: Thaw;
  /** Print protobuf JSON instead of text for people. */
  readonly json: boolean;
  /** Whether a person sees stdout. */
  readonly terminal: boolean;
  /** ` --server …` when it is not the default, for commands suggested to a person. */
  readonly serverFlag: string;
}

type Action<A extends unknown[]> = (session: Session, ...args: A) => Promise<number | undefined>;

/**
 * Makes a commander action of a function over a session. Commander passes the arguments, then the options, then the
 * command. The function returns the exit code where it is not 0.
 */
export function withSession<A extends unknown[]>(action: Action<A>): (...args: [...A, Command]) => Promise<void> {
  return async (...all) => {
    const command = all.at(-1) as Command;
    const { json = false } = command.optsWithGlobals<{ readonly json?: boolean }>();
    const server = serverOf(command);
    const serverFlag = server === DEFAULT_ADDRESS ? "" : ` --server ${server}`;
    let thaw: Thaw | undefined;
    try {
      thaw = connectTo(command);
      const session: Session = { thaw, json, terminal: Boolean(process.stdout.isTTY), serverFlag };
      process.exitCode = (await action(session, ...(all.slice(0, -1) as A))) ?? EXIT.OK;
    } catch (error) {
      process.exitCode = reportError(error, json, server);
    } finally {
      thaw?.close();
    }
  };
}

/** Prints a message: as protobuf JSON with `--json`, else as the text made of it. */
export function show<D extends DescMessage>(
  session: Session,
  schema: D,
  message: MessageShape<D>,
  text: (message: MessageShape<D>) => string,
): void {
  print(session.json ? JSON.stringify(messageJson(schema, message), undefined, 2) : text(message));
}

const registry = createRegistry(file_google_rpc_error_details);

/** Protobuf JSON: camelCase fields, int64 as strings, enums by name. */
export function messageJson<D extends DescMessage>(schema: D, message: MessageShape<D>): unknown {
  return toJson(schema, message, { registry });
}

export const print = (text: string): void => void process.stdout.write(`${text}\n`);

/** Says something to a person beside the result. */
export const note = (text: string): void => void process.stderr.write(`${text}\n`);

/** Says what went wrong and returns the exit code. No stack: what a person can act on is in the message. */
export function reportError(error: unknown, json: boolean, server: string): number {
  if (error instanceof UsageError) {
    note(`thaw: ${error.message}`);
    return EXIT.USAGE;
  }
  if (!(error instanceof RpcError)) {
    note(`thaw: ${error instanceof Error ? error.message : String(error)}`);
    return EXIT.FAILED;
  }
  const problems = problemsOf(error);
  if (json) {
    note(JSON.stringify({ error: problems }));
    return exitCode(problems.code);
  }
  const total = Number(problems.figures.problems ?? problems.fields.length);
  // The message of an error with field problems only repeats them.
  const message = problems.code === "UNAVAILABLE" ? unreachable(problems.message, server) : problems.message;
  note(problems.fields.length > 0 ? `thaw: ${problems.code}` : `thaw: ${problems.code}: ${message}`);
  for (const { field, message } of problems.fields) note(field ? `  ${field}: ${message}` : `  ${message}`);
  if (total > problems.fields.length) note(`  and ${total - problems.fields.length} more`);
  if (problems.retryAfterMs !== undefined) note(`  try again in ${Math.ceil(problems.retryAfterMs / 1000)} s`);
  if (problems.requestId) note(`  the server's log has more under request_id=${problems.requestId}`);
  return exitCode(problems.code);
}

/** grpc-js says what the system said; this says what to do about it. */
function unreachable(message: string, server: string): string {
  const [, cause = ""] = /^No connection established\. Last error: (.*)$/s.exec(message) ?? [];
  if (cause === "") return message;
  if (/ECONNREFUSED/.test(cause)) return `no server at ${server}; "thaw serve" starts one`;
  if (/Failed to connect|ECONNRESET/.test(cause))
    return `${server} hangs up: it may want TLS, a certificate, or neither`;
  return `no connection to ${server}: ${cause.replace(/\. Resolution note:.*$/s, "")}`;
}
