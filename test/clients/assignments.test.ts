// Packed assignments come out as they went in, at any alignment.

import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { test } from "uvu";
import * as assert from "uvu/assert";
import { decodeAssignments } from "../../clients/typescript/index.ts";
import { type AssignmentSlice, AssignmentSliceSchema } from "../../proto/gen/thaw/v1/routing_pb.ts";

type SliceInit = Exclude<MessageInitShape<typeof AssignmentSliceSchema>, AssignmentSlice>;

/** Little-endian bytes of `width` each, at an odd address inside a larger buffer. */
function packed(values: readonly number[], width: number): Uint8Array {
  const buffer = new Uint8Array(values.length * width + 2);
  const bytes = buffer.subarray(1, 1 + values.length * width);
  values.forEach((value, i) => {
    for (let byte = 0; byte < width; byte++) bytes[i * width + byte] = Math.floor(value / 256 ** byte) % 256;
  });
  return bytes;
}

/** Five tokens with two choices each. */
const slice = (changes: SliceInit): AssignmentSlice =>
  create(AssignmentSliceSchema, {
    topK: 2,
    tokenCount: 5n,
    expertCount: 8,
    exampleIds: packed([0, 0, 4_000_000_000, 7, 7], 4),
    positions: packed([0, 1, 65_536, 3, 4], 4),
    expertIdBytes: 1,
    expertIds: packed([0, 7, 1, 6, 2, 5, 3, 4, 255, 0], 1),
    keptBits: Uint8Array.from([0b10000001, 0b10]),
    ...changes,
  });

test("ids, positions and kept bits of every token", () => {
  const decoded = decodeAssignments(slice({}));
  assert.equal([...decoded.exampleIds], [0, 0, 4_000_000_000, 7, 7]);
  assert.equal([...decoded.positions], [0, 1, 65_536, 3, 4]);
  assert.instance(decoded.expertIds, Uint8Array);
  assert.equal([...decoded.expertIds], [0, 7, 1, 6, 2, 5, 3, 4, 255, 0]);
  assert.equal([...decoded.kept], [1, 0, 0, 0, 0, 0, 0, 1, 0, 1]);
  assert.is(decoded.tokenIds, undefined);
  assert.is(decoded.gates, undefined);
});

test("u16 expert ids and token ids", () => {
  const wide = [0, 256, 65_535, 1, 2, 3, 4, 5, 6, 7];
  const decoded = decodeAssignments(
    slice({ expertIdBytes: 2, expertIds: packed(wide, 2), tokenIds: packed([32_127, 1, 2, 3, 70_000], 4) }),
  );
  assert.instance(decoded.expertIds, Uint16Array);
  assert.equal([...decoded.expertIds], wide);
  assert.equal([...decoded.tokenIds!], [32_127, 1, 2, 3, 70_000]);
});

test("f16 gates widen exactly", () => {
  const cases: [number, number][] = [
    [0x3c00, 1],
    [0x3800, 0.5],
    [0x3555, 0.333251953125],
    [0x0000, 0],
    [0x8000, -0],
    [0x0001, 2 ** -24],
    [0x03ff, 1023 * 2 ** -24],
    [0x0400, 2 ** -14],
    [0x7bff, 65504],
    [0xfc00, Number.NEGATIVE_INFINITY],
  ];
  const gates = decodeAssignments(
    slice({
      gates: packed(
        cases.map(([half]) => half),
        2,
      ),
    }),
  ).gates!;
  cases.forEach(([half, value], i) => {
    assert.ok(Object.is(gates[i], value), `${half.toString(16)}: ${gates[i]}, expected ${value}`);
  });
  const nan = Array<number>(10).fill(0x7e00);
  assert.ok(decodeAssignments(slice({ gates: packed(nan, 2) })).gates!.every(Number.isNaN));
});

test("an array of the wrong length is refused by name", () => {
  const wrong: [SliceInit, RegExp][] = [
    [{ exampleIds: new Uint8Array(19) }, /example_ids holds 19 bytes, expected 20/],
    [{ positions: new Uint8Array(0) }, /positions holds 0/],
    [{ tokenIds: new Uint8Array(4) }, /token_ids holds 4/],
    [{ expertIds: new Uint8Array(5) }, /expert_ids holds 5 bytes, expected 10/],
    [{ expertIdBytes: 2 }, /expert_ids holds 10 bytes, expected 20/],
    [{ gates: new Uint8Array(10) }, /gates holds 10/],
    [{ keptBits: new Uint8Array(1) }, /kept_bits holds 1/],
  ];
  for (const [changes, message] of wrong) {
    assert.throws(
      () => decodeAssignments(slice(changes)),
      (error: Error) => {
        return error instanceof RangeError && message.test(error.message);
      },
    );
  }
});

test.run();
