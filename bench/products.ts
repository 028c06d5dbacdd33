// Matrix products at a size: their time, and sampled entries of the result held against float64.

import { mixedProducts, type Products } from "../src/kernels/capabilities.ts";
import type { Device } from "../src/kernels/device/device.ts";
import { elementwise } from "../src/kernels/elementwise.ts";
import { type MatmulDims, matmul, matmulScratch } from "../src/kernels/matmul.ts";
import { recordProgram, runProgram } from "../src/kernels/program.ts";
import { fillWithNoise, type Noise, noiseAt } from "./noise.ts";
import { type Ceilings, type Scale, shareOf, workRate } from "./part.ts";
import type { Row } from "./rows.ts";
import { timeCommands } from "./timing.ts";

export type Transposes = "nt" | "nn" | "tn";

export interface Product {
  readonly m: number;
  readonly n: number;
  readonly k: number;
  readonly transposes: Transposes;
}

const SAMPLES = 32;
const A = { start: 17 };
const B = { start: 1_234_567 };

/** The kinds of products that training uses on this adapter: f32, and those of mixed precision. */
export const productKinds = (device: Device): readonly Products[] => ["f32", mixedProducts(device.capabilities)];

export const productName = ({ m, n, k, transposes }: Product): string =>
  `${m === n && n === k ? `${m}³` : `${m}×${n}×${k}`} ${transposes}`;

/** Times a product and checks it; the row's `error, of bound` is the largest of the sampled entries'. */
export async function measureProduct(
  { device, scale, ceilings }: { device: Device; scale: Scale; ceilings: Ceilings },
  product: Product,
  products: Products,
): Promise<Row> {
  const { m, n, k, transposes } = product;
  const [transposeA, transposeB] = [transposes[0] === "t", transposes[1] === "t"];
  const rows = { a: transposeA ? m : k, b: transposeB ? k : n };
  const halves = (["a", "b"] as const).filter((name) => products !== "f32" && rows[name] % 8 === 0);
  const dims: MatmulDims = { m, n, k, transposeA, transposeB, products, halves };
  const room = matmulScratch(dims, device.target);
  const make = (label: string, elements: number) => device.createBuffer({ label, bytes: 4 * elements });
  const operand = (name: "a" | "b", elements: number, noise: Noise) =>
    noisyOperand(device, name, elements, noise, halves.includes(name));
  const [a, b, out] = [await operand("a", m * k, A), await operand("b", k * n, B), await make("out", m * n)];
  const scratch = room > 0 ? await make("scratch", room) : undefined;
  try {
    const commands = matmul({ a, b, out, scratch }, dims, device.target);
    const seconds = await timeCommands(device, productName(product), commands);
    const error = await largestError(device, out, dims);
    const { rate, value } = workRate(scale, 2 * m * n * k, seconds);
    const share = shareOf(value, ceilings[products]);
    return {
      name: `${productName(product)} ${products === "f32" ? "f32" : "mixed"}`,
      figures: { products, ms: 1e3 * seconds, [rate]: value, ...share, "error, of bound": error },
      rate,
      wrong: !(error <= 1),
    };
  } finally {
    for (const buffer of [a, b, out, scratch]) if (buffer) device.destroyBuffer(buffer);
  }
}

const store = elementwise("bench_store", ["x"], "load_x(at)");

/** An operand of noise; in mixed precision it lies in memory as f16, as what training multiplies does. */
async function noisyOperand(
  device: Device,
  label: string,
  elements: number,
  noise: Noise,
  half: boolean,
): Promise<GPUBuffer> {
  const x = await device.createBuffer({ label, bytes: 4 * elements });
  await fillWithNoise(device, x, noise);
  if (!half) return x;
  const out = await device.createBuffer({ label, bytes: 2 * elements });
  const program = await recordProgram(device, label, store({ x, out }, { count: elements, halves: ["out"] }));
  runProgram(device, program);
  await device.gpu.queue.onSubmittedWorkDone();
  program.destroy();
  device.destroyBuffer(x);
  return out;
}

/**
 * |out - exact| of sampled entries over what it may be: an f32 sum of k random terms is off by about 2·sqrt(k)·2^-24·Σ|ab|,
 * and operands rounded to f16, to nearest or towards zero, by 2.1·2^-10·Σ|ab| more.
 */
async function largestError(device: Device, out: GPUBuffer, dims: MatmulDims): Promise<number> {
  const { m, n, k, transposeA, transposeB, products } = dims;
  const share = (2 * Math.sqrt(k) + 4) * 2 ** -24 + (products === "f32" ? 0 : 2.1 * 2 ** -10);
  let largest = 0;
  for (let sample = 0; sample < SAMPLES; sample++) {
    const i = Math.floor(((sample * 0.618034 + 0.01) % 1) * m);
    const j = Math.floor(((sample * 0.414214 + 0.99) % 1) * n);
    let exact = 0;
    let magnitude = 0;
    for (let l = 0; l < k; l++) {
      const term = noiseAt(A, transposeA ? l * m + i : i * k + l) * noiseAt(B, transposeB ? j * k + l : l * n + j);
      exact += term;
      magnitude += Math.abs(term);
    }
    const [value] = new Float32Array(await device.read(out, 4, 4 * (i * n + j)));
    const error = Math.abs(value - exact) / (share * magnitude);
    if (!(error <= largest)) largest = error;
  }
  return largest;
}
