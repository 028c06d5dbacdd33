// Which run is next, and who makes room for it: decisions over plain values.

import { create } from "@bufbuild/protobuf";
import { test } from "uvu";
import * as assert from "uvu/assert";
import { Priority, type Run, RunSchema } from "../../proto/gen/thaw/v1/run_pb.ts";
import { gpuShares, makeRoom, nextOf, type Room } from "../../src/server/runs/scheduling.ts";

const { LOW, NORMAL, HIGH } = Priority;
const HOUR = 3_600_000;

/** `bytes` undefined: nobody has planned them. */
const run = (name: string, priority: Priority, bytes: bigint | undefined, owner = ""): Run =>
  create(RunSchema, { name, priority, owner, cost: bytes === undefined ? undefined : { peakBytes: bytes } });

test("priority comes first, then who has used the GPU least, then age", () => {
  const waiting = [
    run("old", NORMAL, 1n, "busy"),
    run("low", LOW, 1n, "idle"),
    run("first", NORMAL, 1n, "idle"),
    run("second", NORMAL, 1n, "idle"),
  ];
  const used = (owner: string): number => (owner === "busy" ? 5 : 0);
  assert.is(nextOf(waiting, used)?.name, "first");
  assert.is(nextOf([...waiting, run("high", HIGH, 1n, "busy")], used)?.name, "high");
  assert.is(nextOf(waiting, () => 0)?.name, "old");
  assert.is(nextOf([], used), undefined);
});

test("time on the GPU is shared among the runs on it, and forgotten by half in an hour", () => {
  const shares = gpuShares();
  shares.changed(["a", "b", "a"], 1000);
  assert.equal([shares.used("a", 1300), shares.used("b", 1300)].map(Math.round), [200, 100]);
  assert.is(shares.used("c", 1300), 0);
  shares.changed([], 1300);
  const later = shares.used("b", 1300 + HOUR);
  // 300 ms of an hour's half-life forget less than 1e-4 of it.
  assert.ok(Math.abs(later - 50) < 0.01, String(later));
});

const ROOM: Room = { runs: 3, bytes: 10n };
for (const [what, next, on, room, expected] of [
  ["an idle GPU has room for anything", run("n", LOW, 99n), [], ROOM, []],
  ["two fit together", run("n", NORMAL, 5n), [run("a", NORMAL, 5n)], ROOM, []],
  ["one byte too many", run("n", NORMAL, 6n), [run("a", NORMAL, 5n)], ROOM, undefined],
  ["one run too many", run("n", NORMAL, 1n), [run("a", HIGH, 1n)], { runs: 1, bytes: 10n }, undefined],
  ["nobody knows the memory", run("n", NORMAL, 1n), [run("a", NORMAL, 1n)], { runs: 3, bytes: 0n }, undefined],
  ["nobody knows what it needs", run("n", NORMAL, undefined), [run("a", NORMAL, 1n)], ROOM, undefined],
  ["nobody knows what the other needs", run("n", NORMAL, 1n), [run("a", NORMAL, undefined)], ROOM, undefined],
  ["no room is made among equals", run("n", HIGH, 6n), [run("a", HIGH, 5n)], ROOM, undefined],
  ["the last that came leaves", run("n", HIGH, 5n), [run("a", LOW, 5n), run("b", LOW, 5n)], ROOM, ["b"]],
  ["the lowest leaves", run("n", HIGH, 5n), [run("a", LOW, 5n), run("b", NORMAL, 5n)], ROOM, ["a"]],
  ["as many as it takes", run("n", HIGH, 10n), [run("a", NORMAL, 4n), run("b", LOW, 4n)], ROOM, ["b", "a"]],
  ["nobody leaves in vain", run("n", HIGH, 9n), [run("a", HIGH, 4n), run("b", LOW, 4n)], ROOM, undefined],
  ["memory that nobody knows", run("n", HIGH, 1n), [run("a", LOW, 1n)], { runs: 3, bytes: 0n }, ["a"]],
] as const) {
  test(`room: ${what}`, () => {
    assert.equal(
      makeRoom(next, on, room)?.map(({ name }) => name),
      expected,
    );
  });
}

test.run();
