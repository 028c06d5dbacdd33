// Collects everything wrong with one input so that its owner can mend it in one go. A hostile or mistaken file can be
// wrong millions of times: the first twenty are kept in words, the rest as a count.

import { InputError, type Problem } from "../types.ts";

const MAX_PROBLEMS = 20;

export interface ProblemList {
  add(message: string): void;
  /** One error of everything added; undefined when nothing was. */
  error(): InputError | undefined;
}

/** `subject`, where not empty, starts every message: the file's name, never its directory. */
export function problemList(subject: string): ProblemList {
  const prefix = subject ? `${subject}: ` : "";
  const problems: Problem[] = [];
  let count = 0;
  return {
    add(message) {
      count++;
      if (problems.length < MAX_PROBLEMS) problems.push({ field: "", message: prefix + message });
    },
    error() {
      if (count === 0) return undefined;
      const hidden = count - problems.length;
      const rest = { field: "", message: `${prefix}and ${hidden} more problems` };
      return new InputError(hidden > 0 ? [...problems, rest] : problems);
    },
  };
}

/** One error of `problems`, of which there is at least one. */
export function inputError(subject: string, problems: readonly string[]): InputError {
  const list = problemList(subject);
  problems.forEach(list.add);
  return list.error() ?? new InputError([]);
}
