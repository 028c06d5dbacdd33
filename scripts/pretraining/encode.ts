// Tokenises many documents on all cores: each thread loads the tokenizer and takes every so-many-th document.

import { once } from "node:events";
import { availableParallelism } from "node:os";
import { isMainThread, parentPort, workerData } from "node:worker_threads";
import { startThread } from "../../src/trainer/data/thread.ts";
import { loadTokenizer } from "../../src/trainer/data/tokenizer.ts";

interface Share {
  /** Folder of the tokenizer. */
  readonly directory: string;
  readonly documents: readonly string[];
}

/** So many documents at least are worth a thread. */
const FEWEST_DOCUMENTS = 64;

/** Token ids of `documents` without special tokens, in their order, by the tokenizer in `directory`. */
export async function encodeDocuments(directory: string, documents: readonly string[]): Promise<Uint32Array[]> {
  const shares = Math.max(1, Math.min(availableParallelism(), Math.floor(documents.length / FEWEST_DOCUMENTS)));
  const encoded = await Promise.all(
    Array.from({ length: shares }, async (_, share): Promise<Uint32Array[]> => {
      const workerData: Share = { directory, documents: documents.filter((_, i) => i % shares === share) };
      // An error in the thread is thrown here.
      const [message] = await once(startThread(new URL(import.meta.url), { workerData }), "message");
      return message;
    }),
  );
  return documents.map((_, i) => encoded[i % shares][Math.floor(i / shares)]);
}

if (!isMainThread && workerData) {
  const { directory, documents } = workerData as Share;
  const tokenizer = (await loadTokenizer(directory))!;
  parentPort!.postMessage(documents.map((text) => Uint32Array.from(tokenizer.encode(text, { special: false }))));
}
