// A task of one's own, described in data:
//
//   {
//     "name": "cola",
//     "input": "cola sentence: {sentence}",
//     "target": "{label}",
//     "labels": { "0": "unacceptable", "1": "acceptable" },
//     "id": "cola-{idx}",
//     "metrics": ["matthews", "accuracy"]
//   }
//
// `{field}` and `{nested.field}` stand for the source line's values, `{{` and `}}` for braces. With `labels`, a target
// of one field is looked up there. `answers` names a list of accepted answers instead of, or beside, `target`; `group`
// keeps together what `exact_match_group` scores together.

import { readFile } from "node:fs/promises";
import { basename } from "node:path";
import { inputError, type ProblemList, problemList } from "../formats/problems.ts";
import { type Field, labelsOf, METRICS, type Metric, type TaskDefinition } from "./task.ts";

const KEYS = ["name", "input", "target", "answers", "group", "id", "labels", "positive", "metrics"];
const PATH = /^[\w-]+(\.[\w-]+)*$/;

/** Text and the paths of fields in turn. */
type Template = readonly (string | { readonly path: string })[];

/** @throws InputError with everything wrong with the file */
export async function readTask(path: string): Promise<TaskDefinition> {
  let description: unknown;
  try {
    description = JSON.parse(await readFile(path, "utf8"));
  } catch (error) {
    if (error instanceof SyntaxError) throw inputError(basename(path), ["is not JSON"]);
    throw error;
  }
  return taskFromDescription(description, basename(path));
}

/**
 * @param description a plain object, of JSON or of YAML
 * @param subject what errors call it
 * @throws InputError with everything wrong with it
 */
export function taskFromDescription(description: unknown, subject = ""): TaskDefinition {
  const problems = problemList(subject);
  if (typeof description !== "object" || description === null || Array.isArray(description))
    throw inputError(subject, ["is not an object"]);
  const given = description as Record<string, unknown>;
  for (const key of Object.keys(given)) {
    if (!KEYS.includes(key)) problems.add(`has an unknown "${key}"; known are ${KEYS.join(", ")}`);
  }

  const textOf = (key: string): string | undefined => {
    const value = given[key];
    if (value === undefined) return undefined;
    if (typeof value === "string" && value.trim() !== "") return value;
    problems.add(`"${key}" is not a text`);
    return undefined;
  };
  const templateOf = (key: string): Template | undefined => {
    const source = textOf(key);
    return source === undefined ? undefined : parseTemplate(source, key, problems);
  };
  for (const key of ["name", "input", "metrics"]) {
    if (given[key] === undefined) problems.add(`has no "${key}"`);
  }
  if (given.target === undefined && given.answers === undefined) problems.add('has neither "target" nor "answers"');

  const name = textOf("name") ?? "";
  const [input, target, group, id] = ["input", "target", "group", "id"].map(templateOf);
  const answers = textOf("answers");
  if (answers !== undefined && !PATH.test(answers)) problems.add(`"answers" is not the name of a field: ${answers}`);
  const labels = parseLabels(given.labels, problems);
  const positive = textOf("positive");
  const metrics = parseMetrics(given.metrics, problems);
  checkMetrics({ metrics, labels, positive, group }, problems);

  const labelled = Object.keys(labels).length > 0;
  const labelPath = labelled && target?.length === 1 && typeof target[0] !== "string" ? target[0].path : undefined;
  if (labelled && target && labelPath === undefined) problems.add('"target" is not one field, which "labels" are for');
  const error = problems.error();
  if (error) throw error;

  const used = [input, target, group, id].flatMap((template) => template ?? []);
  const paths = new Set(used.flatMap((part) => (typeof part === "string" ? [] : [part.path])));
  const fields: Field[] = [...paths].map((path) => ({ path, kind: path === labelPath ? "label" : "scalar" }));
  if (answers !== undefined) fields.push({ path: `${answers}[]`, kind: "text" });
  return {
    name,
    fields,
    labels,
    ...(positive !== undefined && { positive }),
    metrics,
    format(record) {
      const accepted = answers === undefined ? undefined : (valueAt(record, answers) as string[]);
      if (accepted?.length === 0) return `"${answers}" is empty`;
      const written = target && fill(target, record);
      return [
        {
          ...(id && { id: fill(id, record) }),
          input: fill(input ?? [], record),
          target: written === undefined ? accepted![0] : labelPath === undefined ? written : labels[written],
          ...(accepted && { answers: accepted }),
          ...(group && { group: fill(group, record) }),
        },
      ];
    },
  };
}

