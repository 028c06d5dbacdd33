// Text-to-text data as JSON Lines: one example per line, either text or token ids.
//
//   {"input": "premise: … hypothesis: …", "target": "yes", "id": "42", "task": "entailment"}
//   {"input_ids": [37, 1712, 1], "target_ids": [4273, 1]}
//
// `id` and `task` are optional, other fields are ignored, blank lines are skipped; a byte order mark and CRLF are
// tolerated. Files are read line by line, and everything wrong with one is reported at once, by line number.

import { open } from "node:fs/promises";
import { problemList } from "../formats/problems.ts";

interface ExampleSource {
  /** 1-based line in the file. */
  readonly line: number;
  readonly id?: string;
  readonly task?: string;
}
export interface TextExample extends ExampleSource {
  readonly input: string;
  readonly target: string;
}
export interface TokenExample extends ExampleSource {
  readonly inputIds: readonly number[];
  readonly targetIds: readonly number[];
}
export type Example = TextExample | TokenExample;

const MAX_LINE_BYTES = 1 << 20;
const NEWLINE = 0x0a;

async function* fileChunks(path: string): AsyncGenerator<Uint8Array> {
  const file = await open(path, "r");
  try {
    while (true) {
      const chunk = new Uint8Array(1 << 16);
      const { bytesRead } = await file.read(chunk, 0, chunk.length);
      if (bytesRead === 0) return;
      yield chunk.subarray(0, bytesRead);
    }
  } finally {
    await file.close();
  }
}

/** Lines without their newline; a line over the limit comes as undefined. */
async function* splitLines(
  chunks: Iterable<Uint8Array> | AsyncIterable<Uint8Array>,
): AsyncGenerator<Uint8Array | undefined> {
  let parts: Uint8Array[] = []; // of the line that is not complete yet
  let length = 0;
  const line = (): Uint8Array | undefined => {
    if (length > MAX_LINE_BYTES) return undefined;
    const bytes = new Uint8Array(length);
    let offset = 0;
    for (const part of parts) {
      bytes.set(part, offset);
      offset += part.length;
    }
    return bytes;
  };
  for await (const chunk of chunks) {
    for (let start = 0; start < chunk.length; ) {
      const newline = chunk.indexOf(NEWLINE, start);
      const part = chunk.subarray(start, newline < 0 ? chunk.length : newline);
      length += part.length;
      if (length <= MAX_LINE_BYTES) parts.push(part);
      else parts = [];
      if (newline < 0) break;
      yield line();
      parts = [];
      length = 0;
      start = newline + 1;
    }
  }
  if (length > 0) yield line();
}

const isText = (value: unknown): value is string => typeof value === "string" && value.length > 0;
const isTokenIds = (value: unknown): value is number[] =>
  Array.isArray(value) && value.length > 0 && value.every((id) => Number.isInteger(id) && id >= 0);

/** The example of one line, or what is wrong with it. */
function parseExample(value: unknown, line: number): Example | string[] {
  if (typeof value !== "object" || value === null || Array.isArray(value)) return ["is not a JSON object"];
  const fields = value as Record<string, unknown>;
  const problems: string[] = [];
  const require = (name: string, valid: (value: unknown) => boolean, what: string): void => {
    const field = fields[name];
    if (field === undefined) problems.push(`has no "${name}"`);
    else if (field === "" || (Array.isArray(field) && field.length === 0)) problems.push(`"${name}" is empty`);
    else if (!valid(field)) problems.push(`"${name}" is not ${what}`);
  };
  const hasText = "input" in fields || "target" in fields;
  const hasTokens = "input_ids" in fields || "target_ids" in fields;
  if (hasText === hasTokens) {
    return [
      `has ${hasText ? "both" : "neither"} "input" and "target" ${hasText ? "and" : "nor"} "input_ids" and "target_ids"`,
    ];
  }
  for (const name of hasText ? ["input", "target"] : ["input_ids", "target_ids"]) {
    if (hasText) require(name, isText, "a string");
    else require(name, isTokenIds, "a list of token ids");
  }
  const { id, task } = fields;
  const idKnown = id === undefined || typeof id === "string" || Number.isInteger(id);
  if (!idKnown) problems.push('"id" is not a string or an integer');
  if (task !== undefined && typeof task !== "string") problems.push('"task" is not a string');
  if (problems.length > 0) return problems;
  const source = {
    line,
    ...(id !== undefined && { id: String(id) }),
    ...(task !== undefined && { task: task as string }),
  };
  return hasText
    ? { ...source, input: fields.input as string, target: fields.target as string }
    : { ...source, inputIds: fields.input_ids as number[], targetIds: fields.target_ids as number[] };
}

/**
 * Reads a data file.
 *
 * @param source a path, or the file's bytes
 * @param name what errors call the file; "" to give only line numbers
 * @throws InputError with every problem (the first twenty in words) and its line; an empty file is one
 */
export async function parseJsonl(source: string | Uint8Array, name = ""): Promise<Example[]> {
  const problems = problemList(name);
  const examples: Example[] = [];
  const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  let line = 0;
  for await (const bytes of splitLines(typeof source === "string" ? fileChunks(source) : [source])) {
    line++;
    const report = (message: string): void => problems.add(`line ${line}: ${message}`);
    if (!bytes) {
      report(`is longer than ${MAX_LINE_BYTES} bytes`);
      continue;
    }
    let text: string;
    try {
      text = utf8.decode(bytes);
    } catch {
      report("is not UTF-8");
      continue;
    }
    if (line === 1 && text.startsWith("\ufeff")) text = text.slice(1);
    if (text.trim() === "") continue;
    let value: unknown;
    try {
      value = JSON.parse(text);
    } catch {
      report("is not JSON");
      continue;
    }
    const example = parseExample(value, line);
    if (Array.isArray(example)) example.forEach(report);
    else examples.push(example);
  }
  if (examples.length === 0 && !problems.error()) problems.add("the file has no examples");
  const error = problems.error();
  if (error) throw error;
  return examples;
}
