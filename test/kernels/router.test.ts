import { suite } from "uvu";
import * as assert from "uvu/assert";
import {
  type RouterForward,
  routerBackwardReference,
  routerForwardReference,
  routerLossesReference,
  routerStatisticsReference,
} from "../../src/kernels/router.reference.ts";
import {
  CHOOSES_FREELY,
  routerBackward,
  routerForward,
  routerLosses,
  routerStatistics,
  routerStatisticsScratch,
} from "../../src/kernels/router.ts";
import { packStepScalars } from "../../src/kernels/step_scalars.ts";
import { groupCount } from "../../src/kernels/token_groups.ts";
import { EPSILON, floatOutput, integerOutput, randomNumbers, uniform, withGuard } from "../support/arrays.ts";
import { compareWithTolerance, relativeError, runCommands, testDevice } from "../support/gpu.ts";
import { readRoutingFixture, TOKEN_CHOICE_FIXTURES } from "../support/routing_fixture.ts";

const test = suite("router");

interface Dims {
  tokens: number;
  tokensPerGroup: number;
  experts: number;
  topK: number;
  normalizeGates?: boolean;
  countAll?: boolean;
  denominator?: "routable" | "all";
}

const LOSS_SCALE = 8;
const stepScalars = new Float32Array(
  packStepScalars({ step: 3, seed: 1, lossScale: LOSS_SCALE, inverseTargetCount: 1, maxGradientNorm: 0 }).buffer,
);

/** Forward, statistics, losses and backward on the device, in one program, dGates left out when undefined. */
async function runRouter(
  logits: Float32Array,
  mask: Uint32Array,
  dGates: Float32Array | undefined,
  dims: Required<Dims>,
  coefficients: { balanceCoefficient: number; zCoefficient: number },
) {
  const { tokens, experts, topK } = dims;
  const groups = groupCount(dims);
  const buffers = {
    logits,
    mask,
    dGates: dGates ?? new Float32Array(1),
    step: stepScalars,
    probabilities: floatOutput(tokens * experts),
    expertIds: integerOutput(tokens * topK),
    gates: floatOutput(tokens * topK),
    logSumExp: floatOutput(tokens),
    scratch: floatOutput(routerStatisticsScratch(dims)),
    load: floatOutput(groups * experts),
    meanProbability: floatOutput(groups * experts),
    groupTokens: floatOutput(groups),
    zSum: floatOutput(groups),
    out: floatOutput(3),
    dLogits: floatOutput(tokens * experts),
  };
  return runCommands(await testDevice(), {
    buffers,
    commands: (b) => [
      ...routerForward(b, dims),
      ...routerStatistics(b, dims),
      ...routerLosses(b, { groups, experts, outOffset: 1 }),
      ...routerBackward({ ...b, dGates: dGates && b.dGates }, { ...dims, ...coefficients }),
    ],
  });
}

const cases: (Dims & { what: string; masked?: number; gates?: boolean })[] = [
  { what: "one token, one expert", tokens: 1, tokensPerGroup: 1, experts: 1, topK: 1 },
  { what: "one expert, normalised", tokens: 5, tokensPerGroup: 5, experts: 1, topK: 1, normalizeGates: true },
  { what: "top-2, odd sizes", tokens: 201, tokensPerGroup: 67, experts: 5, topK: 2, masked: 0.3 },
  {
    what: "top-2 normalised",
    tokens: 260,
    tokensPerGroup: 130,
    experts: 9,
    topK: 2,
    normalizeGates: true,
    masked: 0.2,
  },
  { what: "all choices count", tokens: 66, tokensPerGroup: 33, experts: 8, topK: 3, countAll: true },
  { what: "a shorter last group", tokens: 181, tokensPerGroup: 67, experts: 5, topK: 2, masked: 0.3 },
  {
    what: "all tokens in the mean, a last group of one",
    tokens: 141,
    tokensPerGroup: 70,
    experts: 6,
    topK: 2,
    denominator: "all",
    masked: 0.5,
  },
  { what: "losses alone", tokens: 64, tokensPerGroup: 16, experts: 7, topK: 2, masked: 0.1, gates: false },
  { what: "every token masked", tokens: 6, tokensPerGroup: 3, experts: 4, topK: 1, masked: 1 },
  {
    what: "top-16 of 1024",
    tokens: 3,
    tokensPerGroup: 3,
    experts: 1024,
    topK: 16,
    normalizeGates: true,
    countAll: true,
  },
];

