// Reads safetensors files, tensor by tensor, without ever holding more than the tensor asked for.
//
// Floating-point tensors come back as f32 whatever the file stores, because that is what the trainer computes from;
// integers keep their width. Multi-byte elements are little-endian in the file, and so is every host that has a WebGPU
// implementation, so bytes are read straight into the typed array. A tensor whose checksum the file has (files of ours) is
// checked whenever it is read.

import { createHash } from "node:crypto";
import { type FileHandle, open } from "node:fs/promises";
import { basename } from "node:path";
import { bfloat16ToFloat32, float16ToFloat32, float64ToFloat32 } from "./float_conversion.ts";
import { inputError } from "./problems.ts";
import {
  CHECKSUM_KEY,
  ELEMENT_BYTES,
  MAX_HEADER_BYTES,
  parseHeader,
  type SafetensorsDType,
  type TensorInfo,
} from "./safetensors_header.ts";

export type { SafetensorsDType, TensorInfo } from "./safetensors_header.ts";

/** F16, BF16, F32 and F64 → Float32Array; BOOL and U8 → Uint8Array; other integers → the array of their width. */
export type TensorData =
  | Float32Array<ArrayBuffer>
  | Int8Array<ArrayBuffer>
  | Uint8Array<ArrayBuffer>
  | Int16Array<ArrayBuffer>
  | Uint16Array<ArrayBuffer>
  | Int32Array<ArrayBuffer>
  | Uint32Array<ArrayBuffer>
  | BigInt64Array<ArrayBuffer>
  | BigUint64Array<ArrayBuffer>;

export interface SafetensorsFile {
  /** In the order of the header. */
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  /** Without the checksums. */
  readonly metadata: Readonly<Record<string, string>>;
  /** The elements of one tensor, row-major. Throws InputError for an unknown name or a damaged tensor. */
  read(name: string): Promise<TensorData>;
  /** The same for a floating-point tensor, into `target`, which must have exactly as many elements. */
  readInto(name: string, target: Float32Array<ArrayBuffer>): Promise<void>;
  close(): Promise<void>;
}

const INTEGER_ARRAYS = {
  BOOL: Uint8Array,
  U8: Uint8Array,
  I8: Int8Array,
  U16: Uint16Array,
  I16: Int16Array,
  U32: Uint32Array,
  I32: Int32Array,
  U64: BigUint64Array,
  I64: BigInt64Array,
} as const;

const CONVERSIONS = {
  F16: float16ToFloat32,
  BF16: bfloat16ToFloat32,
  F64: float64ToFloat32,
} as const;

const isInteger = (dtype: SafetensorsDType): dtype is keyof typeof INTEGER_ARRAYS =>
  Object.hasOwn(INTEGER_ARRAYS, dtype);

/** Elements converted at a time, so that reading an F16 tensor needs no second copy of it. */
const CONVERSION_CHUNK = 1 << 18;

/** Fills `bytes` from `position`; a file that has become shorter since it was opened is an error. */
async function readExactly(file: FileHandle, name: string, bytes: Uint8Array, position: number): Promise<void> {
  const largestRead = 1 << 30; // one read call takes at most 2^31 - 1 bytes
  for (let done = 0; done < bytes.byteLength; ) {
    const length = Math.min(bytes.byteLength - done, largestRead);
    const { bytesRead } = await file.read(bytes, done, length, position + done);
    if (bytesRead === 0)
      throw inputError(name, [`the file ends at ${position + done}, it was longer when it was opened`]);
    done += bytesRead;
  }
}

const bytesOf = (array: ArrayBufferView<ArrayBuffer>): Uint8Array<ArrayBuffer> =>
  new Uint8Array(array.buffer, array.byteOffset, array.byteLength);

/**
 * Opens a safetensors file and checks its header.
 *
 * @throws InputError listing every problem of a malformed file (never its directory)
 */
