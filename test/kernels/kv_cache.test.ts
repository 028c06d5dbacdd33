// The key-value cache moves numbers and computes none, so everything is compared to the bit.

import { test } from "uvu";
import * as assert from "uvu/assert";
import {
  kvCacheAppend,
  kvCacheAppendReference,
  kvCacheReorder,
  kvCacheReorderReference,
} from "../../src/kernels/kv_cache.ts";
import { randomValues, runTwice, unwritten } from "./run_twice.ts";

const SIZES = [
  { rows: 1, length: 1, width: 1 },
  { rows: 3, length: 5, width: 7 },
  { rows: 16, length: 9, width: 32 },
];

for (const dims of SIZES) {
  const { rows, length, width } = dims;
  const size = rows * length * width;
  const cache = () =>
    Float32Array.from(unwritten(size + 4, 0)).map((x, i) => (i < size ? randomValues(size, 3)[i] : x));

  test(`appends one position to ${rows} rows of ${length} × ${width} and touches no other`, async () => {
    const x = randomValues(rows * width, 1);
    const before = cache();
    for (const position of new Set([0, length - 1])) {
      const out = await runTwice({
        buffers: { x, position: Uint32Array.of(position), cache: before },
        commands: (names) => kvCacheAppend(names, dims),
      });
      assert.equal(out.cache.subarray(0, size), kvCacheAppendReference(x, position, before.subarray(0, size), dims));
      assert.equal(out.cache.subarray(size), before.subarray(size), "nothing behind the cache is written");
    }
  });

  test(`reorders ${rows} rows of ${length} × ${width}, one parent with several children`, async () => {
    const before = cache();
    const parents = Uint32Array.from({ length: rows }, (_, r) => (r * r + 1) % rows);
    const out = await runTwice({
      buffers: { cache: before, parents, scratch: unwritten(size, 0) },
      commands: (names) => kvCacheReorder(names, dims),
    });
    assert.equal(out.cache.subarray(0, size), kvCacheReorderReference(before.subarray(0, size), parents, dims));
    assert.equal(out.cache.subarray(size), before.subarray(size), "nothing behind the cache is written");
  });
}

test.run();
