// A folder's files as a stream: each file's header, then its bytes.

import { open } from "node:fs/promises";
import { join } from "node:path";
import { filesOf } from "./layout.ts";

const CHUNK_BYTES = 256 * 1024;

type Part =
  | { readonly case: "file"; readonly value: { readonly path: string; readonly sizeBytes: bigint } }
  | { readonly case: "data"; readonly value: Uint8Array };

/** Files sorted by path. A reader that stops reading holds one file open and one chunk. */
export async function* download(directory: string): AsyncGenerator<{ part: Part }> {
  for (const { path, bytes } of await filesOf(directory)) {
    yield { part: { case: "file", value: { path, sizeBytes: BigInt(bytes) } } };
    const file = await open(join(directory, path), "r");
    try {
      for (let sent = 0; sent < bytes; ) {
        const chunk = new Uint8Array(Math.min(CHUNK_BYTES, bytes - sent));
        const { bytesRead } = await file.read(chunk, 0, chunk.length, sent);
        if (bytesRead === 0) throw new Error("a file became shorter while it was sent");
        sent += bytesRead;
        yield { part: { case: "data", value: chunk.subarray(0, bytesRead) } };
      }
    } finally {
      await file.close();
    }
  }
}
