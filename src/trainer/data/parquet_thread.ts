// The thread that reads Parquet files: one request at a time, one reply to each. See parquet_reader.ts.

import { parentPort } from "node:worker_threads";
import { InputError } from "../types.ts";
import { type ParquetColumns, parquetToJsonl } from "./parquet.ts";

export interface ParquetRequest {
  readonly source: string;
  readonly target: string;
  readonly columns: ParquetColumns;
  readonly maxBytes: number;
}

/** `ready` comes once, before any request. */
export type ParquetReply =
  | { readonly kind: "ready" | "done" }
  | { readonly kind: "problems"; readonly problems: readonly string[] }
  | { readonly kind: "fault"; readonly message: string; readonly code?: string };

async function replyTo({ source, target, columns, maxBytes }: ParquetRequest): Promise<ParquetReply> {
  try {
    await parquetToJsonl(source, target, columns, maxBytes);
    return { kind: "done" };
  } catch (error) {
    if (error instanceof InputError) return { kind: "problems", problems: error.problems.map((p) => p.message) };
    const { message, code } = error as NodeJS.ErrnoException;
    return { kind: "fault", message, code };
  }
}

const reply = (message: ParquetReply): void => parentPort!.postMessage(message);
parentPort!.on("message", async (request: ParquetRequest) => reply(await replyTo(request)));
reply({ kind: "ready" });
