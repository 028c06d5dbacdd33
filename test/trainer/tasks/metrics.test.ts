import { suite } from "uvu";
import * as assert from "uvu/assert";
import * as metrics from "../../../src/trainer/tasks/metrics.ts";

const test = suite("metrics");

// Sums of a few fractions: a handful of roundings of 2^-53 each.
const close = (actual: number, expected: number, what: string): void =>
  assert.ok(Math.abs(actual - expected) <= 1e-14, `${what}: ${actual}, expected ${expected}`);

test("exact match forgives white space at the ends and takes the best accepted answer", () => {
  assert.is(metrics.exactMatch([" yes\n", "Yes", "b", ""], ["yes", "yes", ["a", "b"], "x"]), 0.5);
  assert.is(metrics.exactMatch([""], [[]]), 0);
});

test("binary F1: by hand, with predictions that are no label counted as the wrong one", () => {
  const table: [what: string, predictions: string[], targets: string[], f1: number][] = [
    ["TP 2, FP 1, FN 1", ["y", "y", "y", "n", "n"], ["y", "y", "n", "y", "n"], 4 / 6],
    ["nonsense is a false negative", ["y", "??"], ["y", "y"], 2 / 3],
    ["nonsense is a false positive", ["y", "??"], ["y", "n"], 2 / 3],
    ["empty prediction", [""], ["y"], 0],
    ["nothing positive anywhere", ["n", "n"], ["n", "n"], 0],
    ["everything positive and right", ["y", "y"], ["y", "y"], 1],
  ];
  for (const [what, predictions, targets, f1] of table) {
    close(metrics.f1Binary(predictions, targets, "y", "n"), f1, what);
  }
});

test("macro F1: scikit-learn's results", () => {
  const table: [what: string, predictions: string, targets: string, labels: string, f1: number][] = [
    // The example of sklearn.metrics.f1_score's documentation: average="macro" gives 0.26…
    ["documentation", "0 2 1 0 0 1", "0 1 2 0 1 2", "0 1 2", 0.8 / 3],
    ["one class only", "0 0", "0 0", "0", 1],
    ["a label that never occurs counts as 0", "0 0", "0 0", "0 1", 0.5],
    // F1 of 0: TP 1, FN 1; of 1: TP 1. The nonsense is a class outside `labels`.
    ["nonsense", "0 x 1", "0 0 1", "0 1", (2 / 3 + 1) / 2],
  ];
  for (const [what, predictions, targets, labels, f1] of table) {
    close(metrics.f1Macro(predictions.split(" "), targets.split(" "), labels.split(" ")), f1, what);
  }
});

test("Matthews correlation: scikit-learn's results, 0 against a constant", () => {
  const table: [what: string, predictions: string, targets: string, correlation: number][] = [
    // The example of sklearn.metrics.matthews_corrcoef's documentation: -0.33…
    ["documentation", "+ - + +", "+ + + -", -1 / 3],
    // (TP·TN - FP·FN) / sqrt((TP+FP)(TP+FN)(TN+FP)(TN+FN)) of TP 3, TN 2, FP 1, FN 2
    ["two classes by hand", "+ + + + - - - -", "+ + + - - - + +", (3 * 2 - 1 * 2) / Math.sqrt(4 * 5 * 3 * 4)],
    // s 6, c 2, Σpt = 3·2 + 2·2 + 1·2, s² - Σp² = 36 - 14, s² - Σt² = 36 - 12
    ["three classes by hand", "0 2 1 0 0 1", "0 1 2 0 1 2", (2 * 6 - 12) / Math.sqrt(22 * 24)],
    ["perfect", "a b c", "a b c", 1],
    ["opposite", "a b", "b a", -1],
    ["constant prediction", "a a", "a b", 0],
    ["constant target", "a b", "a a", 0],
    ["both constant, all right", "a a", "a a", 0],
  ];
  for (const [what, predictions, targets, correlation] of table) {
    close(metrics.matthews(predictions.split(" "), targets.split(" ")), correlation, what);
  }
});

test("SQuAD's normalisation drops case, punctuation, articles and white space, in that order", () => {
  for (const [text, normal] of [
    ["  The  Cat,\tan ANIMAL. ", "cat animal"],
    ["a-b", "ab"],
    ["U.S.", "us"],
    ["theatre another", "theatre another"],
    ["the", ""],
    ["voilà éa a", "voilà éa"],
    ["“the” – x", "“ ” – x"],
  ]) {
    assert.is(metrics.normalizeAnswer(text), normal, text);
  }
  assert.is(metrics.exactMatchSquad(["the Cat!", "dog"], ["cat", ["a cat", "A Dog."]]), 1);
});

test("token F1: by hand, words counted with repetition, empty texts after SQuAD 2.0", () => {
  const table: [prediction: string, target: metrics.Target, f1: number][] = [
    ["the cat sat", "a cat", 2 / 3],
    ["cat cat", "cat", 2 / 3],
    ["cat cat dog", "cat cat", 4 / 5],
    ["dog", "cat", 0],
    ["", "cat", 0],
    ["cat", "the", 0],
    ["a", "the", 1],
    ["Max Smith", ["Anna", "Smith", "Max Smith Jr"], 4 / 5],
    ["x", [], 0],
  ];
  for (const [prediction, target, f1] of table) {
    close(metrics.f1Token([prediction], [target]), f1, `${prediction} | ${target}`);
  }
  close(metrics.f1Token(["cat", "dog"], ["cat", "cat"]), 0.5, "mean over examples");
});

test("group exact match: a group is right when all of it is", () => {
  const [predictions, targets] = [
    ["T", "F", "T", "F", "T"],
    ["T", "F", "T", "T", "T"],
  ];
  close(metrics.exactMatchGroup(predictions, targets, ["q", "q", "r", "r", "s"]), 2 / 3, "one wrong in r");
  assert.is(metrics.exactMatchGroup(["F", "T"], ["T", "T"], ["q", "q"]), 0);
});

test("a referent is named up to case and determiners, by more or fewer words, and never by nothing", () => {
  const table: [prediction: string, referent: string, named: boolean][] = [
    ["the dog", "The dog", true],
    ["dog", "My dog", true],
    ["The big dog", "the dog", true],
    ["Bob", "Bob's hat", false],
    ["cat", "the dog", false],
    ["dogs", "dog", false],
    ["", "dog", false],
    ["the", "dog", false],
  ];
  for (const [prediction, referent, named] of table) {
    assert.is(metrics.namesReferent(prediction, referent), named, `${prediction} | ${referent}`);
  }
  const [predictions, referents] = [
    ["dog", "cat", "dog", ""],
    ["the dog", "the dog", "the dog", "the dog"],
  ];
  assert.is(metrics.accuracyReferent(predictions, referents, [true, false, false, false]), 0.5);
});

test.run();