export async function openSafetensors(path: string): Promise<SafetensorsFile> {
  const name = basename(path);
  const file = await open(path, "r").catch((error: NodeJS.ErrnoException) => {
    throw inputError(name, [error.code === "ENOENT" ? "the file does not exist" : `cannot be opened (${error.code})`]);
  });
  try {
    const stat = await file.stat();
    if (!stat.isFile()) throw inputError(name, ["is not a file"]);
    if (stat.size < 8) throw inputError(name, [`has ${stat.size} bytes; a header length needs 8`]);
    const prefix = new Uint8Array(8);
    await readExactly(file, name, prefix, 0);
    const headerBytes = new DataView(prefix.buffer).getBigUint64(0, true);
    if (headerBytes > MAX_HEADER_BYTES)
      throw inputError(name, [`header of ${headerBytes} bytes, at most ${MAX_HEADER_BYTES}`]);
    if (headerBytes > stat.size - 8)
      throw inputError(name, [`header of ${headerBytes} bytes in a file of ${stat.size}`]);
    const bytes = new Uint8Array(Number(headerBytes));
    await readExactly(file, name, bytes, 8);
    const header = parseHeader(bytes, stat.size);
    if (Array.isArray(header)) throw inputError(name, header);
    return view(file, name, header.tensors, header.metadata);
  } catch (error) {
    await file.close();
    throw error;
  }
}

function view(
  file: FileHandle,
  fileName: string,
  tensors: ReadonlyMap<string, TensorInfo>,
  allMetadata: Readonly<Record<string, string>>,
): SafetensorsFile {
  const metadata = Object.fromEntries(Object.entries(allMetadata).filter(([key]) => !key.startsWith(CHECKSUM_KEY)));
  const find = (name: string): TensorInfo => {
    const info = tensors.get(name);
    if (!info) throw inputError(fileName, [`has no tensor ${JSON.stringify(name)}`]);
    return info;
  };

  /** Sees the bytes of a tensor in order; `end` throws when they are not those that were written. */
  function checking(name: string) {
    const expected = allMetadata[CHECKSUM_KEY + name];
    const hash = expected === undefined ? undefined : createHash("sha256");
    return {
      update: (bytes: Uint8Array) => void hash?.update(bytes),
      end() {
        if (hash === undefined || hash.digest("hex") === expected) return;
        throw inputError(fileName, [`tensor ${JSON.stringify(name)} is damaged: its bytes are not those written`]);
      },
    };
  }

  async function readWhole(name: string, bytes: Uint8Array, position: number): Promise<void> {
    const check = checking(name);
    await readExactly(file, fileName, bytes, position);
    check.update(bytes);
    check.end();
  }

  async function readInto(name: string, target: Float32Array<ArrayBuffer>): Promise<void> {
    const { dtype, byteOffset, byteLength } = find(name);
    if (isInteger(dtype))
      throw inputError(fileName, [`tensor ${JSON.stringify(name)} is ${dtype}, not floating point`]);
    const size = ELEMENT_BYTES[dtype];
    if (target.length * size !== byteLength) {
      throw new RangeError(`${name}: ${byteLength / size} elements do not fit a target of ${target.length}`);
    }
    if (dtype === "F32") return readWhole(name, bytesOf(target), byteOffset);
    const check = checking(name);
    const chunk = new Uint8Array(Math.min(CONVERSION_CHUNK * size, byteLength));
    for (let first = 0; first < target.length; first += CONVERSION_CHUNK) {
      const elements = Math.min(CONVERSION_CHUNK, target.length - first);
      const source = chunk.subarray(0, elements * size);
      await readExactly(file, fileName, source, byteOffset + first * size);
      check.update(source);
      CONVERSIONS[dtype](source, target.subarray(first, first + elements));
    }
    check.end();
  }

  async function read(name: string): Promise<TensorData> {
    const { dtype, byteOffset, byteLength } = find(name);
    const elements = byteLength / ELEMENT_BYTES[dtype];
    if (isInteger(dtype)) {
      const data = new INTEGER_ARRAYS[dtype](elements);
      await readWhole(name, bytesOf(data), byteOffset);
      return data;
    }
    const data = new Float32Array(elements);
    await readInto(name, data);
    return data;
  }

  return { tensors, metadata, read, readInto, close: () => file.close() };
}
