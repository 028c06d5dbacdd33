// Kernels for matrix units on an adapter that has none: their text with WGSL's subgroup matrices replaced by arrays of the
// subgroup's first lane. What the kernels do around the units (staging, edges, layouts, stores) is then tested anywhere; on an
// adapter with units the kernels run as they are.

import { type Capabilities, mixedProducts } from "../../src/kernels/capabilities.ts";
import type { Command, Kernel } from "../../src/kernels/kernel.ts";
import { MATRIX_ENABLES } from "../../src/kernels/matrix_tiles.ts";

const load = (order: "row" | "col", array: string, at: string): string => /* wgsl */ `
fn load_${order}_${array}(fragment: u32, start: u32, stride: u32) -> u32 {
  if (emulated_lane > 0) { return fragment; }
  for (var r = 0u; r < 16; r++) {
    for (var c = 0u; c < 16; c++) {
      let at = start * 8 + ${at};
      fragments[fragment * 256 + r * 16 + c] = unpack2x16float(${array}[at / 8][at % 8 / 2])[at % 2];
    }
  }
  return fragment;
}
`;

/** A fragment is its number; its elements lie in one array, since SwiftShader is slow at copying arrays. */
const emulation = (count: number, arrays: Iterable<string>): string => /* wgsl */ `
var<private> fragments: array<f32, ${count * 256}>;
var<private> emulated_lane: u32;
${[...arrays]
  .flatMap((array) => [load("row", array, "r * stride * 8 + c"), load("col", array, "c * stride * 8 + r")])
  .join("")}
fn zeroed(fragment: u32) -> u32 {
  for (var e = 0u; e < 256; e++) { fragments[fragment * 256 + e] = 0.0; }
  return fragment;
}
fn store_sums(start: u32, fragment: u32, stride: u32) {
  if (emulated_lane > 0) { return; }
  for (var e = 0u; e < 256; e++) { sums_patch[start + e / 16 * stride + e % 16] = fragments[fragment * 256 + e]; }
}
fn multiply_add(a: u32, b: u32, c: u32) -> u32 {
  if (emulated_lane > 0) { return c; }
  for (var e = 0u; e < 256; e++) {
    var sum = fragments[c * 256 + e];
    for (var k = 0u; k < 16; k++) { sum += fragments[a * 256 + e / 16 * 16 + k] * fragments[b * 256 + k * 16 + e % 16]; }
    fragments[c * 256 + e] = sum;
  }
  return c;
}
@compute`;

function emulated(kernel: Kernel): Kernel {
  const arrays = new Set<string>();
  const numbers = new Map<string, number>();
  const number = (name: string): number => {
    if (!numbers.has(name)) numbers.set(name, numbers.size);
    return numbers.get(name)!;
  };
  const body = kernel.wgsl
    .replace(MATRIX_ENABLES, "")
    .replaceAll(/^alias .*\n/gm, "")
    .replaceAll(/var (\w+) = Sums\(\);/g, (_, name) => `var ${name} = zeroed(${number(name)}u);`)
    .replaceAll(/let (\w+) = subgroupMatrixLoad<\w+, (row|col)_major>\(&(\w+), /g, (_, name, order, array) => {
      arrays.add(array);
      return `let ${name} = load_${order}_${array}(${number(name)}u, `;
    })
    .replaceAll("subgroupMatrixStore<row_major>(&sums_patch, ", "store_sums(")
    .replaceAll("subgroupMatrixMultiplyAccumulate(", "multiply_add(")
    .replace("@builtin(subgroup_id) subgroup: u32,", "")
    .replace("let index =", "let subgroup = lid / 32;\n  emulated_lane = lid % 32;\n  let index =");
  return { ...kernel, wgsl: body.replace("@compute", emulation(numbers.size, arrays)) };
}

/** `commands`, runnable on an adapter of these capabilities. */
export const onMatrixUnits = <T>(capabilities: Capabilities, commands: readonly Command<T>[]): Command<T>[] =>
  commands.map((c) =>
    "kernel" in c && mixedProducts(capabilities) !== "matrix" && c.kernel.wgsl.startsWith(MATRIX_ENABLES)
      ? { ...c, kernel: emulated(c.kernel) }
      : c,
  );
