// Recorded programs: parameters, clears, parts of buffers, and errors that name their kernel.

import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { Device } from "../../src/kernels/device/device.ts";
import { KernelError } from "../../src/kernels/device/errors.ts";
import { call, defineKernel, LINEAR_INDEX, read, spread, write } from "../../src/kernels/kernel.ts";
import { type BufferArgument, profileProgram, recordProgram, runProgram } from "../../src/kernels/program.ts";
import { runCommands, testDevice } from "../support/gpu.ts";

const test = suite("program");

const WORKGROUP = 4;

/** y[i] = scale · x[i] + shift, for i < count. */
const affine = defineKernel({
  name: "test_affine",
  params: { count: "u32", scale: "f32", shift: "i32" },
  buffers: { x: read("f32"), y: write("f32") },
  wgsl: /* wgsl */ `
${LINEAR_INDEX}
@compute @workgroup_size(${WORKGROUP})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lid: u32) {
  let i = linear_index(wid, num) * ${WORKGROUP} + lid;
  if (i < params.count) { y[i] = params.scale * x[i] + f32(params.shift); }
}`,
});

const affineCall = <T>(buffers: { x: T; y: T }, params: { count: number; scale: number; shift: number }) =>
  call(affine, params, buffers, spread(Math.ceil(params.count / WORKGROUP)));

test("runs calls in order, each with its own parameters, and touches nothing past the count", async () => {
  const gpu = await testDevice();
  const out = await runCommands(gpu, {
    buffers: { x: new Float32Array([1, 2, 3, 4, 5]), y: new Float32Array(7).fill(Number.NaN), z: new Float32Array(6) },
    commands: (n) => [
      affineCall({ x: n.x, y: n.y }, { count: 5, scale: 2, shift: -1 }),
      affineCall({ x: n.y, y: n.z }, { count: 5, scale: 0.5, shift: 10 }),
    ],
  });
  assert.equal([...out.y], [1, 3, 5, 7, 9, Number.NaN, Number.NaN]);
  assert.equal([...out.z], [10.5, 11.5, 12.5, 13.5, 14.5, 0]);
});

test("clears between dispatches, whole buffers and parts", async () => {
  const gpu = await testDevice();
  const x = await filled(gpu, 128, 1);
  const y = await filled(gpu, 128, 7);
  const program = await recordProgram(gpu, "parts", [
    { clear: { buffer: y, offset: 256, size: 4 } },
    affineCall<BufferArgument>(
      { x: { buffer: x, offset: 256, size: 256 }, y: { buffer: y, offset: 0, size: 256 } },
      { count: 2, scale: 3, shift: 0 },
    ),
    { clear: x },
  ]);
  const before = gpu.allocatedBytes;
  runProgram(gpu, program);
  const out = new Float32Array(await gpu.read(y));
  assert.equal([...out.subarray(0, 3), ...out.subarray(63, 66)], [3, 3, 7, 7, 0, 7]);
  assert.equal(new Float32Array(await gpu.read(x)), new Float32Array(128));
  assert.equal(program.dispatches, [{ kernel: "test_affine", workgroups: [1, 1, 1] }]);
  program.destroy();
  assert.is(gpu.allocatedBytes, before - program.uniformBytes);
  gpu.destroyBuffer(x);
  gpu.destroyBuffer(y);
});

test("runs more workgroups than one dimension allows", async () => {
  const gpu = await testDevice();
  const count = 4 * 65536 + 3;
  const out = await runCommands(gpu, {
    buffers: { x: Float32Array.from({ length: count }, (_, i) => i), y: new Float32Array(count + 1).fill(-1) },
    commands: (n) => [affineCall({ x: n.x, y: n.y }, { count, scale: 1, shift: 1 })],
  });
  assert.is(out.y[0], 1);
  assert.is(out.y[count - 1], count);
  assert.is(out.y[count], -1);
});

const empty = { count: 1, scale: 1, shift: 0 };
const REFUSED: readonly {
  why: string;
  pattern: RegExp;
  type?: typeof TypeError;
  call: (x: GPUBuffer, y: GPUBuffer) => unknown;
}[] = [
  {
    why: "WGSL that does not compile",
    pattern: /^test_typo: .*undefined_name/s,
    call: (x, y) => ({ ...affineCall({ x, y }, empty), kernel: typo }),
  },
  {
    why: "a buffer both read and written",
    pattern: /^test_affine: /,
    call: (x) => affineCall({ x, y: x }, empty),
  },
  {
    why: "a part at an unaligned offset",
    pattern: /^test_affine: .*(offset|align)/is,
    call: (x, y) => affineCall<BufferArgument>({ x: { buffer: x, offset: 4, size: 16 }, y }, empty),
  },
  {
    why: "a missing buffer",
    pattern: /^test_affine: no buffer for y/,
    call: (x) => ({ ...affineCall({ x, y: x }, empty), buffers: { x } }),
  },
  {
    why: "too many workgroups",
    pattern: /^test_affine: workgroups 65536×1×1/,
    call: (x, y) => ({ ...affineCall({ x, y }, empty), workgroups: [65536, 1, 1] }),
  },
  {
    why: "a parameter that is not a number",
    pattern: /^test_affine: parameter scale is NaN/,
    type: TypeError,
    call: (x, y) => affineCall({ x, y }, { ...empty, scale: Number.NaN }),
  },
];

const typo = defineKernel({
  name: "test_typo",
  params: affine.params as typeof affine.params,
  buffers: affine.buffers as typeof affine.buffers,
  wgsl: "@compute @workgroup_size(1) fn main() { y[0] = undefined_name; }",
});

for (const refused of REFUSED) {
  test(`refuses ${refused.why}, names the kernel, and leaks nothing`, async () => {
    const gpu = await testDevice();
    const x = await filled(gpu, 4, 1);
    const y = await filled(gpu, 4, 1);
    const before = gpu.allocatedBytes;
    const good = affineCall({ x, y }, empty);
    const bad = refused.call(x, y) as typeof good;
    try {
      await recordProgram(gpu, "refused", [good, bad, good]);
      assert.unreachable("recorded");
    } catch (error) {
      assert.match((error as Error).message, refused.pattern);
      assert.instance(error, refused.type ?? KernelError);
    }
    assert.is(gpu.allocatedBytes, before);
    gpu.destroyBuffer(x);
    gpu.destroyBuffer(y);
  });
}

test("profiles seconds per dispatch", async () => {
  const gpu = await testDevice();
  if (!gpu.capabilities.timestampQuery) return;
  const x = await filled(gpu, 1 << 16, 1);
  const y = await filled(gpu, 1 << 16, 1);
  const big = affineCall({ x, y }, { count: 1 << 16, scale: 1, shift: 0 });
  const program = await recordProgram(gpu, "profile", [big, { clear: y }, affineCall({ x, y }, empty)]);
  const profile = await profileProgram(gpu, program);
  assert.equal(
    profile.map((p) => p.kernel),
    ["test_affine", "test_affine"],
  );
  assert.ok(profile[0].seconds > 0 && profile[0].seconds < 10, `${profile[0].seconds} s`);
  program.destroy();
  gpu.destroyBuffer(x);
  gpu.destroyBuffer(y);
});

async function filled(gpu: Device, length: number, value: number): Promise<GPUBuffer> {
  const buffer = await gpu.createBuffer({ label: "filled", bytes: length * 4 });
  gpu.upload(buffer, new Float32Array(length).fill(value));
  return buffer;
}

test.run();
