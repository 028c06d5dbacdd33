import { test } from "uvu";
import * as assert from "uvu/assert";
import { keepRecordings } from "../../src/server/worker/recordings.ts";
import { InputError } from "../../src/trainer/types.ts";
import { fakeRoutes } from "../support/fake_engine.ts";

/** Bytes of the two tokens of `fakeRoutes`: three u32, one u16, one f32 and one u8 each. */
const BYTES = 2 * (3 * 4 + 2 + 4 + 1);

test("the newest recordings stay within the bytes there are, the last one whatever its size", () => {
  const recordings = keepRecordings(3 * BYTES);
  const routes = (example: number) => [fakeRoutes("training", 0, example)];
  const first = recordings.keep([routes(1)]);
  const second = recordings.keep([routes(2), routes(3)]);
  assert.equal(recordings.find(first, 0, "f"), routes(1));
  assert.equal(recordings.find(second, 1, "f"), routes(3));
  const third = recordings.keep([routes(4)]);
  assert.throws(
    () => recordings.find(first, 0, "f"),
    (error: unknown) => error instanceof InputError && error.problems[0].field === "f",
  );
  assert.equal(recordings.find(second, 0, "f"), routes(2));
  const large = recordings.keep(Array.from({ length: 4 }, (_, i) => routes(i)));
  for (const gone of [second, third]) assert.throws(() => recordings.find(gone, 0, "f"), /no longer/);
  assert.equal(recordings.find(large, 3, "f"), routes(3));
});

test.run();
