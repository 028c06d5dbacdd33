import { mkdtemp, readFile, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "uvu";
import * as assert from "uvu/assert";
import { FIRST_LOSS_SCALE } from "../../src/kernels/loss_scale.ts";
import { openRun } from "../../src/trainer/engine.ts";
import type { Run } from "../../src/trainer/run/run.ts";
import type { RunConfig, StepMetrics } from "../../src/trainer/types.ts";
import { testDevice } from "../support/gpu.ts";
import { tinyData, tinyModel, tinyRun } from "../support/tiny_model.ts";

const device = await testDevice();
// Widths that matrix units can read, so that they run where there are some.
const WIDTHS = { d_model: 16, d_ff: 24, d_kv: 8, num_heads: 2, vocab_size: 40 };
const model = await tinyModel(WIDTHS);
const stMoe = await tinyModel({
  ...WIDTHS,
  model_type: "st_moe",
  sparse_step: 2,
  num_selected_experts: 2,
  expert_multiplicative_bias: true,
});
const data = await tinyData();

const open = (changes: Partial<RunConfig>, resumeFrom?: string): Promise<Run> =>
  openRun(device, tinyRun(model, data, { precision: "mixed", ...changes }), { resumeFrom });

async function train(run: Run, steps: number): Promise<StepMetrics[]> {
  const metrics: StepMetrics[] = [];
  for (let i = 0; i < steps; i++) metrics.push(await run.trainStep());
  return metrics;
}

const checkpoint = async (run: Run): Promise<string> => {
  const directory = await mkdtemp(join(tmpdir(), "thaw-checkpoint-"));
  await run.saveCheckpoint(directory);
  return directory;
};

for (const [name, modelDirectory] of Object.entries({ switch: model, "ST-MoE": stMoe }))
  test(`losses and gradients of ${name} are those of f32 but for the rounding of operands`, async () => {
    const whole = await open({ precision: "f32", modelDirectory });
    const mixed = await open({ modelDirectory });
    const [expected] = await train(whole, 1);
    const [actual] = await train(mixed, 1);
    assert.is(expected.lossScale, undefined);
    assert.equal(actual.lossScale, { scale: FIRST_LOSS_SCALE, overflowed: false });
    // A product is off by 2^-10 of its terms; a handful of layers of them, and a router whose choice may flip, by a few
    // times that.
    for (const [key, share] of [
      ["loss", 0.01],
      ["gradientNorm", 0.05],
    ] as const) {
      const error = Math.abs(actual[key] / expected[key] - 1);
      assert.ok(error > 0 && error < share, `${key}: ${actual[key]} and ${expected[key]}`);
    }
    assert.ok(mixed.cost.activationBytes < whole.cost.activationBytes, "what products read takes less memory");
    whole.close();
    mixed.close();
  });

test("it learns, and an interrupted run goes on with the same bits", async () => {
  const unbroken = await open({});
  const before = device.allocatedBytes - unbroken.cost.peakBytes;
  assert.is(device.allocatedBytes, before + unbroken.cost.peakBytes);
  const expected = await train(unbroken, 8);
  assert.ok(expected[7].loss < expected[0].loss, `${expected[7].loss} is less than ${expected[0].loss}`);
  const first = await open({});
  await train(first, 4);
  const second = await open({}, await checkpoint(first));
  assert.equal(
    (await train(second, 4)).map((m) => [m.loss, m.gradientNorm, m.lossScale]),
    expected.slice(4).map((m) => [m.loss, m.gradientNorm, m.lossScale]),
  );
  for (const run of [unbroken, first, second]) run.close();
});

for (const accumulationSteps of [1, 2])
  test(`an overflow changes nothing and halves the scale, ${accumulationSteps} batches a step`, async () => {
    const first = await open({ accumulationSteps });
    await train(first, 1);
    const directory = await checkpoint(first);
    const path = join(directory, "training.json");
    const state = JSON.parse(await readFile(path, "utf8"));
    assert.equal(state.lossScale, [FIRST_LOSS_SCALE, 1, FIRST_LOSS_SCALE]);
    await writeFile(path, JSON.stringify({ ...state, lossScale: [2 ** 40, 0, 0] }));
    const run = await open({ accumulationSteps }, directory);
    const name = run.source.model.parameters.find((p) => p.kind === "ffn")!.name;
    const before = await run.readParameter(name);
    // Asked for at once: the second step already has the halved scale.
    const [one, two] = await Promise.all([run.trainStep(), run.trainStep()]);
    assert.equal(one.lossScale, { scale: 2 ** 40, overflowed: true });
    assert.equal(two.lossScale, { scale: 2 ** 39, overflowed: true });
    assert.ok(Number.isFinite(one.loss));
    assert.equal(await run.readParameter(name), before);
    let steps = 2;
    while ((await run.trainStep()).lossScale!.overflowed) assert.ok(++steps < 40, "the scale falls until it fits");
    assert.not.equal(await run.readParameter(name), before);
    for (const r of [first, run]) r.close();
  });

test("evaluation and generation round alike", async () => {
  const run = await open({});
  const result = await run.evaluate(data, "train", 8);
  assert.ok(Number.isFinite(result.loss));
  run.close();
});

test.run();
