// Where the time of a training step goes: every operation of it, summed by name, with what bounds it.

import { mixedProducts } from "../../src/kernels/capabilities.ts";
import type { OperationTime } from "../../src/trainer/run/profile.ts";
import { type Bench, type Part, roofline, workRate } from "../part.ts";
import { openRandomRun, randomModel } from "../random_model.ts";
import { train } from "../steps.ts";
import { median } from "../timing.ts";
import { MODELS } from "./model.ts";

const PROFILES = 3;

/** Operations of one name together. */
interface Sum {
  count: number;
  seconds: number;
  flops: number;
  bytes: number;
  /** Seconds by kernel. */
  readonly kernels: Map<string, number>;
}

function byName(profile: readonly OperationTime[]): Map<string, Sum> {
  const sums = new Map<string, Sum>();
  for (const o of profile) {
    const sum = sums.get(o.operation) ?? { count: 0, seconds: 0, flops: 0, bytes: 0, kernels: new Map() };
    sums.set(o.operation, sum);
    sum.count++;
    sum.seconds += o.seconds;
    sum.flops += o.flops;
    sum.bytes += o.bytes;
    for (const { kernel, seconds } of o.kernels) sum.kernels.set(kernel, (sum.kernels.get(kernel) ?? 0) + seconds);
  }
  return sums;
}

async function measure(bench: Bench): Promise<void> {
  const device = await bench.device();
  const { config, shape } = MODELS[bench.scale];
  const run = await openRandomRun(device, randomModel(config), shape, { precision: "mixed", preset: "all" });
  await train(run, 2);
  const profiles: Map<string, Sum>[] = [];
  for (let i = 0; i < PROFILES; i++) profiles.push(byName(await run.profileStep()));
  run.close();
  const products = mixedProducts(device.capabilities);
  const sums = [...profiles[0]].map(([name, sum]) => ({
    name,
    ...sum,
    seconds: median(profiles.map((p) => p.get(name)!.seconds)),
  }));
  const total = sums.reduce((n, s) => n + s.seconds, 0);
  for (const sum of sums.filter((s) => s.seconds > 0).sort((a, b) => b.seconds - a.seconds)) {
    const work = workRate(bench.scale, sum.flops, sum.seconds);
    bench.report({
      name: sum.name,
      figures: {
        "of step, %": (100 * sum.seconds) / total,
        ms: 1e3 * sum.seconds,
        count: sum.count,
        [work.rate]: work.value,
        "GB/s": sum.bytes / sum.seconds / 1e9,
        ...roofline(bench, products, sum),
        "longest kernel": [...sum.kernels].sort((a, b) => b[1] - a[1])[0][0],
      },
    });
  }
  bench.report({ name: "sum", figures: { "of step, %": 100, ms: 1e3 * total } });
}

export const profile: Part = {
  name: "profile",
  title: "one step of the model in mixed precision, all groups trained, by timestamps, operations of one name together",
  seconds: { small: 40, gpu: 40 },
  measure,
};
