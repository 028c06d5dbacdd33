// What a live change of the freeze plan costs: from the command until the next step has come back, less the time of a step.

import type { OptimizerStatePolicy, Preset } from "../../src/trainer/types.ts";
import type { Bench, Part } from "../part.ts";
import { openRandomRun, planOf, randomModel } from "../random_model.ts";
import { stepRate } from "../steps.ts";
import { MODELS } from "./model.ts";

/** Each change twice: the first time compiles, the second finds its kernels. */
const CHANGES: readonly { to: Preset; optimizerState: OptimizerStatePolicy; compiled: boolean }[] = [
  { to: "ffn", optimizerState: "drop", compiled: false },
  { to: "attention", optimizerState: "drop", compiled: true },
  { to: "ffn", optimizerState: "drop", compiled: true },
  { to: "attention", optimizerState: "keep", compiled: true },
  { to: "moe", optimizerState: "keep", compiled: false },
  { to: "attention", optimizerState: "keep", compiled: true },
];
const SECONDS = { small: 0.4, gpu: 1 } as const;

async function measure(bench: Bench): Promise<void> {
  const device = await bench.device();
  const { config, shape } = MODELS[bench.scale];
  const run = await openRandomRun(device, randomModel(config), shape, { precision: "mixed", preset: "attention" });
  await stepRate(run, SECONDS[bench.scale]);
  let from: Preset = "attention";
  for (const { to, optimizerState, compiled } of CHANGES) {
    const begin = performance.now();
    await run.setTrainable({ ...planOf(to), optimizerState });
    const changed = performance.now() - begin;
    await run.trainStep();
    const next = performance.now() - begin;
    const step = 1e3 * (await stepRate(run, SECONDS[bench.scale])).seconds;
    bench.report({
      name: `${from} → ${to}, state ${optimizerState === "drop" ? "dropped" : "kept"}${compiled ? "" : ", kernels not compiled"}`,
      figures: { "change, ms": changed, "next step, ms": next, "a step, ms": step, "cost, ms": next - step },
    });
    from = to;
  }
  run.close();
}

export const thawing: Part = {
  name: "thawing",
  title: "a change of what trains in a run: from the command until the next step is back, and that less a step",
  seconds: { small: 60, gpu: 60 },
  measure,
};
