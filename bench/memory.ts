// What a run takes of a GPU's memory, as the planner has it: allocated is what is planned, to the byte, so no GPU is needed.
//
//   npx tsx bench/memory.ts
//
// The model and batch of `model-mixed` and `model-f32`, each strategy in both precisions.

import type { Capabilities } from "../src/kernels/capabilities.ts";
import { PRESET_KINDS, resolveTrainable } from "../src/trainer/groups.ts";
import { planPrograms } from "../src/trainer/run/plan.ts";
import type { Preset } from "../src/trainer/types.ts";
import { MODELS } from "./parts/model.ts";
import { planOf, randomModel, settings } from "./random_model.ts";
import { rowsTable } from "./rows.ts";

/** A large GPU with matrix units; its memory is not asked for. */
const GPU: Capabilities = {
  implementation: "dawn",
  vendor: "",
  architecture: "",
  description: "",
  software: false,
  f16: true,
  subgroups: true,
  subgroupMinSize: 32,
  subgroupMaxSize: 32,
  matrixShapes: [{ m: 16, n: 16, k: 16, component: "f16", result: "f32" }],
  timestampQuery: true,
  limits: {
    maxBufferSize: 2 ** 36,
    maxStorageBufferBindingSize: 2 ** 32 - 4,
    maxStorageBuffersPerShaderStage: 10,
    maxComputeWorkgroupStorageSize: 49152,
    maxComputeInvocationsPerWorkgroup: 1024,
    maxComputeWorkgroupsPerDimension: 65535,
    minUniformBufferOffsetAlignment: 256,
  },
};

const { config, shape } = MODELS.gpu;
const { model } = randomModel(config);
const rows = (["mixed", "f32"] as const).flatMap((precision) =>
  (Object.keys(PRESET_KINDS) as Preset[]).map((preset) => {
    const plan = planOf(preset);
    const trainable = resolveTrainable(model.parameters, plan.selection, "preset");
    const { bytes } = planPrograms({
      model,
      capabilities: GPU,
      config: settings(shape, precision),
      training: { trainable, plan, shapes: [{ input: shape.input, target: shape.target, share: 1 }] },
      inference: { input: 1, target: 1 },
    });
    const gibibytes = Object.entries(bytes).map(([what, count]) => [what, count / 2 ** 30]);
    return { name: `${preset} ${precision}`, figures: Object.fromEntries(gibibytes) };
  }),
);
console.log(
  `GiB of a training step, batch ${shape.batch} × (${shape.input} + ${shape.target}) tokens\n${rowsTable(rows)}`,
);
