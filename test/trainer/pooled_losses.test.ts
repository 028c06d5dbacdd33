// Router losses pooled over layers, through the graph: two routers of one size and different masks, groups and logits.

import { test } from "uvu";
import * as assert from "uvu/assert";
import { runProgram } from "../../src/kernels/program.ts";
import {
  routerBackwardReference,
  routerForwardReference,
  routerPoolReference,
  routerStatisticsReference,
} from "../../src/kernels/router.reference.ts";
import { packStepScalars, STEP_SCALARS_BYTES } from "../../src/kernels/step_scalars.ts";
import { differentiate } from "../../src/trainer/graph/autodiff.ts";
import { elements, Graph, type Tensor } from "../../src/trainer/graph/graph.ts";
import { lowerGraph } from "../../src/trainer/graph/lowered.ts";
import { poolRouterLosses } from "../../src/trainer/graph/ops/router_losses.ts";
import { route } from "../../src/trainer/graph/ops/routing.ts";
import { DeviceMemory } from "../../src/trainer/run/device_memory.ts";
import { relativeError, testDevice } from "../support/gpu.ts";
import { noise } from "../support/tiny_model.ts";

const EXPERTS = 5;
const LAYERS = [
  { tokens: 25, tokensPerGroup: 12 }, // the last group has one token
  { tokens: 70, tokensPerGroup: 70 },
].map((layer, i) => ({
  ...layer,
  logits: noise(layer.tokens * EXPERTS, i + 1).map((x) => 3 * x),
  mask: Uint32Array.from({ length: layer.tokens }, (_, t) => Number(t % (3 + i) !== 1)),
}));
const BALANCE = 0.5;
const Z = 0.25;
const LOSS_SCALE = 4;

test("pooled losses weigh layers by their tokens, and their gradient reaches every layer", async () => {
  const device = await testDevice();
  const g = new Graph(device.target);
  const step = g.input("step_scalars", [STEP_SCALARS_BYTES / 4], "f32");
  const routings = LAYERS.map(({ tokens, tokensPerGroup }, i) => {
    const spec = { name: `logits_${i}`, kind: "router", shape: [tokens, EXPERTS], keys: [`logits_${i}`] } as const;
    const logits = g.tensor({ ...spec, role: "parameter", requiresGradient: true, parameter: spec });
    g.parameters.set(spec.name, logits);
    return route(g, `router_${i}`, logits, g.input(`mask_${i}`, [tokens], "u32"), {
      topK: 2,
      normalizeGates: false,
      secondExpertPolicy: "always",
      priority: "position",
      choose: "tokens",
      tokensPerGroup,
      capacity: { rule: "dropless" },
      countAll: true,
      denominator: "routable",
      balanceCoefficient: BALANCE,
      zCoefficient: Z,
      lossGradient: true,
      step,
    });
  });
  const pooled = poolRouterLosses(g, routings);
  const gradients = differentiate(g);
  const memory = new DeviceMemory(device);
  try {
    await memory.createParameters(g.parameters);
    for (const [i, { logits }] of LAYERS.entries()) device.upload(memory.parameters.get(`logits_${i}`)!.buffer, logits);
    const lowered = lowerGraph(g, device.capabilities.limits.minUniformBufferOffsetAlignment);
    await memory.prepare([lowered]);
    for (const [i, { mask }] of LAYERS.entries()) device.upload(memory.inputs.get(`mask_${i}`)!, mask);
    device.upload(
      memory.inputs.get("step_scalars")!,
      packStepScalars({ step: 0, seed: 0, lossScale: LOSS_SCALE, inverseTargetCount: 1, maxGradientNorm: 0 }),
    );
    const recorded = await memory.record("pooled losses", lowered);
    runProgram(device, recorded.program);
    const values = async (t: Tensor) =>
      new Float32Array(await device.read(recorded.range(t).buffer, 4 * elements(t.shape)));
    const losses = await values(pooled);
    const actual = await Promise.all(LAYERS.map((_, i) => values(gradients.get(`logits_${i}`)!)));
    recorded.destroy();

    const layers = LAYERS.map(({ tokens, tokensPerGroup, logits, mask }) => {
      const dims = { tokens, tokensPerGroup, experts: EXPERTS, topK: 2, countAll: true };
      const forward = routerForwardReference(logits, mask, { ...dims, normalizeGates: false });
      return { dims, mask, forward, statistics: routerStatisticsReference(forward, mask, dims) };
    });
    const expected = routerPoolReference(
      layers.map((l) => l.statistics),
      EXPERTS,
    );
    assert.ok(relativeError(losses, expected.losses) < 1e-5, `${losses} against ${expected.losses}`);
    for (const [i, { dims, mask, forward, statistics }] of layers.entries()) {
      const reference = routerBackwardReference(
        forward,
        { ...statistics, load: expected.load, groupTokens: Float64Array.of(expected.tokens) },
        mask,
        undefined,
        {
          ...dims,
          tokensPerGroup: dims.tokens,
          normalizeGates: false,
          balanceCoefficient: BALANCE,
          zCoefficient: Z,
          lossScale: LOSS_SCALE,
        },
      );
      assert.ok(relativeError(actual[i], reference) < 1e-5, `layer ${i}`);
    }
  } finally {
    memory.destroy();
  }
});

test.run();
