// The ready configurations: their parameters are counted, and nothing is allocated. The large ones are known only here.

import { readdir, readFile } from "node:fs/promises";
import { test } from "uvu";
import * as assert from "uvu/assert";
import { elements } from "../../src/trainer/graph/graph.ts";
import { lowerGraph } from "../../src/trainer/graph/lowered.ts";
import { resolveTrainable } from "../../src/trainer/groups.ts";
import { modelOf } from "../../src/trainer/model/open.ts";

const FOLDER = new URL("../../examples/configs/", import.meta.url);
const read = async (name: string) => modelOf(JSON.parse(await readFile(new URL(`${name}.json`, FOLDER), "utf8")));

/**
 * Parameters by name; `published`: what Switch's checkpoint holds, and what the ST-MoE paper gives its models, to as many
 * digits as they are given with.
 */
const CONFIGURATIONS: Record<string, { parameters: number; expertShare: number; published?: string }> = {
  "switch-tiny": { parameters: 288_256, expertShare: 0.45 },
  "switch-mini": { parameters: 30_258_944, expertShare: 0.55 },
  "switch-base-8": { parameters: 619_339_008, expertShare: 0.73, published: "6.19e+8" },
  "st-moe-tiny": { parameters: 616_704, expertShare: 0.32 },
  "st-moe-mini": { parameters: 53_498_368, expertShare: 0.71 },
  "st-moe-mini-dense": { parameters: 15_736_576, expertShare: 0 },
  "st-moe-small": { parameters: 161_209_728, expertShare: 0.62 },
  "st-moe-base": { parameters: 1_129_025_280, expertShare: 0.8 },
  "st-moe-l": { parameters: 4_105_444_352, expertShare: 0.81, published: "4.1e+9" },
  "st-moe-32b": { parameters: 269_104_613_376, expertShare: 0.9, published: "2.69e+11" },
};

test("every configuration is known here", async () => {
  const files = (await readdir(FOLDER)).filter((f) => f.endsWith(".json")).map((f) => f.slice(0, -5));
  assert.equal(files.sort(), Object.keys(CONFIGURATIONS).sort());
});

for (const [name, expected] of Object.entries(CONFIGURATIONS))
  test(`${name}: ${(expected.parameters / 1e6).toFixed(1)} M parameters`, async () => {
    const { parameters } = await read(name);
    const count = (list: typeof parameters) => list.reduce((n, p) => n + elements(p.shape), 0);
    assert.is(count(parameters), expected.parameters);
    const share = count(parameters.filter((p) => p.kind === "expert")) / expected.parameters;
    assert.is(Number(share.toFixed(2)), expected.expertShare);
    const { published } = expected;
    const decimals = published?.match(/\.(\d+)/)?.[1].length;
    if (published) assert.is(expected.parameters.toExponential(decimals), published);
  });

const options = {
  batch: 1,
  inputLength: 16,
  targetLength: 8,
  train: true,
  dropout: 0.1,
  expertDropout: 0.1,
  routing: {
    trainCapacity: { rule: "factor", factor: 1.25 },
    evalCapacity: { rule: "factor", factor: 2 },
    group: "batch",
    routePadding: false,
    jitter: 0,
  },
  losses: { balanceCoefficient: 1e-2, zCoefficient: 1e-3 },
  lossGradient: true,
  packed: false,
  sumGradients: false,
  arenaBytes: 2 ** 27,
} as const;

for (const name of ["switch-tiny", "st-moe-tiny", "st-moe-l"])
  test(`${name}: its training step is planned, with a gradient for every parameter`, async () => {
    const model = await read(name);
    const trainable = resolveTrainable(model.parameters, { preset: "all", add: [], remove: [] });
    const sgd = { kind: "sgd", momentum: 0, weightDecay: 0 } as const;
    const lowered = lowerGraph(model.trainingGraph("software", trainable, options, sgd).graph, 256);
    assert.equal([...lowered.weightGradientDispatches.keys()].sort(), [...trainable.keys()].sort());
  });

test.run();
