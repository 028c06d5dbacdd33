// Kernels for matrix units on an adapter that has none: their text with WGSL's subgroup matrices replaced by arrays of the
// subgroup's first lane. What the kernels do around the units (staging, edges, layouts, stores) is then tested anywhere; on
// an adapter with units the kernels run as they are.

import { type Capabilities, mixedProducts } from "../../src/kernels/capabilities.ts";
import type { Command, Kernel } from "../../src/kernels/kernel.ts";
import { MATRIX_ENABLES } from "../../src/kernels/matrix_tiles.ts";

/**
 * A transfer between a fragment and workgroup memory, whose strides are in elements of that: f32, or vec4u of f32 or f16.
 */
interface Access {
  readonly kind: "load" | "store";
  readonly order: string;
  readonly array: string;
  /** Numbers in an element of the array. */
  readonly pack: 1 | 4 | 8;
}

const accessName = ({ kind, order, array, pack }: Access): string => `${kind}_${order}_${array}_${pack}`;

function accessFunction(a: Access): string {
  const at = `start * ${a.pack} + ${a.order === "row" ? "r" : "c"} * stride * ${a.pack} + ${a.order === "row" ? "c" : "r"}`;
  const number = {
    1: `${a.array}[at]`,
    4: `bitcast<f32>(${a.array}[at / 4][at % 4])`,
    8: `unpack2x16float(${a.array}[at / 8][at % 8 / 2])[at % 2]`,
  }[a.pack];
  const entry = "fragments[fragment * 256 + r * 16 + c]";
  const stored = a.pack === 1 ? `${number} = ${entry}` : `${a.array}[at / 4][at % 4] = bitcast<u32>(${entry})`;
  return /* wgsl */ `
fn ${accessName(a)}(fragment: u32, start: u32, stride: u32) -> u32 {
  if (emulated_lane > 0) { return fragment; }
  for (var r = 0u; r < 16; r++) {
    for (var c = 0u; c < 16; c++) {
      let at = ${at};
      ${a.kind === "load" ? `${entry} = ${number}` : stored};
    }
  }
  return fragment;
}
`;
}

/** A fragment is its number; its elements lie in one array, since SwiftShader is slow at copying arrays. */
const emulation = (count: number, accesses: Iterable<Access>): string => /* wgsl */ `
var<private> fragments: array<f32, ${count * 256}>;
var<private> emulated_lane: u32;
${[...accesses].map(accessFunction).join("")}
fn zeroed(fragment: u32) -> u32 {
  for (var e = 0u; e < 256; e++) { fragments[fragment * 256 + e] = 0.0; }
  return fragment;
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
  const accesses = new Map<string, Access>();
  const numbers = new Map<string, number>();
  const number = (name: string): number => {
    if (!numbers.has(name)) numbers.set(name, numbers.size);
    return numbers.get(name)!;
  };
  const access = (kind: Access["kind"], order: string, array: string, halves: boolean): string => {
    const a: Access = { kind, order, array, pack: kernel.wgsl.includes(`${array}: array<f32`) ? 1 : halves ? 8 : 4 };
    accesses.set(accessName(a), a);
    return accessName(a);
  };
  const body = kernel.wgsl
    .replace(MATRIX_ENABLES, "")
    .replaceAll(/^alias (Left|Right|Sums) .*\n/gm, "")
    .replaceAll(/var (\w+) = Sums\(\);/g, (_, name) => `var ${name} = zeroed(${number(name)}u);`)
    .replaceAll(
      /(\w+) = subgroupMatrixLoad<(\w+), (row|col)_major>\(&(\w+), /g,
      (_, name, type, order, array) => `${name} = ${access("load", order, array, type !== "Sums")}(${number(name)}u, `,
    )
    .replaceAll(
      /subgroupMatrixStore<(row|col)_major>\(&(\w+), (.*), (\w+), (\w+)\);/g,
      (_, order, array, start, name, stride) =>
        `${name} = ${access("store", order, array, false)}(${name}, ${start}, ${stride});`,
    )
    .replaceAll("subgroupMatrixMultiplyAccumulate(", "multiply_add(")
    // Subgroups of one lane: right where the lanes' results are put together in any order.
    .replaceAll(/subgroup(Min|Max|Add)\(/g, "(")
    .replaceAll("subgroupElect()", "true")
    .replace("@builtin(subgroup_id) subgroup: u32,", "")
    .replace("let index =", "let subgroup = lid / 32;\n  emulated_lane = lid % 32;\n  let index =");
  return { ...kernel, wgsl: body.replace("@compute", emulation(numbers.size, accesses.values())) };
}

/** `commands`, runnable on an adapter of these capabilities. */
export const onMatrixUnits = <T>(capabilities: Capabilities, commands: readonly Command<T>[]): Command<T>[] =>
  commands.map((c) =>
    "kernel" in c && mixedProducts(capabilities) !== "matrix" && c.kernel.wgsl.startsWith(MATRIX_ENABLES)
      ? { ...c, kernel: emulated(c.kernel) }
      : c,
  );
