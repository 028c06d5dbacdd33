// Dense products in the transposes of training: forward (nt), data gradient (nn), weight gradient (tn).

import type { Bench, Part, Scale } from "../part.ts";
import { measureProduct, type Product, productKinds, type Transposes } from "../products.ts";

const cube = (size: number): Product[] =>
  (["nt", "nn", "tn"] as const).map((transposes) => ({ m: size, n: size, k: size, transposes }));

/** The three products of a linear map of `tokens` rows from `from` to `to` features. */
const linear = (tokens: number, from: number, to: number): Product[] => [
  { m: tokens, n: to, k: from, transposes: "nt" },
  { m: tokens, n: from, k: to, transposes: "nn" },
  { m: to, n: from, k: tokens, transposes: "tn" },
];

const one = (m: number, n: number, k: number, transposes: Transposes): Product => ({ m, n, k, transposes });

/** gpu: switch-base-8 at 32 × 512 input tokens: attention projections, feed-forward, and 32 × 128 rows of the vocabulary. */
export const PRODUCTS: Readonly<Record<Scale, readonly Product[]>> = {
  small: [
    one(512, 64, 64, "nt"),
    one(512, 64, 128, "nn"),
    one(64, 64, 1000, "tn"),
    one(4096, 64, 64, "nt"),
    one(512, 4, 64, "nt"),
    one(1, 256, 64, "nt"),
  ],
  gpu: [
    ...cube(4096),
    ...cube(8192),
    ...linear(16384, 768, 768),
    ...linear(16384, 768, 3072),
    ...linear(4096, 768, 32128),
  ],
};

async function measure({ scale, ceilings, device: open, report }: Bench): Promise<void> {
  const device = await open();
  for (const products of productKinds(device))
    for (const product of PRODUCTS[scale]) report(await measureProduct({ device, scale, ceilings }, product, products));
}

export const matmul: Part = {
  name: "matmul",
  title:
    "dense products m×n×k in the transposes of training, by timestamps; operands of mixed precision are f16 in memory",
  seconds: { small: 40, gpu: 90 },
  measure,
};
