// How an array of floats is stored, and how a kernel reads and writes it whatever that is. In mixed precision what feeds
// matrix products is kept as f16, two to a u32: half the memory, and half the bytes to move. Packing and unpacking are core
// WGSL, so this needs no f16 feature and runs on every adapter; a kernel calculates in f32 either way.
//
//   const { buffers, functions } = floats("vec4f", { x: "read", out: "write" }, ["out"]);
//   // functions declares load_x(at) and load_out(at), which give a vec4f, and store_out(at, value)
//
// f16 rounds to nearest: an element is off by 2^-11 of itself, or by 2^-25 below 2^-14. Beyond 65504 it is
// not finite.

import { type BufferDeclaration, type Kernel, kernelCache, prefetched, read, write } from "./kernel.ts";

/** What one access of a kernel reads or writes. */
export type Value = "vec4f" | "f32";

/** Names of the buffers of a call that hold f16; the others hold f32. */
export type Halves = readonly string[];

/** What one access handles of rows of `width` elements, and the width counted in it. */
export const valuesOf = (width: number): [Value, number] => (width % 4 === 0 ? ["vec4f", width / 4] : ["f32", width]);

const cached = kernelCache<Kernel>();

/** The kernel of this name for this storage, which becomes part of the name; `make` builds it once. */
export const kernelFor = (name: string, halves: Halves, make: (name: string) => Kernel): Kernel => {
  const full = `${name}${halves.map((buffer) => `_f16${buffer}`).join("")}`;
  return cached(full, () => make(full));
};

const HALF_TYPE: Readonly<Record<Value, string>> = { vec4f: "vec2u", f32: "u32" };
const DECLARATIONS = { read, prefetch: prefetched, write } as const;
const HALF_LOAD: Readonly<Record<Value, (array: string) => string>> = {
  vec4f: (array) => `let pairs = ${array}[at]; return vec4f(unpack2x16float(pairs.x), unpack2x16float(pairs.y));`,
  f32: (array) => `return unpack2x16float(${array}[at / 2])[at % 2];`,
};

/**
 * Declares float buffers that are accessed in `value`s, those in `halves` as f16. `functions` is WGSL of module scope: for
 * each of them `load_NAME(at)` and, where it is written, `store_NAME(at, value)`, `at` counting values.
 * @throws TypeError for f16 that would be written one at a time: two share a word
 */
export function floats<B extends string>(
  value: Value,
  access: Readonly<Record<B, "read" | "prefetch" | "write">>,
  halves: Halves,
): { buffers: Record<B, BufferDeclaration>; functions: string } {
  const names = Object.keys(access) as B[];
  const declarations = names.map((name): [B, BufferDeclaration] => [
    name,
    DECLARATIONS[access[name]](halves.includes(name) ? HALF_TYPE[value] : value),
  ]);
  const functions = names.map((name) => {
    const half = halves.includes(name);
    const load = half ? HALF_LOAD[value](name) : `return ${name}[at];`;
    const loads = `fn load_${name}(at: u32) -> ${value} { ${load} }\n`;
    if (access[name] !== "write") return loads;
    if (half && value === "f32") throw new TypeError(`${name} is written one f16 at a time`);
    const stored = half ? "vec2u(pack2x16float(value.xy), pack2x16float(value.zw))" : "value";
    return `${loads}fn store_${name}(at: u32, value: ${value}) { ${name}[at] = ${stored}; }\n`;
  });
  return { buffers: Object.fromEntries(declarations) as Record<B, BufferDeclaration>, functions: functions.join("") };
}
