// What a task is: how a line of a data set becomes text in and text out, and how predictions on it are scored. A
// definition is plain data and one pure function; superglue.ts holds eight of them, description.ts makes one from a
// task file, convert.ts and score.ts put them to use.

export const METRICS = [
  "accuracy",
  "accuracy_referent",
  "exact_match",
  "exact_match_group",
  "exact_match_squad",
  "f1_binary",
  "f1_macro",
  "f1_token",
  "matthews",
] as const;
/** Each is defined by the function of its name in metrics.ts; `accuracy` is the exact match of labels. */
export type Metric = (typeof METRICS)[number];

/**
 * A field of the source line. `path` goes into objects by `.` and through lists by `[]`:
 * `passage.questions[].answers[].text`. A `label` is a boolean, number or string that the task's labels know.
 */
export interface Field {
  readonly path: string;
  readonly kind: "text" | "integer" | "scalar" | "label";
  readonly optional?: boolean;
}

/** Training may see one line several times (once per accepted answer) or not at all; evaluation sees it once. */
export type Purpose = "training" | "evaluation";

/** What `format` makes: a text-to-text example without its task's name. */
export interface FormattedExample {
  /** Without one, the task's name and the line's number. */
  readonly id?: string;
  readonly input: string;
  readonly target: string;
  /** Every accepted answer, where there may be several; `target` is the first of them. */
  readonly answers?: readonly string[];
  /** Examples scored together: the candidate answers of one question. */
  readonly group?: string;
  /** The class to score, where it is not the target: whether the target is the right referent. */
  readonly label?: string;
}

/** One line of a text-to-text data file: exactly these fields, as JSON. */
export interface TaskExample extends FormattedExample {
  readonly id: string;
  readonly task: string;
}

/** The part of a task that scores predictions; plain data, kept with the examples. */
export interface Scoring {
  /** Source value, as text, to the label written out: `{ "0": "choice1", "1": "choice2" }`. Empty for free text. */
  readonly labels: Readonly<Record<string, string>>;
  /** The label that `f1_binary` scores. */
  readonly positive?: string;
  /** The first is the task's primary one. */
  readonly metrics: readonly Metric[];
}

export interface TaskDefinition extends Scoring {
  readonly name: string;
  /** What a source line must have: checked before `format` sees the line. */
  readonly fields: readonly Field[];
  /**
   * @param record a line that has passed the check of `fields`
   * @returns its examples, or in words what is wrong with it
   */
  readonly format: (record: unknown, purpose: Purpose) => readonly FormattedExample[] | string;
}

/** The labels a task writes out, each once, in the order of its map. */
export function labelsOf(definition: Pick<TaskDefinition, "labels">): string[] {
  return [...new Set(Object.values(definition.labels))];
}
