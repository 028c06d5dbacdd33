// Writes safetensors files. Shapes are known before data is: the header is written from the shapes of all tensors, then
// each tensor's data is produced, written and forgotten, so a checkpoint is never in memory twice.
//
// The SHA-256 of every tensor stands in the header's metadata, as `sha256.NAME`, and is checked by who reads the tensor
// here; other readers pass it over. It is known last: the header is written with room for it, and again at the end.

import { createHash } from "node:crypto";
import { type FileHandle, open } from "node:fs/promises";
import { failpoint } from "../../failpoints.ts";
import { CHECKSUM_KEY, ELEMENT_BYTES, type SafetensorsDType } from "./safetensors_header.ts";

/** The typed array a dtype is written from, row-major; F16 and BF16 as their bits. */
export type WritableData =
  | Float32Array
  | Float64Array
  | Int8Array
  | Uint8Array
  | Int16Array
  | Uint16Array
  | Int32Array
  | Uint32Array
  | BigInt64Array
  | BigUint64Array;

export interface WritableTensor {
  readonly name: string;
  readonly dtype: SafetensorsDType;
  readonly shape: readonly number[];
  /** The data, or what produces it when its turn has come (a read from the device). */
  readonly data: WritableData | (() => WritableData | Promise<WritableData>);
}

/** The first tensor starts at a multiple of this, as the format asks. */
const ALIGNMENT = 8;

const byteLengthOf = ({ dtype, shape }: WritableTensor): number => shape.reduce((a, b) => a * b, ELEMENT_BYTES[dtype]);

/** As long as a SHA-256 in hexadecimal. */
const NO_CHECKSUM = "0".repeat(64);

/**
 * 8 bytes of length, then the header padded with spaces so that the data after it is aligned. As long whatever the
 * checksums, of which those of `checksums` are known.
 */
function encodeHeader(
  tensors: readonly WritableTensor[],
  metadata: Readonly<Record<string, string>>,
  checksums: ReadonlyMap<string, string> = new Map(),
): Uint8Array {
  const entries = new Map<string, unknown>();
  const sums = tensors.map(({ name }) => [CHECKSUM_KEY + name, checksums.get(name) ?? NO_CHECKSUM]);
  const all = { ...metadata, ...Object.fromEntries(sums) };
  if (Object.keys(all).length > 0) entries.set("__metadata__", all);
  let offset = 0;
  for (const tensor of tensors) {
    if (entries.has(tensor.name)) throw new TypeError(`two tensors are named ${tensor.name}`);
    const end = offset + byteLengthOf(tensor);
    entries.set(tensor.name, { dtype: tensor.dtype, shape: tensor.shape, data_offsets: [offset, end] });
    offset = end;
  }
  const json = new TextEncoder().encode(
    `{${[...entries].map(([name, entry]) => `${JSON.stringify(name)}:${JSON.stringify(entry)}`).join(",")}}`,
  );
  const headerBytes = Math.ceil(json.length / ALIGNMENT) * ALIGNMENT;
  const bytes = new Uint8Array(8 + headerBytes).fill(0x20);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(headerBytes), true);
  bytes.set(json, 8);
  return bytes;
}

/** A full disk makes `write` write less than asked without failing; only a loop notices. */
async function writeFully(file: FileHandle, bytes: Uint8Array, position: number): Promise<void> {
  const largestWrite = 1 << 30;
  for (let done = 0; done < bytes.byteLength; ) {
    const { bytesWritten } = await file.write(
      bytes,
      done,
      Math.min(bytes.byteLength - done, largestWrite),
      position + done,
    );
    if (bytesWritten === 0) throw new Error("the file system accepts no more bytes");
    done += bytesWritten;
  }
}

/**
 * Writes a file, replacing one of that name, and returns after the bytes are on the disk. Tensors lie in the order
 * given; equal arguments give equal bytes. On an error the file is left incomplete: write beside the final name and
 * rename.
 *
 * @returns bytes written
 */
export async function writeSafetensors(
  path: string,
  tensors: Iterable<WritableTensor>,
  metadata: Readonly<Record<string, string>> = {},
): Promise<number> {
  const list = [...tensors];
  const header = encodeHeader(list, metadata);
  const checksums = new Map<string, string>();
  const file = await open(path, "w");
  try {
    await writeFully(file, header, 0);
    let total = header.byteLength;
    for (const tensor of list) {
      failpoint("checkpoint.before_tensor");
      const data = typeof tensor.data === "function" ? await tensor.data() : tensor.data;
      if (data.byteLength !== byteLengthOf(tensor)) {
        throw new TypeError(
          `${tensor.name}: ${data.byteLength} bytes given for ${tensor.dtype} [${tensor.shape.join(", ")}]`,
        );
      }
      const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
      await writeFully(file, bytes, total);
      checksums.set(tensor.name, createHash("sha256").update(bytes).digest("hex"));
      total += data.byteLength;
    }
    await writeFully(file, encodeHeader(list, metadata, checksums), 0);
    failpoint("checkpoint.before_sync");
    await file.sync();
    return total;
  } finally {
    await file.close();
  }
}
