// Scores of predicted texts against targets, as shares in [0, 1] (Matthews: [-1, 1]). A target is one text or a list of
// accepted answers, of which the best one counts. Texts are compared with the white space at their ends removed;
// nothing else is forgiven but where SQuAD's normalisation is named.
//
// Every function takes at least one example and as many predictions as targets; it is total on those. A model may write
// anything: a prediction that is no label at all is a wrong prediction, never an error.

/** One text, or the accepted answers. */
export type Target = string | readonly string[];

const clean = (text: string): string => text.trim();
const answersOf = (target: Target): readonly string[] => (typeof target === "string" ? [target] : target);
const mean = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length;

/** Share of predictions equal to their target, or to one of its accepted answers. On class labels this is accuracy. */
export function exactMatch(predictions: readonly string[], targets: readonly Target[]): number {
  return mean(
    predictions.map((prediction, i) =>
      answersOf(targets[i]).some((answer) => clean(answer) === clean(prediction)) ? 1 : 0,
    ),
  );
}

/** 2·TP / (2·TP + FP + FN); 0 where nothing is positive in either, as scikit-learn's `zero_division=0`. */
function f1Of(truePositives: number, falsePositives: number, falseNegatives: number): number {
  const denominator = 2 * truePositives + falsePositives + falseNegatives;
  return denominator === 0 ? 0 : (2 * truePositives) / denominator;
}

/**
 * F1 of the label `positive` against `negative`. A prediction that is neither counts as the wrong one of the two: as a
 * false positive where the target is `negative` (T5's `f1_score_with_invalid`; scikit-learn would let it pass).
 */
export function f1Binary(
  predictions: readonly string[],
  targets: readonly string[],
  positive: string,
  negative: string,
): number {
  let [truePositives, falsePositives, falseNegatives] = [0, 0, 0];
  predictions.forEach((prediction, i) => {
    if (clean(targets[i]) === positive) {
      if (clean(prediction) === positive) truePositives++;
      else falseNegatives++;
    } else if (clean(prediction) !== negative) falsePositives++;
  });
  return f1Of(truePositives, falsePositives, falseNegatives);
}

/**
 * Unweighted mean of each label's F1 against the rest: scikit-learn's `f1_score(labels=labels, average="macro",
 * zero_division=0)`. A label that neither occurs nor is predicted scores 0 and still counts in the mean.
 */
export function f1Macro(predictions: readonly string[], targets: readonly string[], labels: readonly string[]): number {
  return mean(
    labels.map((label) => {
      let [truePositives, falsePositives, falseNegatives] = [0, 0, 0];
      predictions.forEach((prediction, i) => {
        const predicted = clean(prediction) === label;
        const actual = clean(targets[i]) === label;
        if (predicted && actual) truePositives++;
        else if (predicted) falsePositives++;
        else if (actual) falseNegatives++;
      });
      return f1Of(truePositives, falsePositives, falseNegatives);
    }),
  );
}

/**
 * Matthews correlation for any number of classes (Gorodkin 2004, R_K; scikit-learn's `matthews_corrcoef`). A prediction
 * that is no label is a class of its own. 0 where all targets or all predictions are of one class, as scikit-learn has
 * it: the correlation with a constant is undefined, and says nothing.
 */
export function matthews(predictions: readonly string[], targets: readonly string[]): number {
  const count = predictions.length;
  const predicted = new Map<string, number>();
  const actual = new Map<string, number>();
  let correct = 0;
  predictions.forEach((text, i) => {
    const [prediction, target] = [clean(text), clean(targets[i])];
    predicted.set(prediction, (predicted.get(prediction) ?? 0) + 1);
    actual.set(target, (actual.get(target) ?? 0) + 1);
    if (prediction === target) correct++;
  });
  const sumOf = (counts: Iterable<number>): number => [...counts].reduce((sum, n) => sum + n, 0);
  const squares = (counts: Map<string, number>): number => sumOf([...counts.values()].map((n) => n * n));
  const both = sumOf([...predicted].map(([label, n]) => n * (actual.get(label) ?? 0)));
  const denominator = (count * count - squares(predicted)) * (count * count - squares(actual));
  return denominator === 0 ? 0 : (correct * count - both) / Math.sqrt(denominator);
}

