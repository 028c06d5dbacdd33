// Predictions to metrics: of a task by its definition, of plain text-to-text data by what its targets look like.

import { inputError } from "../formats/problems.ts";
import * as metrics from "./metrics.ts";
import { labelsOf, type Metric, type Scoring, type TaskExample } from "./task.ts";

/** Most distinct targets that are still taken for class labels. */
const MAX_LABELS = 32;

export type ScoredExample = Pick<TaskExample, "target" | "answers" | "group" | "label">;

/**
 * Scores a task. Where one question was written out once per accepted answer, as training data has it, the first of
 * its examples counts alone: examples of a group with `answers` are copies (T5's `deduplicate_metric`).
 *
 * @param predictions generated text of each example, in the examples' order
 * @throws InputError when the numbers differ, or there is no example
 */
export function score(
  definition: Scoring,
  predictions: readonly string[],
  examples: readonly ScoredExample[],
): Partial<Record<Metric, number>> {
  checkCounts(predictions.length, examples.length);
  const seen = new Set<string>();
  const kept = examples.map(({ group, answers }) => {
    if (group === undefined || !answers) return true;
    const first = !seen.has(group);
    seen.add(group);
    return first;
  });
  const once = examples.filter((_, i) => kept[i]);
  const texts = predictions.filter((_, i) => kept[i]);
  return Object.fromEntries(definition.metrics.map((metric) => [metric, scoreMetric(definition, metric, texts, once)]));
}

function scoreMetric(
  definition: Scoring,
  metric: Metric,
  predictions: readonly string[],
  examples: readonly ScoredExample[],
): number {
  const targets = examples.map(({ target }) => target);
  const accepted = examples.map(({ target, answers }) => answers ?? target);
  switch (metric) {
    case "accuracy":
    case "exact_match":
      return metrics.exactMatch(predictions, accepted);
    case "exact_match_squad":
      return metrics.exactMatchSquad(predictions, accepted);
    case "f1_token":
      return metrics.f1Token(predictions, accepted);
    case "f1_macro":
      return metrics.f1Macro(predictions, targets, labelsOf(definition));
    case "matthews":
      return metrics.matthews(predictions, targets);
    case "f1_binary": {
      const positive = definition.positive ?? "";
      const negative = labelsOf(definition).find((label) => label !== positive) ?? "";
      return metrics.f1Binary(predictions, targets, positive, negative);
    }
    case "exact_match_group": {
      const groups = examples.map(({ group }, i) => group ?? `example ${i}`);
      return metrics.exactMatchGroup(predictions, accepted, groups);
    }
    case "accuracy_referent": {
      const isReferent = examples.map(({ label }) => label === definition.positive);
      return metrics.accuracyReferent(predictions, targets, isReferent);
    }
  }
}

/**
 * Scores data without a task. Targets are class labels where at most 32 distinct ones occur and some occur twice: then
 * accuracy and macro F1 over the labels that occur, and Matthews correlation where they are two. Free text gets the
 * word-level F1. Exact match always. Where an example has `answers`, exact match and F1 of words accept any of them.
 *
 * @throws InputError when the numbers differ, or there is no example
 */
export function scorePlain(
  predictions: readonly string[],
  examples: readonly Pick<ScoredExample, "target" | "answers">[],
): Partial<Record<Metric, number>> {
  checkCounts(predictions.length, examples.length);
  const targets = examples.map(({ target }) => target);
  const accepted = examples.map(({ target, answers }) => answers ?? target);
  const labels = [...new Set(targets.map((target) => target.trim()))];
  const exact = metrics.exactMatch(predictions, accepted);
  if (labels.length > MAX_LABELS || labels.length === targets.length)
    return { exact_match: exact, f1_token: metrics.f1Token(predictions, accepted) };
  return {
    exact_match: exact,
    accuracy: exact,
    f1_macro: metrics.f1Macro(predictions, targets, labels),
    ...(labels.length === 2 && { matthews: metrics.matthews(predictions, targets) }),
  };
}

function checkCounts(predictions: number, examples: number): void {
  if (predictions !== examples) throw inputError("", [`${predictions} predictions for ${examples} examples`]);
  if (examples === 0) throw inputError("", ["there is no example to score"]);
}
