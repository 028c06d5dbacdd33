// Text-to-text data as JSON Lines: one example per line, either text or token ids.
//
//   {"input": "premise: … hypothesis: …", "target": "yes", "id": "42", "task": "entailment"}
//   {"input_ids": [37, 1712, 1], "target_ids": [4273, 1]}
//
// `id` and `task` are optional, and so is what scores text: `answers` (every accepted text), `group` (examples scored
// together) and `label` (the class, where it is not the target). Other fields are ignored, blank lines are skipped; a byte
// order mark and CRLF are tolerated. Files are read line by line, and everything wrong with one is reported at once, by
// line number.

import { problemList } from "../formats/problems.ts";
import { readLines } from "./lines.ts";

interface ExampleSource {
  /** In the file, from 1. */
  readonly line: number;
  readonly id?: string;
  readonly task?: string;
}
/** What generated text is scored by, beside the target; see FormattedExample in tasks/task.ts. */
export interface ScoringFields {
  readonly answers?: readonly string[];
  readonly group?: string;
  readonly label?: string;
}
export interface TextExample extends ExampleSource, ScoringFields {
  readonly input: string;
  readonly target: string;
}
export interface TokenExample extends ExampleSource {
  readonly inputIds: readonly number[];
  readonly targetIds: readonly number[];
}
export type Example = TextExample | TokenExample;

const isText = (value: unknown): value is string => typeof value === "string" && value.length > 0;
const isTokenIds = (value: unknown): value is number[] =>
  Array.isArray(value) && value.length > 0 && value.every((id) => Number.isInteger(id) && id >= 0);

const isScalar = (value: unknown): boolean => ["string", "number", "boolean"].includes(typeof value);

/** What an example may say, in text or in token ids. */
export const EXAMPLE_FIELDS = {
  text: ["input", "target"],
  tokens: ["input_ids", "target_ids"],
  optional: ["id", "task", "answers", "group", "label"],
} as const;

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
  for (const name of hasText ? EXAMPLE_FIELDS.text : EXAMPLE_FIELDS.tokens) {
    if (hasText) require(name, isText, "a string");
    else require(name, isTokenIds, "a list of token ids");
  }
  const { id, task } = fields;
  const idKnown = id === undefined || typeof id === "string" || Number.isInteger(id);
  if (!idKnown) problems.push('"id" is not a string or an integer');
  if (task !== undefined && typeof task !== "string") problems.push('"task" is not a string');
  const scoring = hasText ? scoringFields(fields, problems) : {};
  if (problems.length > 0) return problems;
  const source = {
    line,
    ...(id !== undefined && { id: String(id) }),
    ...(task !== undefined && { task: task as string }),
  };
  return hasText
    ? { ...source, input: fields.input as string, target: fields.target as string, ...scoring }
    : { ...source, inputIds: fields.input_ids as number[], targetIds: fields.target_ids as number[] };
}

function scoringFields(fields: Record<string, unknown>, problems: string[]): ScoringFields {
  const { answers, group, label } = fields;
  const answersKnown =
    answers === undefined ||
    (Array.isArray(answers) && answers.length > 0 && answers.every((a) => typeof a === "string"));
  if (!answersKnown) problems.push('"answers" is not a list of texts');
  for (const [name, value] of Object.entries({ group, label })) {
    if (value !== undefined && !isScalar(value)) problems.push(`"${name}" is not a text, number or boolean`);
  }
  return {
    ...(answers !== undefined && { answers: answers as string[] }),
    ...(group !== undefined && { group: String(group) }),
    ...(label !== undefined && { label: String(label) }),
  };
}

/**
 * Reads a data file.
 *
 * @param source a path, or the file's bytes
 * @param name what errors call the file; "" to give only line numbers
 * @param unit what errors call a line
 * @throws InputError with every problem (the first twenty in words) and its line; an empty file is one
 */
export async function parseJsonl(
  source: string | Uint8Array,
  name = "",
  unit: "line" | "row" = "line",
): Promise<Example[]> {
  const problems = problemList(name);
  const examples: Example[] = [];
  for await (const line of readLines(source)) {
    const report = (message: string): void => problems.add(`${unit} ${line.number}: ${message}`);
    if ("problem" in line) {
      report(line.problem);
      continue;
    }
    if (line.text.trim() === "") continue;
    let value: unknown;
    try {
      value = JSON.parse(line.text);
    } catch {
      report("is not JSON");
      continue;
    }
    const example = parseExample(value, line.number);
    if (Array.isArray(example)) example.forEach(report);
    else examples.push(example);
  }
  if (examples.length === 0 && !problems.error()) problems.add("the file has no examples");
  const error = problems.error();
  if (error) throw error;
  return examples;
}
