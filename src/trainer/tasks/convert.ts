// A task's source file, one JSON object a line, as text-to-text examples. The whole file is checked before anything is
// given back, and everything wrong with it is said at once, by line and field.

import { Buffer } from "node:buffer";
import { createReadStream } from "node:fs";
import { basename } from "node:path";
import { problemList } from "../formats/problems.ts";
import type { Field, Purpose, TaskDefinition, TaskExample } from "./task.ts";

/**
 * @param source a path, or the file's bytes
 * @throws InputError with every problem (the first twenty in words): `line 3: has no "passage.questions[0].question"`;
 * a file without examples is one
 */
export async function convertTask(
  definition: TaskDefinition,
  source: string | Uint8Array,
  purpose: Purpose,
): Promise<TaskExample[]> {
  const problems = problemList(typeof source === "string" ? basename(source) : "");
  const examples: TaskExample[] = [];
  for await (const { line, text } of linesOf(source)) {
    if (text === undefined) {
      problems.add(`line ${line}: is not UTF-8`);
      continue;
    }
    if (text.trim() === "") continue;
    let record: unknown;
    try {
      record = JSON.parse(text);
    } catch {
      problems.add(`line ${line}: is not JSON`);
      continue;
    }
    const wrong = checkRecord(definition, record);
    for (const problem of wrong) problems.add(`line ${line}: ${problem}`);
    if (wrong.length > 0) continue;
    const formatted = definition.format(record, purpose);
    if (typeof formatted === "string") {
      problems.add(`line ${line}: ${formatted}`);
      continue;
    }
    for (const example of formatted) {
      for (const side of ["input", "target"] as const) {
        if (example[side].trim() === "") problems.add(`line ${line}: makes an empty ${side}`);
      }
      examples.push({ task: definition.name, ...example, id: example.id ?? `${definition.name}-${line}` });
    }
  }
  if (examples.length === 0 && !problems.error()) problems.add("the file has no examples");
  const error = problems.error();
  if (error) throw error;
  return examples;
}

/** Lines by number from 1, without a byte order mark; text is undefined where a line is not UTF-8. */
async function* linesOf(source: string | Uint8Array): AsyncGenerator<{ line: number; text: string | undefined }> {
  const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  const chunks: Iterable<Uint8Array> | AsyncIterable<Uint8Array> =
    typeof source === "string" ? createReadStream(source) : [source];
  let line = 0;
  let parts: Uint8Array[] = []; // of the line that is not complete yet
  const take = (): { line: number; text: string | undefined } => {
    line++;
    const bytes = Buffer.concat(parts);
    parts = [];
    try {
      const text = decoder.decode(bytes);
      return { line, text: line === 1 && text.startsWith("\ufeff") ? text.slice(1) : text };
    } catch {
      return { line, text: undefined };
    }
  };
  for await (const chunk of chunks) {
    let start = 0;
    for (let end = chunk.indexOf(0x0a); end >= 0; end = chunk.indexOf(0x0a, start)) {
      parts.push(chunk.subarray(start, end));
      yield take();
      start = end + 1;
    }
    if (start < chunk.length) parts.push(chunk.subarray(start));
  }
  if (parts.length > 0) yield take();
}

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);
const isScalar = (value: unknown): value is string | number | boolean =>
  ["string", "number", "boolean"].includes(typeof value);

/** What is wrong with one line, each problem once, with the place inside the line. */
function checkRecord(definition: TaskDefinition, record: unknown): string[] {
  if (!isObject(record)) return ["is not a JSON object"];
  const problems = new Set<string>();
  for (const field of definition.fields) checkField(definition, field, record, field.path.split("."), "", problems);
  return [...problems];
}

function checkField(
  definition: TaskDefinition,
  field: Field,
  value: unknown,
  steps: readonly string[],
  place: string,
  problems: Set<string>,
): void {
  if (steps.length === 0) {
    const problem = checkValue(definition, field, value);
    if (problem) problems.add(`"${place}" ${problem}`);
    return;
  }
  const isList = steps[0].endsWith("[]");
  const name = isList ? steps[0].slice(0, -2) : steps[0];
  const here = place === "" ? name : `${place}.${name}`;
  if (!isObject(value)) {
    problems.add(`"${place}" is not an object`);
    return;
  }
  const next = Object.hasOwn(value, name) ? value[name] : undefined;
  if (next === undefined || next === null) {
    if (!field.optional) problems.add(`has no "${here}"`);
  } else if (!isList) checkField(definition, field, next, steps.slice(1), here, problems);
  else if (!Array.isArray(next)) problems.add(`"${here}" is not a list`);
  else {
    next.forEach((item, i) => {
      checkField(definition, field, item, steps.slice(1), `${here}[${i}]`, problems);
    });
  }
}

function checkValue(definition: TaskDefinition, { kind }: Field, value: unknown): string | undefined {
  if (kind === "text") return typeof value === "string" ? undefined : "is not a string";
  if (kind === "integer") return Number.isInteger(value) ? undefined : "is not an integer";
  if (!isScalar(value)) return "is not a string, number or boolean";
  if (kind === "scalar" || Object.hasOwn(definition.labels, String(value))) return undefined;
  return `is ${JSON.stringify(value)}, not one of ${Object.keys(definition.labels).join(", ")}`;
}
