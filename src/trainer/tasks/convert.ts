// A task's source file, one JSON object a line, as text-to-text examples. The whole file is checked before anything is
// given back, and everything wrong with it is said at once, by line and field.

import { readLines } from "../data/lines.ts";
import { problemList } from "../formats/problems.ts";
import type { Field, Purpose, TaskDefinition, TaskExample } from "./task.ts";

/**
 * @param source a path, or the file's bytes
 * @param name what errors call the file; "" to give only line numbers
 * @param unit what errors call a line
 * @throws InputError with every problem (the first twenty in words): `line 3: has no "passage.questions[0].question"`;
 * a file without examples is one
 */
export async function convertTask(
  definition: TaskDefinition,
  source: string | Uint8Array,
  purpose: Purpose,
  name = "",
  unit: "line" | "row" = "line",
): Promise<TaskExample[]> {
  const problems = problemList(name);
  const examples: TaskExample[] = [];
  for await (const line of readLines(source)) {
    const report = (message: string): void => problems.add(`${unit} ${line.number}: ${message}`);
    if ("problem" in line) {
      report(line.problem);
      continue;
    }
    if (line.text.trim() === "") continue;
    let record: unknown;
    try {
      record = JSON.parse(line.text);
    } catch {
      report("is not JSON");
      continue;
    }
    const wrong = checkRecord(definition, record);
    wrong.forEach(report);
    if (wrong.length > 0) continue;
    const formatted = definition.format(record, purpose);
    if (typeof formatted === "string") {
      report(formatted);
      continue;
    }
    for (const example of formatted) {
      for (const side of ["input", "target"] as const) {
        if (example[side].trim() === "") report(`makes an empty ${side}`);
      }
      examples.push({ task: definition.name, ...example, id: example.id ?? `${definition.name}-${line.number}` });
    }
  }
  if (examples.length === 0 && !problems.error()) problems.add("the file has no examples");
  const error = problems.error();
  if (error) throw error;
  return examples;
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