for (const { what, masked = 0, gates: gated = true, ...given } of cases) {
  test(`forward, statistics, losses and backward agree with float64: ${what}`, async () => {
    const dims = { normalizeGates: false, countAll: false, denominator: "routable" as const, ...given };
    const { tokens, tokensPerGroup, experts, topK } = dims;
    const groups = groupCount(dims);
    const random = randomNumbers(experts * 7 + tokens);
    const range = 8; // logits lie in (-4, 4)
    const logits = uniform(tokens * experts, range / 2, random);
    const mask = Uint32Array.from({ length: tokens }, () => Number(random() >= masked));
    const dGates = gated ? uniform(tokens * topK, 1, random) : undefined;
    const coefficients = { balanceCoefficient: 0.5, zCoefficient: 0.25 };
    const out = await runRouter(logits, mask, dGates, dims, coefficients);

    const forward = routerForwardReference(logits, mask, dims);
    const statistics = routerStatisticsReference(forward, mask, dims);
    const losses = routerLossesReference(statistics, { groups, experts });
    const settings = { ...dims, ...coefficients, lossScale: LOSS_SCALE };
    const dLogits = routerBackwardReference(forward, statistics, mask, dGates, settings);

    assert.equal(Array.from(out.expertIds), withGuard(forward.expertIds, out.expertIds), "expertIds");
    // exp is good to 3 + 2|x| units of 2 EPSILON, its argument to range · EPSILON, and `experts` of them are summed.
    const relative = EPSILON * (2 * (3 + 2 * range) + range + experts + 5);
    const check = (name: keyof typeof out, expected: ArrayLike<number>, tolerance: (x: number) => number) => {
      const guarded = withGuard(expected, out[name] as Float32Array);
      const toleranceOf = (i: number) => (i < expected.length ? tolerance(Math.abs(guarded[i])) : 0);
      compareWithTolerance(out[name], guarded, toleranceOf, name);
    };
    check("probabilities", forward.probabilities, (p) => 2 * relative * p);
    check("gates", forward.gates, (p) => (4 * relative + topK * EPSILON) * p);
    // log: 3 units, or 2^-21 near 1.
    const lse = relative + 2 ** -21 + 8 * EPSILON * (range / 2 + Math.log(experts));
    check("logSumExp", forward.logSumExp, () => lse);
    check("groupTokens", statistics.groupTokens, () => 0);
    check("load", statistics.load, (f) => 6 * EPSILON * f); // exact counts, a reciprocal and a product
    const sums = (64 + Math.ceil(tokensPerGroup / 64) + 8) * EPSILON; // two stages of additions of equal sign
    check("meanProbability", statistics.meanProbability, (p) => (2 * relative + sums) * p);
    const z = Math.max(...statistics.zSum);
    const zTolerance = sums * z + 2 * Math.sqrt(z) * lse + lse * lse;
    check("zSum", statistics.zSum, () => zTolerance);
    // 64 lanes of groups · experts / 64 additions, then 64 more.
    const lanes = ((groups * experts) / 64 + 64 + 8) * EPSILON;
    const balanceTolerance = (2 * relative + sums + lanes) * losses[0];
    const outputs = [out.out[0], ...losses];
    compareWithTolerance(
      out.out,
      withGuard(outputs, out.out),
      (i) => [0, balanceTolerance, zTolerance + lanes * losses[1]][i] ?? 0,
      "losses",
    );
    // Every term of dLogits is a product of a probability (twice for the mean) with dp; a mean is `experts` additions.
    const terms = (6 * relative + (experts + topK + 16) * EPSILON) * 2;
    compareWithTolerance(
      out.dLogits,
      withGuard(dLogits, out.dLogits),
      (i) => {
        const t = Math.floor(i / experts);
        if (t >= tokens || !mask[t]) return 0;
        const g = Math.floor(t / tokensPerGroup);
        const share = LOSS_SCALE / (statistics.groupTokens[g] * groups);
        const load = Math.max(...statistics.load.subarray(g * experts, (g + 1) * experts));
        const chosen = forward.expertIds.subarray(t * topK, (t + 1) * topK);
        const sum = dims.normalizeGates ? chosen.reduce((s, e) => s + forward.probabilities[t * experts + e], 0) : 1;
        const dp = 0.5 * share * experts * load + (gated ? 2 / sum : 0);
        const zTerm = 0.25 * share * 2 * (Math.abs(forward.logSumExp[t]) + lse / terms);
        return terms * forward.probabilities[t * experts + (i % experts)] * (dp + zTerm);
      },
      "dLogits",
    );

    const again = await runRouter(logits, mask, dGates, dims, coefficients);
    for (const name of Object.keys(out) as (keyof typeof out)[]) assert.equal(again[name], out[name], `${name} again`);
  });
}

test("equal logits go to the lower expert id, close ones to the larger", async () => {
  const close = Math.fround(1 + 2 ** -23);
  const logits = new Float32Array([
    ...[0, 0, 0, 0],
    ...[1, 2, 2, 1],
    ...[-3, -1, -1, -1],
    ...[1, close, 1, close], // their probabilities can round to one value
    ...[-200, 0, -201, -199], // all but one probability underflow
  ]);
  const expected = [0, 1, 2, 1, 2, 0, 1, 2, 3, 1, 3, 0, 1, 3, 0];
  const dims = { tokens: 5, experts: 4, topK: 3, normalizeGates: false };
  const out = await runCommands(await testDevice(), {
    buffers: {
      logits,
      mask: new Uint32Array(5).fill(1),
      probabilities: floatOutput(20),
      expertIds: integerOutput(15),
      gates: floatOutput(15),
      logSumExp: floatOutput(5),
    },
    commands: (b) => routerForward(b, dims),
  });
  assert.equal(Array.from(out.expertIds.subarray(0, 15)), expected);
});

