// A profiled step: the same training as any other step, told by operation.

import { test } from "uvu";
import * as assert from "uvu/assert";
import { openRun } from "../../src/trainer/engine.ts";
import type { Run } from "../../src/trainer/run/run.ts";
import { testDevice } from "../support/gpu.ts";
import { plan, tinyData, tinyModel, tinyRun } from "../support/tiny_model.ts";

const device = await testDevice();
const model = await tinyModel();
const data = await tinyData();
const ROUTER = "encoder.block.1.layer.1.mlp.router.classifier.weight";

const bits = async (run: Run): Promise<Uint32Array> => new Uint32Array((await run.readParameter(ROUTER)).buffer);

for (const accumulationSteps of [1, 2])
  test(`${accumulationSteps} batches: a profiled step trains as another does, and its dispatches are all there`, async () => {
    const config = tinyRun(model, data, { accumulationSteps, trainable: plan({ preset: "moe" }) });
    const [plain, profiled] = [await openRun(device, config), await openRun(device, config)];
    for (let step = 0; step < 3; step++) await plain.trainStep();
    await profiled.trainStep();
    const profile = await profiled.profileStep();
    await profiled.trainStep();
    assert.is(profiled.step, 3);
    assert.equal(await bits(profiled), await bits(plain));

    const phases = profile.map((o) => o.phase).filter((phase, i, all) => phase !== all[i - 1]);
    const batch = ["forward", "backward"];
    assert.equal(phases, [...Array.from({ length: accumulationSteps }, () => batch).flat(), "optimizer"]);
    const dispatches = profile.reduce((n, o) => n + o.kernels.length, 0);
    const { cost } = profiled;
    const update = profile.reduce((n, o) => n + (o.phase === "optimizer" ? o.kernels.length : 0), 0);
    assert.is(dispatches, accumulationSteps * (cost.dispatches - update) + update);
    const flops = profile.reduce((n, o) => n + o.flops, 0);
    assert.ok(Math.abs(flops / (cost.forwardFlops + cost.backwardFlops) - 1) < 1e-9);
    for (const { operation, kernels, seconds, bytes } of profile) {
      assert.ok(bytes > 0, operation);
      assert.is(
        seconds,
        kernels.reduce((sum, k) => sum + k.seconds, 0),
      );
    }
    assert.ok(profile.some((o) => o.seconds > 0));
    plain.close();
    profiled.close();
  });

test("a model opened for inference has no step to profile", async () => {
  const run = await openRun(device, tinyRun(model, data));
  run.close();
  let failed: unknown;
  await run.profileStep().catch((error: unknown) => {
    failed = error;
  });
  assert.instance(failed, Error);
});

test.run();
