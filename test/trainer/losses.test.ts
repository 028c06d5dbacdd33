import { test } from "uvu";
import * as assert from "uvu/assert";
import { openRun } from "../../src/trainer/engine.ts";
import type { LossOptions, StepMetrics } from "../../src/trainer/types.ts";
import { testDevice } from "../support/gpu.ts";
import { tinyData, tinyModel, tinyRun } from "../support/tiny_model.ts";

const device = await testDevice();
const model = await tinyModel();
const data = await tinyData();

async function firstSteps(losses: LossOptions, steps = 1): Promise<StepMetrics[]> {
  const run = await openRun(device, tinyRun(model, data, { dropout: 0, losses }));
  const metrics: StepMetrics[] = [];
  for (let i = 0; i < steps; i++) metrics.push(await run.trainStep());
  run.close();
  return metrics;
}

const ROUTERS = { balanceCoefficient: 1e-2, zCoefficient: 1e-3 };
const close = (actual: number | undefined, expected: number, what: string) =>
  assert.ok(Math.abs(actual! - expected) < 1e-5 * Math.abs(expected), `${what}: ${actual} is not ${expected}`);

test("the total is the cross-entropy and every term with its coefficient; layers add up, or are averaged", async () => {
  for (const layerReduction of ["sum", "mean"] as const) {
    const losses = { ...ROUTERS, layerReduction, labelSmoothing: 0.1, vocabularyZCoefficient: 1e-2 };
    const [m] = await firstSteps(losses);
    const routers = m.layers.reduce((n, l) => n + 1e-2 * l.balanceLoss + 1e-3 * l.zLoss, 0);
    const share = layerReduction === "mean" ? 1 / m.layers.length : 1;
    assert.ok(m.layers.length > 1 && m.layers.every((l) => l.balanceLoss > 0.5), "no layer's loss is silently 0");
    close(m.totalLoss, m.smoothedLoss! + share * routers + 1e-2 * m.vocabularyZLoss!, layerReduction);
    assert.ok(m.smoothedLoss !== m.loss && m.vocabularyZLoss! > 0);
  }
});

test("pooled losses are one loss over all layers, and learn otherwise than their sum", async () => {
  const steps = async (layerReduction: "sum" | "pooled") =>
    firstSteps({ ...ROUTERS, balanceCoefficient: 1, layerReduction }, 3);
  const [pooled, , later] = await steps("pooled");
  const values = pooled.layers.map((l) => l.balanceLoss + 1e-3 * l.zLoss);
  const added = pooled.totalLoss - pooled.loss;
  assert.ok(added > 0.9 && added < 1.05 * Math.max(...values), `${added} is of the size of one layer's ${values}`);
  assert.is.not(later.loss, (await steps("sum"))[2].loss);
});

test("what is off is not reported, and leaves the cross-entropy as it is", async () => {
  const [plain] = await firstSteps(ROUTERS);
  const [regularised] = await firstSteps({ ...ROUTERS, labelSmoothing: 0.2, vocabularyZCoefficient: 1e-3 });
  assert.is(plain.smoothedLoss, undefined);
  assert.is(plain.vocabularyZLoss, undefined);
  close(regularised.loss, plain.loss, "the first step's cross-entropy");
});

test("each term changes what is learnt", async () => {
  const last = async (losses: LossOptions) => (await firstSteps(losses, 3))[2].loss;
  const variants = [
    ROUTERS,
    { ...ROUTERS, labelSmoothing: 0.3 },
    { ...ROUTERS, vocabularyZCoefficient: 0.1 },
    { ...ROUTERS, balanceCoefficient: 1, layerReduction: "mean" as const },
    { ...ROUTERS, balanceCoefficient: 1 },
  ];
  const seen = [];
  for (const losses of variants) seen.push(await last(losses));
  assert.is(new Set(seen).size, variants.length, seen.join(", "));
});

test.run();