function parseTemplate(source: string, key: string, problems: ProblemList): Template {
  const parts: (string | { path: string })[] = [];
  let literal = "";
  for (const [token] of source.matchAll(/\{\{|\}\}|\{[^{}]*\}|[{}]|[^{}]+/g)) {
    if (token === "{{" || token === "}}") literal += token[0];
    else if (token === "{" || token === "}") problems.add(`"${key}" has a single ${token}; write ${token}${token}`);
    else if (!token.startsWith("{")) literal += token;
    else if (!PATH.test(token.slice(1, -1))) problems.add(`"${key}" has ${token}, which is not the name of a field`);
    else {
      if (literal !== "") parts.push(literal);
      literal = "";
      parts.push({ path: token.slice(1, -1) });
    }
  }
  if (literal !== "") parts.push(literal);
  return parts;
}

function parseLabels(value: unknown, problems: ProblemList): Record<string, string> {
  if (value === undefined) return {};
  const entries = typeof value === "object" && value !== null && !Array.isArray(value) ? Object.entries(value) : [];
  if (entries.length === 0) problems.add('"labels" is not a map from values of the file to texts');
  const labels: [string, string][] = [];
  for (const [from, to] of entries) {
    if (typeof to === "string" && to.trim() !== "") labels.push([from, to.trim()]);
    else problems.add(`"labels.${from}" is not a text`);
  }
  return Object.fromEntries(labels);
}

// Needs the class beside the target, which a template does not make.
const DESCRIBED_METRICS = METRICS.filter((metric) => metric !== "accuracy_referent");

function parseMetrics(value: unknown, problems: ProblemList): Metric[] {
  if (value === undefined) return [];
  if (!Array.isArray(value) || value.length === 0) {
    problems.add('"metrics" is not a list of metrics');
    return [];
  }
  return value.flatMap((name) => {
    const metric = DESCRIBED_METRICS.find((known) => known === name);
    if (metric === undefined) {
      problems.add(`"metrics" has ${JSON.stringify(name)}; known are ${DESCRIBED_METRICS.join(", ")}`);
    }
    return metric ?? [];
  });
}

/** Metrics that say nothing without labels, a positive label or a group. */
function checkMetrics(
  task: Pick<TaskDefinition, "metrics" | "labels" | "positive"> & { readonly group: Template | undefined },
  problems: ProblemList,
): void {
  const labels = labelsOf(task);
  const { positive } = task;
  if (positive !== undefined && !labels.includes(positive))
    problems.add(`"positive" is none of the labels: ${positive}`);
  for (const metric of task.metrics) {
    const needs: string[] = [];
    if (metric === "f1_macro" && labels.length === 0) needs.push('"labels"');
    if (metric === "f1_binary" && labels.length !== 2) needs.push('two "labels"');
    if (metric === "f1_binary" && positive === undefined) needs.push('"positive"');
    if (metric === "exact_match_group" && !task.group) needs.push('"group"');
    if (needs.length > 0) problems.add(`"metrics" has ${metric}, which needs ${needs.join(" and ")}`);
  }
}

const fill = (template: Template, record: unknown): string =>
  template.map((part) => (typeof part === "string" ? part : String(valueAt(record, part.path)))).join("");

function valueAt(record: unknown, path: string): unknown {
  let value = record;
  for (const name of path.split(".")) value = (value as Record<string, unknown>)[name];
  return value;
}
