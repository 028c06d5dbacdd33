// What kernel and trainer tests share: one device per process, and a way to run commands on plain arrays.
//
//   const gpu = await testDevice();
//   const out = await runCommands(gpu, {
//     buffers: { x: new Float32Array([1, 2]), y: new Float32Array(3).fill(NaN) },
//     commands: () => double({ x: "x", y: "y" }, { count: 2 }),
//   });
//   out.y // [2, 4, NaN]: what the kernel wrote, and the sentinel behind it
//
// Importing this file starts the process anew when it lacks the GPU environment (relaunch.ts), so that
// `npx tsx test/kernels/x.test.ts` works by itself.

import process from "node:process";
import * as assert from "uvu/assert";
import type { Device } from "../../src/kernels/device/device.ts";
import { openDevice } from "../../src/kernels/device/open.ts";
import { ensureGpuEnvironment } from "../../src/kernels/device/relaunch.ts";
import type { Command } from "../../src/kernels/kernel.ts";
import { type BufferArgument, recordProgram, runProgram } from "../../src/kernels/program.ts";

ensureGpuEnvironment();

let opened: Promise<Device> | undefined;

/** The device of this test process. `THAW_WEBGPU=deno` selects Deno's own implementation (`deno task test`). */
export function testDevice(): Promise<Device> {
  opened ??= openDevice({ implementation: process.env.THAW_WEBGPU === "deno" ? "deno" : "dawn" });
  return opened;
}

/** Element types of test buffers. */
export type TestArray = Float32Array | Uint32Array | Int32Array;

/**
 * Runs commands whose buffers are given by name, and returns every buffer as it is afterwards. `commands` receives each
 * name as a value (`names.x === "x"`), so that a misspelt one does not compile.
 */
export async function runCommands<B extends Record<string, TestArray>>(
  gpu: Device,
  wanted: { buffers: B; commands: (names: { readonly [K in keyof B]: string }) => readonly Command<string>[] },
): Promise<B> {
  const names = Object.keys(wanted.buffers);
  const buffers = new Map<string, GPUBuffer>();
  for (const name of names) {
    const buffer = await gpu.createBuffer({ label: name, bytes: wanted.buffers[name].byteLength });
    gpu.upload(buffer, wanted.buffers[name]);
    buffers.set(name, buffer);
  }
  const find = (name: string): GPUBuffer => {
    const buffer = buffers.get(name);
    if (!buffer) throw new Error(`no test buffer is called ${name}`);
    return buffer;
  };
  try {
    const identity = Object.fromEntries(names.map((name) => [name, name])) as { [K in keyof B]: string };
    const commands = wanted.commands(identity).map((c): Command<BufferArgument> => {
      if ("clear" in c) return { clear: find(c.clear) };
      const bound = Object.entries(c.buffers).map(([argument, name]) => [argument, find(name)]);
      return { ...c, buffers: Object.fromEntries(bound) };
    });
    const program = await recordProgram(gpu, "test", commands);
    runProgram(gpu, program);
    const outputs = await Promise.all(
      names.map(async (name) => {
        const bytes = await gpu.read(find(name), wanted.buffers[name].byteLength);
        return [name, new (wanted.buffers[name].constructor as new (b: ArrayBuffer) => TestArray)(bytes)];
      }),
    );
    program.destroy();
    return Object.fromEntries(outputs);
  } finally {
    for (const buffer of buffers.values()) gpu.destroyBuffer(buffer);
  }
}

/** ‖actual − expected‖ / ‖expected‖ in the Euclidean norm; 0 when both are zero, infinite when only `expected` is. */
export function relativeError(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  assert.is(actual.length, expected.length, "lengths");
  let difference = 0;
  let norm = 0;
  for (let i = 0; i < expected.length; i++) {
    difference += (actual[i] - expected[i]) ** 2;
    norm += expected[i] ** 2;
  }
  return difference === 0 ? 0 : Math.sqrt(difference / norm);
}

/**
 * Asserts |actual[i] − expected[i]| ≤ toleranceOf(i) for every element (NaN and infinity must match exactly), and shows
 * the element that is furthest over.
 */
export function compareWithTolerance(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  toleranceOf: (index: number) => number,
  label = "element",
): void {
  assert.is(actual.length, expected.length, `${label}: lengths`);
  let worst = -1;
  let worstExcess = 0;
  let failures = 0;
  for (let i = 0; i < expected.length; i++) {
    if (Object.is(actual[i], expected[i]) || Math.abs(actual[i] - expected[i]) <= toleranceOf(i)) continue;
    failures++;
    const excess = Math.abs(actual[i] - expected[i]) / toleranceOf(i);
    if (worst < 0 || Number.isNaN(excess) || excess > worstExcess) {
      worst = i;
      worstExcess = Number.isNaN(excess) ? Number.POSITIVE_INFINITY : excess;
    }
  }
  if (failures === 0) return;
  const difference = Math.abs(actual[worst] - expected[worst]);
  assert.unreachable(
    `${label} ${worst} is ${actual[worst]}, expected ${expected[worst]}: off by ${difference}, allowed ${toleranceOf(worst)}; ` +
      `${failures} of ${expected.length} are off`,
  );
}
