import { suite } from "uvu";
import * as assert from "uvu/assert";
import { firstExamples } from "../../src/trainer/run/evaluate.ts";

const test = suite("first examples");
const examplesOf = (groups: readonly (string | undefined)[]) =>
  groups.map((group) => ({ inputIds: Uint32Array.of(1), labels: Int32Array.of(1), group }));

test("so many at most, and no group without some of its examples", () => {
  const grouped = examplesOf(["a", "a", "b", "b", "b", "c"]);
  const sizes = [0, 1, 2, 3, 4, 5, 6, 7].map((most) => firstExamples(grouped, most).length);
  assert.equal(sizes, [6, 1, 2, 2, 2, 5, 6, 6]);
  const plain = examplesOf([undefined, undefined, undefined]);
  assert.equal(
    [0, 1, 2, 3].map((most) => firstExamples(plain, most).length),
    [3, 1, 2, 3],
  );
});

test.run();
