// What the tests of rounded products go through: every way to make one, and every transpose of its operands.

import type { Test } from "uvu";
import type { KernelTarget, Products } from "../../src/kernels/capabilities.ts";
import type { MatmulDims } from "../../src/kernels/matmul.ts";

/** Kernels, and what they do with operands that are rounded to f16. */
export const WAYS = [
  ["software", "f16"],
  ["hardware", "f16"],
  ["hardware", "matrix"],
] as const;

/** A test for each way and each transpose: `check` is given the ways and transposes as a product's dimensions have them. */
export function testTransposes(
  test: Test,
  check: (
    target: KernelTarget,
    dims: Pick<MatmulDims, "transposeA" | "transposeB"> & { products: Products },
  ) => Promise<void>,
): void {
  const stored = (transposed: boolean): string => (transposed ? "transposed" : "as is");
  for (const [target, products] of WAYS)
    for (const transposeA of [false, true])
      for (const transposeB of [false, true])
        test(`${target} ${products}: a ${stored(transposeA)}, b ${stored(transposeB)}`, () =>
          check(target, { products, transposeA, transposeB }));
}
