import { suite } from "uvu";
import * as assert from "uvu/assert";
import { score, scorePlain } from "../../../src/trainer/tasks/score.ts";
import { SUPERGLUE } from "../../../src/trainer/tasks/superglue.ts";

const test = suite("score");

const plain = (predictions: string[], targets: string[]) =>
  scorePlain(
    predictions,
    targets.map((target) => ({ target })),
  );

test("plain data: two repeated targets are labels, with a correlation", () => {
  // yes: TP 1, FN 1; no: TP 1, FN 0, FP 0; "maybe" is a class of its own to Matthews: s 3, c 2, Σpt 3, (9-3)(9-5)
  assert.equal(plain(["yes", "maybe", " no"], ["yes", "yes", "no"]), {
    exact_match: 2 / 3,
    accuracy: 2 / 3,
    f1_macro: (2 / 3 + 1) / 2,
    matthews: (2 * 3 - 3) / Math.sqrt(6 * 4),
  });
});

test("plain data: one target, or three, are labels without a correlation", () => {
  assert.equal(plain(["a", "b"], ["a", "a"]), { exact_match: 0.5, accuracy: 0.5, f1_macro: 2 / 3 });
  assert.equal(Object.keys(plain(["a", "b", "c", "a"], ["a", "b", "c", "c"])), ["exact_match", "accuracy", "f1_macro"]);
});

test("plain data: more than 32 targets, or none that repeats, are free text", () => {
  const labels = Array.from({ length: 32 }, (_, i) => `word ${i}`);
  const keysOf = (targets: string[]): string[] => Object.keys(plain(targets, targets));
  assert.equal(keysOf([...labels, "word 0"]), ["exact_match", "accuracy", "f1_macro"]);
  assert.equal(keysOf([...labels, "word 32", "word 0"]), ["exact_match", "f1_token"]);
  assert.equal(plain(["the cat", "red dog"], ["a cat", "dog"]), { exact_match: 0, f1_token: (1 + 2 / 3) / 2 });
});

test("plain data: any accepted answer is right", () => {
  const examples = [{ target: "a cat", answers: ["a cat", "felix"] }, { target: "dog" }];
  assert.equal(scorePlain(["felix", "red dog"], examples), { exact_match: 0.5, f1_token: (1 + 2 / 3) / 2 });
});

test("predictions must be as many as examples, and some", () => {
  assert.throws(() => plain(["a"], []), /1 predictions for 0 examples/);
  assert.throws(() => plain([], []), /no example/);
  assert.throws(
    () => score(SUPERGLUE.boolq, ["True"], [{ target: "True" }, { target: "True" }]),
    /1 predictions for 2/,
  );
});

test.run();
