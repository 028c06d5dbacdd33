// What the adapter can do at best, against which the other parts are held: how fast it copies, and how fast our own matrix
// products are at sizes that fill it.

import { call, defineKernel, LINEAR_INDEX, read, spread, write } from "../../src/kernels/kernel.ts";
import type { Bench, Part } from "../part.ts";
import { measureProduct, productKinds } from "../products.ts";
import { timeCommands } from "../timing.ts";

const SIZES = { small: [128, 256], gpu: [1024, 2048, 4096, 8192] } as const;
/** Bytes copied: far more than a cache holds on a GPU. */
const COPIED = { small: 2 ** 24, gpu: 2 ** 30 } as const;

const THREADS = 256;
/** out = x, both [count] vec4f: the plainest kernel, which only moves bytes. */
const copyKernel = defineKernel({
  name: "bench_copy",
  params: { count: "u32" },
  buffers: { x: read("vec4f"), out: write("vec4f") },
  wgsl: /* wgsl */ `${LINEAR_INDEX}
@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lid: u32) {
  let i = linear_index(wid, num) * ${THREADS} + lid;
  if (i < params.count) { out[i] = x[i]; }
}`,
});

async function measure({ scale, device: open, report }: Bench): Promise<void> {
  const device = await open();
  const bytes = Math.min(COPIED[scale], device.capabilities.limits.maxStorageBufferBindingSize);
  const make = (label: string) => device.createBuffer({ label, bytes });
  const [x, out] = [await make("x"), await make("out")];
  const count = Math.floor(bytes / 16);
  const groups = spread(Math.ceil(count / THREADS));
  const seconds = await timeCommands(device, "copy", [call(copyKernel, { count }, { x, out }, groups)]);
  device.destroyBuffer(x);
  device.destroyBuffer(out);
  report({
    name: `copy ${(bytes / 2 ** 20).toFixed(0)} MiB`,
    figures: { ms: 1e3 * seconds, "GB/s": (2 * bytes) / seconds / 1e9, ceiling: "copy" },
    rate: "GB/s",
  });
  for (const products of productKinds(device))
    for (const size of SIZES[scale]) {
      const product = { m: size, n: size, k: size, transposes: "nt" } as const;
      const row = await measureProduct({ device, scale, ceilings: {} }, product, products);
      report({ ...row, figures: { ...row.figures, ceiling: products } });
    }
}

export const ceilings: Part = {
  name: "ceilings",
  title: "what bounds the rest: bytes read and written by a copy, and square products a·bᵀ",
  seconds: { small: 40, gpu: 60 },
  measure,
};
