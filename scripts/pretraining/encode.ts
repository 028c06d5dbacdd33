// Tokenises many documents on all cores: each process loads the tokenizer and takes every so-many-th document. (Processes,
// because Node 20's threads do not load TypeScript through tsx.)

import { fork } from "node:child_process";
import { availableParallelism } from "node:os";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { loadTokenizer } from "../../src/trainer/data/tokenizer.ts";

interface Share {
  /** Folder of the tokenizer. */
  readonly directory: string;
  readonly documents: readonly string[];
}

/** So many documents at least are worth a process. */
const FEWEST_DOCUMENTS = 64;
const THIS_FILE = fileURLToPath(import.meta.url);

/** Token ids of `documents` without special tokens, in their order, by the tokenizer in `directory`. */
export async function encodeDocuments(directory: string, documents: readonly string[]): Promise<Uint32Array[]> {
  const shares = Math.max(1, Math.min(availableParallelism(), Math.floor(documents.length / FEWEST_DOCUMENTS)));
  const encoded = await Promise.all(
    Array.from({ length: shares }, (_, share) =>
      inProcess({ directory, documents: documents.filter((_, i) => i % shares === share) }),
    ),
  );
  return documents.map((_, i) => encoded[i % shares][Math.floor(i / shares)]);
}

function inProcess(share: Share): Promise<Uint32Array[]> {
  return new Promise((resolve, reject) => {
    const child = fork(THIS_FILE, { execArgv: ["--import", "tsx"], serialization: "advanced" });
    child.once("message", (encoded) => resolve(encoded as Uint32Array[]));
    child.once("error", reject);
    child.once("exit", (code) => reject(new Error(`a tokenising process ended with code ${code}`)));
    child.send(share);
  });
}

if (process.argv[1] === THIS_FILE) {
  process.once("message", async (message) => {
    const { directory, documents } = message as Share;
    const tokenizer = (await loadTokenizer(directory))!;
    const encoded = documents.map((text) => Uint32Array.from(tokenizer.encode(text, { special: false })));
    process.send!(encoded, () => process.disconnect());
  });
}
