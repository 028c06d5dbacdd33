// Datasets and model directories to the server, files of models and checkpoints from it. Both directions stream in pieces
// of at most 1 MiB: nothing is ever held whole.

import { createReadStream, createWriteStream } from "node:fs";
import { mkdir, readdir, rename, rm, stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { pipeline } from "node:stream/promises";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { status } from "@grpc/grpc-js";
import type { Dataset } from "../../proto/gen/thaw/v1/dataset_pb.ts";
import type { DatasetHeaderSchema, UploadDatasetRequestSchema } from "../../proto/gen/thaw/v1/dataset_service_pb.ts";
import type { FileHeader } from "../../proto/gen/thaw/v1/file_pb.ts";
import type { Model } from "../../proto/gen/thaw/v1/model_pb.ts";
import type { ModelHeaderSchema, UploadModelRequestSchema } from "../../proto/gen/thaw/v1/model_service_pb.ts";
import { RpcError } from "../../proto/rpc/status.ts";
import type { Thaw } from "./thaw.ts";

/** The contract's bound on one message's bytes. */
const CHUNK_BYTES = 2 ** 20;
/** Without it the server takes an upload for given up. */
const END = { part: { case: "end" as const, value: {} } };

/** A split's bytes in the dataset's format: the path of a file, or its pieces, cut anywhere. */
export type SplitSource = string | AsyncIterable<string | Uint8Array> | Iterable<string | Uint8Array>;

/**
 * Uploads a dataset.
 * @param header its id, name, format and task; all may be left to the server, for which data is JSONL
 * @param splits source of each split, by name; sent in this order
 * @throws RpcError INVALID_ARGUMENT with every bad line; Error when a file cannot be read. Nothing is left of the upload.
 */
export async function uploadDataset(
  thaw: Pick<Thaw, "datasets">,
  header: MessageInitShape<typeof DatasetHeaderSchema>,
  splits: Readonly<Record<string, SplitSource>>,
): Promise<Dataset> {
  async function* parts(): AsyncGenerator<MessageInitShape<typeof UploadDatasetRequestSchema>> {
    yield { part: { case: "dataset", value: header } };
    for (const [name, source] of Object.entries(splits)) {
      yield { part: { case: "split", value: { name } } };
      for await (const data of chunks(typeof source === "string" ? readFile(source) : source)) {
        yield { part: { case: "data", value: data } };
      }
    }
    yield END;
  }
  const { dataset } = await thaw.datasets.uploadDataset(parts());
  return dataset!;
}

/** The split that a file is named after: `train.jsonl`; SuperGLUE's archives say `val` for `validation`. */
export function splitOfFile(path: string): string {
  const name = basename(path).replace(/\.(jsonl|parquet|txt)$/, "");
  return name === "val" ? "validation" : name;
}

/** The files of a Hugging Face directory that make up a model: configuration, tensors, tokenizer. */
const MODEL_FILE = /\.(json|safetensors|model|txt)$/;

/**
 * Uploads a Hugging Face model directory: its JSON, safetensors, SentencePiece and vocabulary files, not its subfolders.
 * @throws RpcError INVALID_ARGUMENT with every mismatch; Error when the directory cannot be read or holds no such file.
 */
export async function uploadModel(
  thaw: Pick<Thaw, "models">,
  directory: string,
  header: MessageInitShape<typeof ModelHeaderSchema>,
): Promise<Model> {
  const entries = await readdir(directory, { withFileTypes: true });
  const names = entries.filter((entry) => !entry.isDirectory() && MODEL_FILE.test(entry.name)).map(({ name }) => name);
  if (names.length === 0) throw new Error(`${directory} holds no model files (config.json, *.safetensors, …)`);

  async function* parts(): AsyncGenerator<MessageInitShape<typeof UploadModelRequestSchema>> {
    yield { part: { case: "model", value: header } };
    for (const name of names.sort()) {
      const path = join(directory, name);
      const sizeBytes = BigInt((await stat(path)).size);
      yield { part: { case: "file", value: { path: name, sizeBytes } } };
      for await (const data of chunks(readFile(path))) yield { part: { case: "data", value: data } };
    }
    yield END;
  }
  const { model } = await thaw.models.uploadModel(parts());
  return model!;
}

const readFile = (path: string): AsyncIterable<Uint8Array> => createReadStream(path, { highWaterMark: CHUNK_BYTES });

/** The same bytes in pieces of at most CHUNK_BYTES; text as UTF-8. */
async function* chunks(pieces: Exclude<SplitSource, string>): AsyncGenerator<Uint8Array> {
  const encoder = new TextEncoder();
  for await (const piece of pieces) {
    const bytes = typeof piece === "string" ? encoder.encode(piece) : piece;
    for (let at = 0; at < bytes.length; at += CHUNK_BYTES) yield bytes.subarray(at, at + CHUNK_BYTES);
  }
}

type FilePart =
  | { readonly case: "file"; readonly value: FileHeader }
  | { readonly case: "data"; readonly value: Uint8Array }
  | { readonly case: undefined };

/**
 * Writes the files of DownloadModel or DownloadCheckpoint into a directory. It appears complete or not at all.
 * @param directory must not exist
 * @returns the files written, as they were sent
 * @throws RpcError of the call, or DATA_LOSS when a path leads out of the directory or a file is not as long as announced;
 * Error when the directory exists.
 */
export async function downloadFiles(
  stream: AsyncIterable<{ readonly part: FilePart }>,
  directory: string,
): Promise<readonly FileHeader[]> {
  if (await exists(directory)) throw new Error(`${directory} already exists`);
  const temporary = join(dirname(directory), `.${basename(directory)}.part`);
  await rm(temporary, { recursive: true, force: true });
  await mkdir(temporary, { recursive: true });
  const parts = stream[Symbol.asyncIterator]();
  try {
    const files: FileHeader[] = [];
    let next = await parts.next();
    while (!next.done) {
      const { part } = next.value;
      if (part.case !== "file") throw new RpcError(status.DATA_LOSS, "the server sent bytes before a file");
      const header = part.value;
      const path = inside(temporary, header.path);
      await mkdir(dirname(path), { recursive: true });
      async function* content(): AsyncGenerator<Uint8Array> {
        let received = 0n;
        for (next = await parts.next(); !next.done; next = await parts.next()) {
          const { part } = next.value;
          if (part.case !== "data") break;
          received += BigInt(part.value.length);
          yield part.value;
        }
        if (received !== header.sizeBytes) {
          throw new RpcError(status.DATA_LOSS, `${header.path}: ${received} of ${header.sizeBytes} bytes arrived`);
        }
      }
      await pipeline(content, createWriteStream(path));
      files.push(header);
    }
    await rename(temporary, directory);
    return files;
  } finally {
    await parts.return?.(); // Cancels the call when writing failed.
    await rm(temporary, { recursive: true, force: true });
  }
}

/** A server is not trusted with where files go. */
function inside(directory: string, path: string): string {
  const steps = path.split("/");
  if (steps.some((step) => step === "" || step === "." || step === ".." || /[\\:\0]/.test(step))) {
    throw new RpcError(status.DATA_LOSS, `the server sent the path ${JSON.stringify(path)}`);
  }
  return join(directory, ...steps);
}

const exists = (path: string): Promise<boolean> =>
  stat(path).then(
    () => true,
    () => false,
  );
