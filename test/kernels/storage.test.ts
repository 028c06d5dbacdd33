// f16 in memory: what a kernel stores is the nearest f16, what it loads is exactly that, and what f16
// cannot hold is not finite (infinite on GPUs, NaN on SwiftShader), which the optimizer's norm finds.

import { test } from "uvu";
import * as assert from "uvu/assert";
import { call, defineKernel } from "../../src/kernels/kernel.ts";
import { floats, type Value } from "../../src/kernels/storage.ts";
import { runCommands, testDevice } from "../support/gpu.ts";
import { asHalves, fromHalves, toHalves } from "../support/halves.ts";
import { randomValues } from "./run_twice.ts";

const device = await testDevice();

/** Copies x to out, value by value. */
const copyKernel = (value: Value, halves: readonly string[]) => {
  const { buffers, functions } = floats(value, { x: "read", out: "write" }, halves);
  return defineKernel({
    name: "copy",
    params: {},
    buffers,
    wgsl: /* wgsl */ `${functions}
@compute @workgroup_size(1)
fn main(@builtin(workgroup_id) wid: vec3u) { store_out(wid.x, load_x(wid.x)); }`,
  });
};

const VALUES = Float32Array.from([
  ...[0, 1, -1, 2.5, 65504, -65504, 65519, 0.1, 1 / 3, 2 ** -14, 2 ** -15, 3 * 2 ** -24, 2 ** -24],
  ...[1 + 2 ** -11, 1 + 3 * 2 ** -11, 65520, 1e6, -1e30, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY],
  ...randomValues(40, 1),
]);

test("an f16 that is stored is the nearest one, and not finite beyond the largest", async () => {
  const buffers = { x: VALUES, out: new Uint32Array(VALUES.length / 2) };
  const kernel = copyKernel("vec4f", ["out"]);
  const commands = (names: { x: string; out: string }) => [call(kernel, {}, names, [VALUES.length / 4])];
  const { out } = await runCommands(device, { buffers, commands });
  const finite = (x: number) => (Number.isFinite(x) ? x : "not finite");
  assert.equal([...fromHalves(out)].map(finite), [...asHalves(VALUES)].map(finite));
});

test("NaN stays NaN", async () => {
  const x = Float32Array.from([Number.NaN, 1, 2, -Number.NaN]);
  const commands = (names: { x: string; out: string }) => [call(copyKernel("vec4f", ["out"]), {}, names, [1])];
  const { out } = await runCommands(device, { buffers: { x, out: new Uint32Array(2) }, commands });
  assert.equal([...fromHalves(out)].map(Number.isNaN), [true, false, false, true]);
});

for (const value of ["vec4f", "f32"] as const)
  test(`an f16 is read as what it is, ${value} at a time`, async () => {
    const buffers = { x: toHalves(VALUES), out: new Float32Array(VALUES.length) };
    const count = VALUES.length / (value === "vec4f" ? 4 : 1);
    const commands = (names: { x: string; out: string }) => [call(copyKernel(value, ["x"]), {}, names, [count])];
    const { out } = await runCommands(device, { buffers, commands });
    assert.equal([...out], [...asHalves(VALUES)]);
  });

test("f16 is not written one at a time", () => {
  assert.throws(() => floats("f32", { out: "write" }, ["out"]), /one f16 at a time/);
});

test.run();
