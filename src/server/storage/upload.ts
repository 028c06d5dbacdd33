// Files that arrive in a stream, into a temporary folder: bytes counted against one limit, each file's digest kept. The
// stream is whole when it has said so.

import { createHash } from "node:crypto";
import { mkdir, open } from "node:fs/promises";
import { dirname, join } from "node:path";
import { status } from "@grpc/grpc-js";
import { diskFull, refusal } from "../rpc/errors.ts";
import { invalidField } from "../validation/problems.ts";
import { isDiskFull } from "./disk_full.ts";

export interface ReceivedFile {
  readonly path: string;
  readonly bytes: number;
  readonly sha256: string;
}

export interface Receiver {
  /** Begins a file; its path is already checked. Ends the one before. */
  begin(path: string): Promise<void>;
  /** Adds to the file begun. @throws RpcError RESOURCE_EXHAUSTED over the limit, or when the disk is full */
  write(data: Uint8Array): Promise<void>;
  /** The file being written, so far. */
  readonly current: { readonly path: string; readonly bytes: number } | undefined;
  /** Ends the last file. */
  finish(): Promise<readonly ReceivedFile[]>;
  /** Closes what is open, after a failure. */
  abandon(): Promise<void>;
}

/**
 * The messages of an upload before the one that ends it.
 * @throws RpcError INVALID_ARGUMENT when the stream ends without it, as that of a client that gave up does, or goes on
 */
export async function* untilEnd<M extends { readonly part: { readonly case?: string } }>(
  requests: AsyncIterable<M>,
): AsyncGenerator<M> {
  let ended = false;
  for await (const request of requests) {
    if (ended) throw invalidField(request.part.case ?? "part", "comes after `end`");
    ended = request.part.case === "end";
    if (!ended) yield request;
  }
  if (!ended) throw invalidField("end", "required: it says that the upload is complete");
}

/** @param reserve asked before so many bytes are written; it throws where there is no room for them */
export function receiver(directory: string, maxBytes: number, reserve: (bytes: number) => Promise<void>): Receiver {
  const received: ReceivedFile[] = [];
  let total = 0;
  let now: { path: string; bytes: number; hash: ReturnType<typeof createHash>; file: FileHandle } | undefined;

  async function end(): Promise<void> {
    if (!now) return;
    const { path, bytes, hash, file } = now;
    now = undefined;
    await file.close();
    received.push({ path, bytes, sha256: hash.digest("hex") });
  }

  return {
    async begin(path) {
      await end();
      const target = join(directory, path);
      await mkdir(dirname(target), { recursive: true });
      now = { path, bytes: 0, hash: createHash("sha256"), file: await open(target, "wx") };
    },
    async write(data) {
      total += data.length;
      if (total > maxBytes) {
        const message = `an upload may have ${maxBytes} bytes (--max-upload-bytes)`;
        throw refusal(status.RESOURCE_EXHAUSTED, "UPLOAD_TOO_LARGE", message, { limit: String(maxBytes) });
      }
      await reserve(data.length);
      now!.bytes += data.length;
      now!.hash.update(data);
      try {
        await now!.file.appendFile(data);
      } catch (error) {
        throw isDiskFull(error) ? diskFull() : error;
      }
    },
    get current() {
      return now;
    },
    async finish() {
      await end();
      return received;
    },
    async abandon() {
      await now?.file.close();
      now = undefined;
    },
  };
}

type FileHandle = Awaited<ReturnType<typeof open>>;
