// The eight tasks of SuperGLUE (Wang et al. 2019) as T5 writes them (Raffel et al. 2020, appendix D, and its released
// preprocessors), read from the benchmark's own JSONL files: train.jsonl and val.jsonl; test.jsonl has no answers.
//
// Two tasks are not one line in, one example out. MultiRC asks every candidate answer of a question by itself and is
// scored per question; ReCoRD trains on every accepted answer and accepts any. WSC trains on true referents only,
// asks for the referent in evaluation too, and compares what comes with the candidate that the line names.

import type { Field, FormattedExample, TaskDefinition } from "./task.ts";

const text = (path: string): Field => ({ path, kind: "text" });
const integer = (path: string): Field => ({ path, kind: "integer" });
const label = (path: string): Field => ({ path, kind: "label" });

const TRUE_FALSE = { false: "False", true: "True" };

interface Line {
  readonly idx: number;
  readonly label: string | number | boolean;
  readonly [field: string]: unknown;
}

/** A task of one sentence per field: `name field: value field: value …`, in T5's order of fields. */
function fieldTask(
  name: string,
  parts: readonly Field[],
  labels: TaskDefinition["labels"],
  metrics: TaskDefinition["metrics"],
): TaskDefinition {
  return {
    name,
    fields: [...parts, label("label"), integer("idx")],
    labels,
    metrics,
    format(record) {
      const line = record as Line;
      const present = parts.filter(({ path }) => line[path] !== undefined && line[path] !== null);
      const input = [name, ...present.map(({ path }) => `${path}: ${line[path]}`)].join(" ");
      return [{ id: `${name}-${line.idx}`, input, target: labels[String(line.label)] }];
    },
  };
}

const boolq = fieldTask("boolq", [text("passage"), text("question")], TRUE_FALSE, ["accuracy"]);

const cb = fieldTask(
  "cb",
  [text("hypothesis"), text("premise")],
  { entailment: "entailment", contradiction: "contradiction", neutral: "neutral" },
  ["f1_macro", "accuracy"],
);

const copa = fieldTask(
  "copa",
  [text("choice1"), text("choice2"), text("premise"), text("question")],
  { 0: "choice1", 1: "choice2" },
  ["accuracy"],
);

const rte = fieldTask(
  "rte",
  [text("hypothesis"), text("premise")],
  { entailment: "entailment", not_entailment: "not_entailment" },
  ["accuracy"],
);

// `pos` is in the first release of WiC, which T5's paper shows, and not in SuperGLUE's second.
const wic = fieldTask(
  "wic",
  [{ ...text("pos"), optional: true }, text("sentence1"), text("sentence2"), text("word")],
  TRUE_FALSE,
  ["accuracy"],
);

interface MultiRcLine {
  readonly idx: number;
  readonly passage: {
    readonly text: string;
    readonly questions: readonly {
      readonly idx: number;
      readonly question: string;
      readonly answers: readonly { readonly idx: number; readonly text: string; readonly label: Line["label"] }[];
    }[];
  };
}

const multirc: TaskDefinition = {
  name: "multirc",
  fields: [
    text("passage.text"),
    text("passage.questions[].question"),
    text("passage.questions[].answers[].text"),
    label("passage.questions[].answers[].label"),
    integer("passage.questions[].answers[].idx"),
    integer("passage.questions[].idx"),
    integer("idx"),
  ],
  labels: { 0: "False", 1: "True" },
  positive: "True",
  metrics: ["f1_binary", "exact_match_group"],
  format(record) {
    const { idx, passage } = record as MultiRcLine;
    const paragraph = passage.text.replaceAll("<br>", " ").replace(/<\/?b>/g, "");
    return passage.questions.flatMap(({ idx: question, question: asked, answers }) =>
      answers.map((answer) => ({
        id: `multirc-${idx}-${question}-${answer.idx}`,
        input: `multirc question: ${asked} answer: ${answer.text} paragraph: ${paragraph}`,
        target: multirc.labels[String(answer.label)],
        group: `multirc-${idx}-${question}`,
      })),
    );
  },
};

