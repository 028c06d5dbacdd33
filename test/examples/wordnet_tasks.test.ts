import { test } from "uvu";
import * as assert from "uvu/assert";
import { dealt, definitions } from "../../scripts/wordnet_tasks.ts";

// The form of data files is wndb(5WN)'s: offset, lexicographer file, part of speech, words, pointers | gloss.
const DATA = `  1 This software and database is being provided to you, the LICENSEE, by
  2 Princeton University | under the following license.
00001740 03 n 01 entity 0 000 | a root, of no category
00002000 06 n 01 hammer 0 000 | a tool for driving nails; "he swung the hammer"
00002001 05 n 01 dog 0 000 | an animal that barks; kept as a pet; "the dog barked all night"
00002002 20 n 01 oak 0 000 | a tall tree
00002003 20 n 01 elm 0 000 | a tall tree
00002004 04 n 01 run 0 000 | said twice
00002005 11 n 01 run 0 000 | said twice
`;

test("a definition is what stands before the examples; what occurs twice or has no category is left out", () => {
  assert.equal(definitions("noun", DATA), [
    { input: "noun: a tool for driving nails", target: "artifact" },
    { input: "noun: an animal that barks; kept as a pet", target: "animal" },
  ]);
});

test("splits share no example, and hold what they are to hold", () => {
  const examples = Array.from({ length: 10 }, (_, i) => ({ input: `${i}`, target: "x" }));
  const { validation, train } = dealt(examples, { validation: 3, train: 6 });
  assert.is(validation.length, 3);
  assert.is(new Set([...validation, ...train].map(({ input }) => input)).size, 9);
  assert.throws(() => dealt(examples, { validation: 3, train: 8 }), /11 definitions are wanted, there are 10/);
});

test.run();
