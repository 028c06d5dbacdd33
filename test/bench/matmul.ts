// GFLOP/s of `matmul` on the adapter at hand, best of five, in the shapes of a small model's step:
//
//   npx tsx test/bench/matmul.ts

import { matmul } from "../../src/kernels/matmul.ts";
import { recordProgram } from "../../src/kernels/program.ts";
import { testDevice } from "../support/gpu.ts";

// [m, n, k, transposeA, transposeB]: forward (nt), data gradient (nn), weight gradient (tn), router, decode step.
const SHAPES: [number, number, number, boolean, boolean][] = [
  [512, 64, 64, false, true],
  [512, 64, 128, false, false],
  [64, 64, 1000, true, false],
  [4096, 64, 64, false, true],
  [512, 4, 64, false, true],
  [1, 256, 64, false, true],
];
/** Work per measurement: enough to drown the submission. */
const FLOPS = 5e7;

const gpu = await testDevice();
for (const [m, n, k, transposeA, transposeB] of SHAPES) {
  const [a, b, out] = await Promise.all(
    [m * k, k * n, m * n].map((count) => gpu.createBuffer({ label: "bench", bytes: 4 * count })),
  );
  const once = matmul({ a, b, out }, { m, n, k, transposeA, transposeB }, gpu.target);
  const repeats = Math.max(1, Math.round(FLOPS / (2 * m * n * k)));
  const program = await recordProgram(gpu, "bench", Array.from({ length: repeats }, () => once).flat());
  let best = Number.POSITIVE_INFINITY;
  for (let i = 0; i < 6; i++) {
    const encoder = gpu.gpu.createCommandEncoder();
    program.encode(encoder);
    const begin = performance.now();
    gpu.gpu.queue.submit([encoder.finish()]);
    await gpu.gpu.queue.onSubmittedWorkDone();
    if (i > 0) best = Math.min(best, performance.now() - begin);
  }
  const rate = (2 * m * n * k * repeats) / best / 1e6;
  console.log(`${program.dispatches[0].kernel}  ${m}×${n}×${k}  ${rate.toFixed(2)} GFLOP/s`);
}
gpu.destroy();
