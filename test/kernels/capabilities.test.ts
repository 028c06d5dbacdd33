// Which products of mixed precision an adapter is given.

import { test } from "uvu";
import * as assert from "uvu/assert";
import { type Capabilities, mixedProducts } from "../../src/kernels/capabilities.ts";
import { testDevice } from "../support/gpu.ts";

const { capabilities } = await testDevice();
const limits = { ...capabilities.limits, maxComputeWorkgroupStorageSize: 48 * 1024 };
const shape = { m: 16, n: 16, k: 16, component: "f16", result: "f32" };
const able: Capabilities = {
  ...capabilities,
  f16: true,
  subgroupMinSize: 32,
  subgroupMaxSize: 32,
  matrixShapes: [{ ...shape, k: 8 }, shape],
  limits,
};

test("matrix units are for adapters that have all that their kernels need", () => {
  assert.is(mixedProducts(able), "matrix");
  const lacking: Partial<Capabilities>[] = [
    { f16: false },
    { subgroupMinSize: 8 },
    { subgroupMaxSize: 64 },
    { matrixShapes: [{ ...shape, result: "f16" }] },
    { limits: { ...limits, maxComputeWorkgroupStorageSize: 32 * 1024 } },
  ];
  for (const without of lacking) assert.is(mixedProducts({ ...able, ...without }), "f16", JSON.stringify(without));
});

test.run();
