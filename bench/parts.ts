// The parts of the bench in the order in which they run.

import type { Part } from "./part.ts";
import { ceilings } from "./parts/ceilings.ts";
import { curve } from "./parts/curve.ts";
import { kernels } from "./parts/kernels.ts";
import { matmul } from "./parts/matmul.ts";
import { modelF32, modelMixed } from "./parts/model.ts";
import { moe } from "./parts/moe.ts";
import { profile } from "./parts/profile.ts";
import { scalingExperts, scalingTokens } from "./parts/scaling.ts";
import { streaming } from "./parts/streaming.ts";
import { thawing } from "./parts/thawing.ts";

/** `ceilings` is the first and runs with every other. */
export const PARTS: readonly Part[] = [
  ceilings,
  matmul,
  moe,
  modelMixed,
  profile,
  streaming,
  thawing,
  kernels,
  scalingTokens,
  scalingExperts,
  curve,
  modelF32,
];
