// The text of every kernel for matrix units is valid WGSL, whatever this machine's adapter: Dawn's null backend checks it.

import { test } from "uvu";
import * as assert from "uvu/assert";
import { attention, attentionKeyValueGradient, attentionQueryBiasGradient } from "../../src/kernels/attention.ts";
import { groupedMatmul, groupedWeightGradient } from "../../src/kernels/grouped_matmul.ts";
import type { Command } from "../../src/kernels/kernel.ts";
import { matmul } from "../../src/kernels/matmul.ts";

const BOTH = [false, true];

function* attentions(): Generator<Command<number>> {
  const buffers = { q: 1, k: 2, v: 3, out: 4, logSumExp: 5, segments: 6, distanceBias: 7, step: 8 };
  const gradients = {
    ...buffers,
    dOut: 9,
    rowStatistics: 10,
    dQ: 11,
    dK: 12,
    dV: 13,
    bucketOfDistance: 14,
    scratch: 15,
    dBias: 16,
  };
  for (const headDim of [16, 48, 64, 80, 128])
    for (const dropout of [undefined, { rate: 0.1, use: 1 }])
      for (const half of BOTH) {
        const lengths = { batch: 1, heads: 2, kvHeads: 1, queryLength: 70, keyLength: 90 };
        const options = { scale: 1, causal: true, buckets: 8, segments: "both", dropout, products: "matrix" } as const;
        const dims = { ...lengths, headDim, ...options, half };
        yield* attention(buffers, dims, "hardware");
        for (const dQ of [gradients.dQ, undefined])
          for (const bias of [gradients, undefined])
            yield* attentionQueryBiasGradient({ ...gradients, dQ, bias }, dims, "hardware").slice(0, 1);
        yield* attentionKeyValueGradient(gradients, dims, "hardware");
      }
}

function* commands(): Generator<Command<number>> {
  for (const [m, n] of [
    [64, 64],
    [2048, 2048],
  ])
    for (const transposeA of BOTH)
      for (const transposeB of BOTH)
        for (const halves of [[], ["a", "b", "out"]]) {
          const dims = { m, n, k: 64, transposeA, transposeB, products: "matrix", halves } as const;
          yield* matmul({ a: 1, b: 2, out: 3 }, dims, "hardware");
        }
  for (const gatherTopK of [undefined, 2]) {
    const rows = { expertOfBlock: 4, sourceOfRow: 5 };
    const options = { n: 64, k: 64, gatherTopK, products: "matrix" } as const;
    for (const rowTile of [64, 128])
      for (const transposeWeight of BOTH)
        yield* groupedMatmul(
          { x: 1, weight: 2, out: 3, ...rows },
          { maxRows: 1024, rowTile, transposeWeight, ...options },
          "hardware",
        );
    const experts = { expertOffset: 4, expertCount: 5, trainableExperts: 6 };
    for (const n of [64, 8192])
      yield* groupedWeightGradient(
        { x: 1, dy: 2, out: 3, ...experts, sourceOfRow: 5 },
        { slots: 2, ...options, n, k: n },
        "hardware",
      );
  }
}

test("kernels for matrix units are valid WGSL", async () => {
  const { create } = await import("webgpu");
  const gpu = create(["backend=null", "enable-dawn-features=allow_unsafe_apis"]);
  const adapter = (await gpu.requestAdapter())!;
  const requiredFeatures = ["shader-f16", "subgroups", "chromium-experimental-subgroup-matrix"] as GPUFeatureName[];
  const device = await adapter.requestDevice({ requiredFeatures });
  let count = 0;
  for (const c of [...commands(), ...attentions()]) {
    if (!("kernel" in c)) continue;
    assert.match(c.kernel.name, /matrix/);
    const module = device.createShaderModule({ code: c.kernel.wgsl });
    const { messages } = await module.getCompilationInfo();
    assert.equal(
      messages.map((m) => `${m.lineNum}: ${m.message}`),
      [],
      c.kernel.name,
    );
    count++;
  }
  assert.is(count, 28 + 100);
  assert.ok(gpu, "Dawn crashes when the object that made it is collected");
});

test.run();
