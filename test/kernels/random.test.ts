import { test } from "uvu";
import * as assert from "uvu/assert";
import { call, defineKernel, read, write } from "../../src/kernels/kernel.ts";
import { PHILOX, philox, uniformElement } from "../../src/kernels/random.ts";
import { runTwice } from "./run_twice.ts";

// Random123, tests/kat_vectors, philox4x32 with 10 rounds: counter, key, result.
const KNOWN: [[number, number, number, number], [number, number], number[]][] = [
  [
    [0, 0, 0, 0],
    [0, 0],
    [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8],
  ],
  [
    [0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff],
    [0xffffffff, 0xffffffff],
    [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd],
  ],
  [
    [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
    [0xa4093822, 0x299f31d0],
    [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
  ],
];

test("philox gives the published Random123 words", () => {
  for (const [counter, key, words] of KNOWN) assert.equal(philox(counter, key), words);
});

test("the WGSL philox gives them too", async () => {
  const kernel = defineKernel({
    name: "philox_test",
    params: {},
    buffers: { input: read("vec4u"), out: write("vec4u") },
    wgsl: `${PHILOX}
@compute @workgroup_size(1) fn main(@builtin(workgroup_id) id: vec3u) {
  out[id.x] = philox(input[2 * id.x], input[2 * id.x + 1].xy);
}`,
  });
  const input = Uint32Array.from(KNOWN.flatMap(([counter, key]) => [...counter, ...key, 0, 0]));
  const out = new Uint32Array(4 * KNOWN.length);
  const got = await runTwice({
    buffers: { input, out },
    commands: ({ input, out }) => [call(kernel, {}, { input, out }, [KNOWN.length])],
  });
  assert.equal(
    [...got.out],
    KNOWN.flatMap(([, , words]) => words),
  );
});

test("uniform_element and uniformElement agree to the bit, over seed, step, use and element", async () => {
  const cases = [
    [0, 0, 0, 0],
    [1, 2, 3, 4],
    [0xffffffff, 5, 6, 7],
    [8, 0xfffffffe, 9, 10],
    [11, 12, 0x80000001, 13],
    [14, 15, 16, 0xfffffffd],
    ...Array.from({ length: 50 }, (_, i) => [42, 7, 3, i]),
  ];
  const kernel = defineKernel({
    name: "uniform_element_test",
    params: {},
    buffers: { input: read("vec4u"), out: write("f32") },
    wgsl: `${PHILOX}
@compute @workgroup_size(1) fn main(@builtin(workgroup_id) id: vec3u) {
  let c = input[id.x];
  out[id.x] = uniform_element(c.x, c.y, c.z, c.w);
}`,
  });
  const got = await runTwice({
    buffers: { input: Uint32Array.from(cases.flat()), out: new Float32Array(cases.length).fill(-1) },
    commands: ({ input, out }) => [call(kernel, {}, { input, out }, [cases.length])],
  });
  const expected = cases.map(([seed, step, use, element]) => uniformElement(seed, step, use, element));
  assert.equal([...got.out], expected);
  assert.ok(expected.every((u) => u >= 0 && u < 1));
});

test("uniform values have the mean, spread and independence of neighbours of a uniform distribution", () => {
  const n = 4000;
  const u = Array.from({ length: n }, (_, i) => uniformElement(3, 1, 2, i));
  const mean = u.reduce((a, b) => a + b) / n;
  const variance = u.reduce((a, b) => a + (b - mean) ** 2, 0) / n;
  const lag = u.slice(1).reduce((a, b, i) => a + (b - 0.5) * (u[i] - 0.5), 0) / (n - 1);
  // Five standard errors each: 1/sqrt(12 n), 1/sqrt(180 n), 1/(12 sqrt n).
  assert.ok(Math.abs(mean - 0.5) < 5 / Math.sqrt(12 * n), `mean ${mean}`);
  assert.ok(Math.abs(variance - 1 / 12) < 5 / Math.sqrt(180 * n), `variance ${variance}`);
  assert.ok(Math.abs(lag) < 5 / (12 * Math.sqrt(n)), `lag-1 covariance ${lag}`);
});

test.run();