// Python's string.punctuation; word borders count letters of every script, as Python's \b does.
const PUNCTUATION = /[!-/:-@[-`{-~]/g;
const ARTICLES = /(?<![\p{L}\p{N}_])(?:a|an|the)(?![\p{L}\p{N}_])/gu;

/** SQuAD's normalisation (Rajpurkar et al. 2016, evaluate-v1.1): lower case, no punctuation, no articles, single blanks. */
export function normalizeAnswer(text: string): string {
  const words = text.toLowerCase().replace(PUNCTUATION, "").replace(ARTICLES, " ");
  return words.trim().split(/\s+/).join(" ");
}

/** Exact match after SQuAD's normalisation, the best accepted answer counting. */
export function exactMatchSquad(predictions: readonly string[], targets: readonly Target[]): number {
  return exactMatch(
    predictions.map(normalizeAnswer),
    targets.map((target) => answersOf(target).map(normalizeAnswer)),
  );
}

/** F1 of the words two normalised texts share, counted with repetition. */
function wordOverlap(prediction: string, answer: string): number {
  // SQuAD 2.0: with no words on either side there is nothing to share, and only nothing equals nothing.
  if (prediction === "" || answer === "") return prediction === answer ? 1 : 0;
  const left = new Map<string, number>();
  const answerWords = answer.split(" ");
  for (const word of answerWords) left.set(word, (left.get(word) ?? 0) + 1);
  const words = prediction.split(" ");
  let shared = 0;
  for (const word of words) {
    const available = left.get(word) ?? 0;
    if (available === 0) continue;
    shared++;
    left.set(word, available - 1);
  }
  return (2 * shared) / (words.length + answerWords.length);
}

/**
 * Mean over examples of the word-level F1 after SQuAD's normalisation, the best accepted answer counting (SQuAD,
 * ReCoRD). An empty prediction scores 0, but 1 where an accepted answer normalises to nothing as well (SQuAD 2.0).
 */
export function f1Token(predictions: readonly string[], targets: readonly Target[]): number {
  return mean(
    predictions.map((prediction, i) => {
      const words = normalizeAnswer(prediction);
      return answersOf(targets[i]).reduce(
        (best, answer) => Math.max(best, wordOverlap(words, normalizeAnswer(answer))),
        0,
      );
    }),
  );
}

/**
 * Share of groups in which every prediction is right: MultiRC's exact match per question (Khashabi et al. 2018). Cutting
 * the data inside a group makes that group easier.
 */
export function exactMatchGroup(
  predictions: readonly string[],
  targets: readonly Target[],
  groups: readonly string[],
): number {
  const right = new Map<string, boolean>();
  predictions.forEach((prediction, i) => {
    const correct = exactMatch([prediction], [targets[i]]) === 1;
    right.set(groups[i], correct && (right.get(groups[i]) ?? true));
  });
  return mean([...right.values()].map(Number));
}

const DETERMINERS = new Set(
  "a an few her his each every many much my our some that the their these this those which whose your".split(" "),
);

/**
 * Whether a prediction names the referent, as T5 judges the Winograd task: case and determiners aside, the words of one
 * are among the words of the other; "Bob" is not "Bob's hat". An empty prediction names nothing.
 */
export function namesReferent(prediction: string, referent: string): boolean {
  const wordsOf = (text: string): string[] =>
    clean(text)
      .toLowerCase()
      .split(/\s+/)
      .filter((word) => word !== "" && !DETERMINERS.has(word));
  const [predicted, expected] = [new Set(wordsOf(prediction)), new Set(wordsOf(referent))];
  if (predicted.size === 0 || prediction.includes("'") !== referent.includes("'")) return false;
  const within = (inner: Set<string>, outer: Set<string>): boolean => [...inner].every((word) => outer.has(word));
  return within(predicted, expected) || within(expected, predicted);
}

/**
 * Accuracy of the question "is this the referent?", answered by naming one (T5's WSC). `isReferent[i]` is the truth; an
 * empty prediction is wrong either way.
 */
export function accuracyReferent(
  predictions: readonly string[],
  referents: readonly string[],
  isReferent: readonly boolean[],
): number {
  return mean(
    predictions.map((prediction, i) =>
      clean(prediction) !== "" && namesReferent(prediction, referents[i]) === isReferent[i] ? 1 : 0,
    ),
  );
}
