// The header of a safetensors file: a JSON object of tensor name → {dtype, shape, data_offsets}, checked completely
// before any tensor is read. Files come from strangers, so every rule of the format is enforced: after `parseHeader`
// each tensor's bytes lie inside the file, no two overlap, none is left over, and sizes follow from shape and dtype.
//
// Format: https://github.com/huggingface/safetensors#format — 8 bytes little-endian header length, the header (UTF-8,
// starts with "{", may end in spaces), then the tensors' bytes without holes.

/** Bytes per element of every dtype that can be read or written. */
export const ELEMENT_BYTES = {
  BOOL: 1,
  U8: 1,
  I8: 1,
  U16: 2,
  I16: 2,
  F16: 2,
  BF16: 2,
  U32: 4,
  I32: 4,
  F32: 4,
  U64: 8,
  I64: 8,
  F64: 8,
} as const;

/** Before a tensor's name: the metadata key of the SHA-256 of its bytes, in hexadecimal. Ours, not the format's. */
export const CHECKSUM_KEY = "sha256.";

export type SafetensorsDType = keyof typeof ELEMENT_BYTES;

export interface TensorInfo {
  readonly dtype: SafetensorsDType;
  readonly shape: readonly number[];
  /** From the start of the file. */
  readonly byteOffset: number;
  readonly byteLength: number;
}

export interface SafetensorsHeader {
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  readonly metadata: Readonly<Record<string, string>>;
}

/** The format's own limit; the reference implementation refuses longer headers too. */
export const MAX_HEADER_BYTES = 100_000_000;

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** A non-negative integer that a double holds exactly. */
const isSize = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;

/** Number of elements, or undefined when the product is not exact in a double. */
function elementCount(shape: readonly number[]): number | undefined {
  let count = 1;
  for (const size of shape) count *= size;
  return Number.isSafeInteger(count) ? count : undefined;
}

/**
 * Keys that occur twice in one object of `json`, which must be valid JSON: `JSON.parse` silently keeps the last, and a
 * reader that keeps the first would see other weights than we do.
 */
function duplicateKeys(json: string): string[] {
  const duplicates: string[] = [];
  const open: (Set<string> | undefined)[] = []; // one entry per open bracket; a Set for an object, undefined for a list
  let expectKey = false;
  for (let i = 0; i < json.length; i++) {
    const character = json[i];
    if (character === "{" || character === "[") {
      open.push(character === "{" ? new Set() : undefined);
      expectKey = character === "{";
    } else if (character === "}" || character === "]") {
      open.pop();
    } else if (character === ",") {
      expectKey = open.at(-1) !== undefined;
    } else if (character === '"') {
      const start = i++;
      while (json[i] !== '"') i += json[i] === "\\" ? 2 : 1;
      if (!expectKey) continue;
      const key: string = JSON.parse(json.slice(start, i + 1));
      const keys = open.at(-1)!;
      if (keys.has(key)) duplicates.push(key);
      keys.add(key);
      expectKey = false;
    }
  }
  return duplicates;
}

/** Checks one entry's own fields; what it says about its neighbours is checked by `parseHeader`. */
function parseTensor(entry: unknown, dataStart: number, dataBytes: number): TensorInfo | string[] {
  if (!isObject(entry)) return ["is not an object"];
  const problems: string[] = [];
  const { dtype, shape, data_offsets: offsets, ...unknown } = entry;
  for (const key of Object.keys(unknown)) problems.push(`has an unknown field ${JSON.stringify(key)}`);
  const dtypeKnown = typeof dtype === "string" && Object.hasOwn(ELEMENT_BYTES, dtype);
  if (!dtypeKnown) problems.push(`has the unknown dtype ${JSON.stringify(dtype) ?? "(missing)"}`);
  let elements: number | undefined;
  if (!Array.isArray(shape) || !shape.every(isSize)) problems.push("has a shape that is not a list of sizes");
  else {
    elements = elementCount(shape);
    if (elements === undefined) problems.push(`has an overflowing shape [${shape.join(", ")}]`);
  }
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isSize)) {
    problems.push("has data_offsets that are not two offsets");
    return problems;
  }
  const [begin, end] = offsets;
  if (begin > end) problems.push(`ends (${end}) before it begins (${begin})`);
  else if (end > dataBytes) problems.push(`ends at ${end}, past the ${dataBytes} bytes of data in the file`);
  else if (dtypeKnown && elements !== undefined) {
    const expected = elements * ELEMENT_BYTES[dtype as SafetensorsDType];
    if (expected !== end - begin)
      problems.push(`holds ${end - begin} bytes where its shape and dtype need ${expected}`);
  }
  if (problems.length > 0) return problems;
  return {
    dtype: dtype as SafetensorsDType,
    shape: shape as number[],
    byteOffset: dataStart + begin,
    byteLength: end - begin,
  };
}

/** Every gap, overlap and leftover in the layout of tensors that are each valid on their own. */
function layoutProblems(tensors: ReadonlyMap<string, TensorInfo>, dataStart: number, fileBytes: number): string[] {
  const problems: string[] = [];
  const byPosition = [...tensors].sort(([, a], [, b]) => a.byteOffset - b.byteOffset || a.byteLength - b.byteLength);
  let position = dataStart;
  for (const [name, { byteOffset, byteLength }] of byPosition) {
    if (byteOffset > position)
      problems.push(`hole of ${byteOffset - position} bytes before tensor ${JSON.stringify(name)}`);
    if (byteOffset < position) problems.push(`tensor ${JSON.stringify(name)} overlaps the one before it`);
    position = Math.max(position, byteOffset + byteLength);
  }
  if (position < fileBytes) problems.push(`${fileBytes - position} bytes after the last tensor`);
  return problems;
}

/**
 * Parses and checks a header.
 *
 * @param header the bytes after the 8-byte length
 * @param fileBytes size of the whole file
 * @returns the header, or every problem found, in words
 */
export function parseHeader(header: Uint8Array, fileBytes: number): SafetensorsHeader | string[] {
  let json: string;
  try {
    json = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(header);
  } catch {
    return ["the header is not UTF-8"];
  }
  if (!json.startsWith("{")) return ['the header does not start with "{"'];
  let root: Record<string, unknown>;
  try {
    root = JSON.parse(json);
  } catch {
    return ["the header is not JSON"];
  }
  const problems = duplicateKeys(json).map((key) => `the key ${JSON.stringify(key)} occurs twice`);
  const dataStart = 8 + header.byteLength;
  const tensors = new Map<string, TensorInfo>();
  let metadata: Record<string, string> = {};
  for (const [name, entry] of Object.entries(root)) {
    if (name === "__metadata__") {
      if (isObject(entry) && Object.values(entry).every((v) => typeof v === "string")) {
        metadata = entry as Record<string, string>;
      } else problems.push("__metadata__ is not an object of strings");
      continue;
    }
    const parsed = parseTensor(entry, dataStart, fileBytes - dataStart);
    if (Array.isArray(parsed)) problems.push(...parsed.map((problem) => `tensor ${JSON.stringify(name)} ${problem}`));
    else tensors.set(name, parsed);
  }
  // The layout is judged only when every tensor has a place in it; otherwise each bad entry would be a hole as well.
  if (problems.length === 0) problems.push(...layoutProblems(tensors, dataStart, fileBytes));
  return problems.length > 0 ? problems : { tensors, metadata };
}
