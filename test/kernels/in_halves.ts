// For tests of kernels that read and write f16: from values that f16 holds they must give what they give in f32, rounded to
// f16, bit for bit.

import * as assert from "uvu/assert";
import type { Command } from "../../src/kernels/kernel.ts";
import type { Halves } from "../../src/kernels/storage.ts";
import { runCommands, type TestArray, testDevice } from "../support/gpu.ts";
import { asHalves, fromHalves, toHalves } from "../support/halves.ts";
import { onMatrixUnits } from "../support/matrix_units.ts";
import { randomValues } from "./run_twice.ts";

type Arrays = Readonly<Record<string, TestArray>>;

/** Random values in [-1, 1) that f16 holds. */
export const held = (count: number, seed: number): Float32Array => asHalves(randomValues(count, seed));

/**
 * Runs `commands` with all of `floats` as f32, then with those in `halves` as f16, and compares what is in `outputs`, up to
 * so many elements each; what lies behind, and all other floats, must be left.
 */
export async function sameInHalves<F extends string, O extends string>(
  floats: Readonly<Record<F, Float32Array>>,
  others: Readonly<Record<O, TestArray>>,
  halves: Halves,
  outputs: Readonly<Partial<Record<F, number>>>,
  commands: (names: Readonly<Record<F | O, string>>, halves: Halves) => Command<string>[],
): Promise<void> {
  const device = await testDevice();
  const run = (stored: Halves): Promise<Arrays> => {
    const arrays = Object.entries<Float32Array>(floats).map(([name, values]) => [
      name,
      stored.includes(name) ? toHalves(values) : values,
    ]);
    return runCommands<Record<string, TestArray>>(device, {
      buffers: { ...others, ...Object.fromEntries(arrays) },
      commands: (names) =>
        onMatrixUnits(device.capabilities, commands(names as Readonly<Record<F | O, string>>, stored)),
    });
  };
  const [whole, half] = [await run([]), await run(halves)];
  assert.ok(Object.keys(outputs).length > 0, "something is written");
  for (const [name, before] of Object.entries<Float32Array>(floats)) {
    const used = outputs[name as F] ?? 0;
    const [exact, got] = [whole[name] as Float32Array, half[name]];
    const actual = got instanceof Uint32Array ? fromHalves(got) : (got as Float32Array);
    const expected = got instanceof Uint32Array ? asHalves(exact) : exact;
    const written = exact.slice(0, used).some((x, i) => x !== before[i]);
    assert.is(written, used > 0, `${name} is written`);
    assert.equal(actual.slice(0, used), expected.slice(0, used), name);
    assert.equal(actual.slice(used), before.slice(used), `behind ${name}`);
  }
}
