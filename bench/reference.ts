// The PyTorch twins of parts (bench/reference/*.py). Their sizes are handed to them, and their rows bear the names of ours,
// so that the two sides can be joined.

import { moeName } from "./moe_layer.ts";
import { type Scale, UNIT } from "./part.ts";
import { PRODUCTS } from "./parts/matmul.ts";
import { MODELS, SECONDS } from "./parts/model.ts";
import { SHAPES } from "./parts/moe.ts";
import { productName } from "./products.ts";

export interface Reference {
  /** The part it is the twin of. */
  readonly part: string;
  readonly title: string;
  /** In bench/reference. */
  readonly script: string;
  /** Its sizes, for its command line. */
  readonly input: (scale: Scale) => unknown;
  /** Its time limit. */
  readonly seconds: Readonly<Record<Scale, number>>;
}

const units = (scale: Scale) => ({ rate: UNIT[scale].rate, unit: UNIT[scale].flops });

const model = (mode: "eager" | "compiled", seconds: Reference["seconds"]): Reference => ({
  part: "model-mixed",
  title: `transformers in bf16, fused AdamW, ${mode}`,
  script: "model.py",
  input: (scale) => ({ ...MODELS[scale], seconds: SECONDS[scale], mode }),
  seconds,
});

export const REFERENCES: readonly Reference[] = [
  {
    part: "matmul",
    title: "torch.matmul (on a GPU cuBLAS) in f32 without TF32, and in bf16 beside mixed",
    script: "matmul.py",
    input: (scale) => ({
      ...units(scale),
      products: PRODUCTS[scale].map((product) => ({ ...product, name: productName(product) })),
    }),
    seconds: { small: 60, gpu: 90 },
  },
  {
    part: "moe",
    title: "the same layers on torch._grouped_mm in bf16, eager and compiled",
    script: "moe.py",
    input: (scale) => ({ ...units(scale), shapes: SHAPES[scale].map((shape) => ({ ...shape, name: moeName(shape) })) }),
    seconds: { small: 120, gpu: 90 },
  },
  model("eager", { small: 60, gpu: 90 }),
  model("compiled", { small: 300, gpu: 240 }),
];