interface RecordLine {
  readonly idx: number;
  readonly passage: {
    readonly text: string;
    /** In characters (not UTF-16 units) of the text; `end` is the last one. */
    readonly entities: readonly { readonly start: number; readonly end: number }[];
  };
  readonly qas: readonly {
    readonly idx: number;
    readonly query: string;
    readonly answers: readonly { readonly text: string }[];
  }[];
}

const record: TaskDefinition = {
  name: "record",
  fields: [
    text("passage.text"),
    integer("passage.entities[].start"),
    integer("passage.entities[].end"),
    text("qas[].query"),
    text("qas[].answers[].text"),
    integer("qas[].idx"),
    integer("idx"),
  ],
  labels: {},
  metrics: ["f1_token", "exact_match_squad"],
  format(line, purpose) {
    const { idx, passage, qas } = line as RecordLine;
    const characters = [...passage.text];
    const spans = passage.entities.map(({ start, end }) => characters.slice(start, end + 1).join(""));
    const entities = [...new Set(spans)].sort();
    // The article's bullet points become sentences.
    const article = passage.text.replace(/([.?!"'])\n@highlight\n/g, "$1 ").replaceAll("\n@highlight\n", ". ");
    const examples: FormattedExample[] = [];
    for (const [i, { idx: query, query: asked, answers: given }] of qas.entries()) {
      const answers = [...new Set(given.map((answer) => answer.text))].sort();
      if (answers.length === 0) return `"qas[${i}].answers" is empty`;
      const group = `record-${idx}-${query}`;
      const input = `record query: ${asked} entities: ${entities.join(", ")} passage: ${article}`;
      const targets = purpose === "training" ? answers : answers.slice(0, 1);
      for (const [j, target] of targets.entries()) {
        examples.push({ id: purpose === "training" ? `${group}-${j}` : group, input, target, answers, group });
      }
    }
    return examples;
  },
};

interface WscLine {
  readonly idx: number;
  readonly text: string;
  readonly label: Line["label"];
  readonly target: { readonly span1_text: string; readonly span2_text: string; readonly span2_index: number };
}

const wsc: TaskDefinition = {
  name: "wsc",
  fields: [
    text("text"),
    text("target.span1_text"),
    text("target.span2_text"),
    integer("target.span2_index"),
    label("label"),
    integer("idx"),
  ],
  labels: TRUE_FALSE,
  positive: "True",
  metrics: ["accuracy_referent"],
  format(line, purpose) {
    const { idx, text, label, target } = line as WscLine;
    const truth = wsc.labels[String(label)];
    if (purpose === "training" && truth === "False") return [];
    const marked = markPronoun(text, target.span2_text, target.span2_index);
    if (marked === undefined) return `"text" has no word "${target.span2_text}"`;
    const referent = target.span1_text;
    return [{ id: `wsc-${idx}`, input: `wsc: ${marked}`, target: referent, label: truth }];
  },
};

/**
 * The pronoun between asterisks. The files' word index is off by a few words in some lines: of the words that are the
 * pronoun, punctuation around them aside, the one nearest to it is meant.
 */
function markPronoun(text: string, pronoun: string, index: number): string | undefined {
  const words = text.trim().split(/\s+/);
  const bare = words.map((word) => word.replace(/^[^\p{L}\p{N}]+|[^\p{L}\p{N}]+$/gu, ""));
  let nearest: number | undefined;
  for (const [i, word] of bare.entries()) {
    if (word !== pronoun) continue;
    if (nearest === undefined || Math.abs(i - index) < Math.abs(nearest - index)) nearest = i;
  }
  if (nearest === undefined) return undefined;
  words[nearest] = words[nearest].replace(pronoun, `*${pronoun}*`);
  return words.join(" ");
}

/** By name, lower case. */
export const SUPERGLUE: Readonly<Record<string, TaskDefinition>> = { boolq, cb, copa, multirc, record, rte, wic, wsc };