for (const name of TOKEN_CHOICE_FIXTURES) {
  test(`losses and gradients are flaxformer's: ${name}`, async () => {
    const fixture = await readRoutingFixture(name);
    const { groups, tokensPerGroup, experts, topK, mask, tensor } = fixture;
    const tokens = groups * tokensPerGroup;
    const logits = tensor("router_logits") as Float32Array;
    const dims = { tokens, tokensPerGroup, experts, topK, normalizeGates: false, countAll: true } as const;
    const run = (balanceCoefficient: number, zCoefficient: number, dGates?: Float32Array) =>
      runRouter(logits, mask, dGates, { ...dims, denominator: "all" }, { balanceCoefficient, zCoefficient });
    const onlyOf = async (out: Promise<{ dLogits: Float32Array }>, scale: number) =>
      (await out).dLogits.subarray(0, logits.length).map((d) => d / scale);

    const { out } = await run(0, 0);
    assert.ok(relativeError([out[1]], tensor("aux_loss")) < 1e-6, "aux_loss");
    assert.ok(relativeError([out[2]], tensor("z_loss")) < 1e-6, "z_loss");
    assert.ok(relativeError(await onlyOf(run(1, 0), LOSS_SCALE), tensor("grad_aux")) < 5e-6, "grad_aux");
    assert.ok(relativeError(await onlyOf(run(0, 1), LOSS_SCALE), tensor("grad_z")) < 5e-6, "grad_z");

    // combine_array holds the gate at every kept slot: its gradient reaches the gate of that assignment.
    const forward: RouterForward = routerForwardReference(logits, mask, dims);
    const probe = tensor("combine_probe");
    const kept = tensor("dispatch_mask");
    const dGates = Float32Array.from(forward.expertIds, (e, a) => {
      if (e === experts) return 0;
      const at = (Math.floor(a / topK) * experts + e) * fixture.capacity;
      let sum = 0;
      for (let slot = at; slot < at + fixture.capacity; slot++) sum += kept[slot] * probe[slot];
      return sum;
    });
    assert.ok(relativeError(await onlyOf(run(0, 0, dGates), 1), tensor("grad_combine_probe")) < 5e-6, "probe");
  });
}

for (const normalizeGates of [false, true])
  test(`tokens take the experts they are told, by their own gates${normalizeGates ? ", normalised" : ""}`, async () => {
    const dims = { tokens: 131, experts: 6, topK: 2, normalizeGates };
    const logits = uniform(dims.tokens * dims.experts, 2, randomNumbers(7));
    const mask = Uint32Array.from({ length: dims.tokens }, (_, t) => Number(t % 5 !== 0));
    const free = routerForwardReference(logits, mask, dims);
    // Every third token is told: the experts next to those it would choose.
    const told = (t: number): boolean => t % 3 === 0;
    const forcedIds = Uint32Array.from(free.expertIds, (id, a) =>
      told(Math.floor(a / dims.topK)) ? (id + 1) % dims.experts : CHOOSES_FREELY,
    );
    const out = await runCommands(await testDevice(), {
      buffers: {
        logits,
        mask,
        forcedIds,
        probabilities: floatOutput(dims.tokens * dims.experts),
        expertIds: integerOutput(dims.tokens * dims.topK),
        gates: floatOutput(dims.tokens * dims.topK),
        logSumExp: floatOutput(dims.tokens),
      },
      commands: (b) => routerForward(b, dims),
    });
    const ids = free.expertIds.map((id, a) => {
      const t = Math.floor(a / dims.topK);
      return told(t) && mask[t] ? forcedIds[a] : id;
    });
    assert.equal(Array.from(out.expertIds), withGuard(ids, out.expertIds));
    const own = Array.from(ids, (id, a) => {
      return id < dims.experts ? free.probabilities[Math.floor(a / dims.topK) * dims.experts + id] : 0;
    });
    const gates = own.map((p, a) => (normalizeGates && p > 0 ? p / (p + own[a ^ 1]) : p));
    // As above, of logits in (-2, 2).
    const relative = EPSILON * (2 * (3 + 2 * 4) + 4 + dims.experts + 5);
    const guarded = withGuard(gates, out.gates);
    const tolerance = (a: number) => (a < gates.length ? (4 * relative + dims.topK * EPSILON) * guarded[a] : 0);
    compareWithTolerance(out.gates, guarded, tolerance, "gates");
  });

test.run();
