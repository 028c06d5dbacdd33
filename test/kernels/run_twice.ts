// For kernel tests: seeded values, and a run that is made twice and must give the same bits both times.

import { Buffer } from "node:buffer";
import * as assert from "uvu/assert";
import type { Command } from "../../src/kernels/kernel.ts";
import { runCommands, type TestArray, testDevice } from "../support/gpu.ts";

/** A bit pattern no kernel produces by accident: what an output holds where nothing must be written. */
export const SENTINEL = 12345.678;

/** Output of `count` elements to be written, `behind` that must not be. */
export const unwritten = (count: number, behind = 5): Float32Array => new Float32Array(count + behind).fill(SENTINEL);

/** `count` f32 values in [-1, 1), the same for the same seed. */
export function randomValues(count: number, seed: number): Float32Array {
  let state = (seed * 2654435761 + 12345) >>> 0;
  return Float32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state >>> 8) / 2 ** 23 - 1;
  });
}

/** `runCommands`, twice; fails when any buffer differs in any bit. */
export async function runTwice<B extends Record<string, TestArray>>(wanted: {
  buffers: B;
  commands: (names: { readonly [K in keyof B]: string }) => readonly Command<string>[];
}): Promise<B> {
  const gpu = await testDevice();
  const first = await runCommands(gpu, wanted);
  const second = await runCommands(gpu, wanted);
  for (const name of Object.keys(first))
    assert.ok(Buffer.from(bytes(first[name])).equals(bytes(second[name])), `${name}: same bits`);
  return first;
}

const bytes = (x: TestArray): Uint8Array => new Uint8Array(x.buffer, x.byteOffset, x.byteLength);
