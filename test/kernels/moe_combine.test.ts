import { suite } from "uvu";
import {
  moeCombine,
  moeCombineGatesGradient,
  moeCombineGradientsReference,
  moeCombineReference,
  moeCombineRowsGradient,
} from "../../src/kernels/moe_combine.ts";
import { moeDispatchReference } from "../../src/kernels/moe_dispatch.reference.ts";
import { DROPLESS, moeMaxRows } from "../../src/kernels/moe_dispatch.ts";
import { EPSILON, floatOutput, randomNumbers, uniform, withGuard } from "../support/arrays.ts";
import { compareWithTolerance } from "../support/gpu.ts";
import { runTwice } from "./run_twice.ts";

const test = suite("moe_combine");

const cases = [
  { what: "one token, one column", tokens: 1, experts: 1, topK: 1, width: 1, capacity: DROPLESS },
  { what: "top-2 dropless", tokens: 37, experts: 4, topK: 2, width: 19, capacity: DROPLESS },
  { what: "drops and masked tokens", tokens: 41, experts: 3, topK: 2, width: 65, capacity: 6, masked: 0.3 },
  { what: "rows of vec4f", tokens: 11, experts: 3, topK: 2, width: 20, capacity: DROPLESS },
  { what: "every token masked", tokens: 5, experts: 3, topK: 2, width: 7, capacity: DROPLESS, masked: 1 },
  { what: "top-5, an expert without tokens", tokens: 9, experts: 7, topK: 5, width: 3, capacity: DROPLESS, idle: 1 },
];

for (const { what, masked = 0, idle = 0, ...given } of cases) {
  test(`sum and gradients agree with float64: ${what}`, async () => {
    const { tokens, experts, topK, width } = given;
    const random = randomNumbers(tokens * 100 + width);
    const expertIds = new Uint32Array(tokens * topK).fill(experts);
    for (let t = 0; t < tokens; t++) {
      if (random() < masked) continue;
      const start = Math.floor(random() * (experts - idle));
      for (let j = 0; j < topK; j++) expertIds[t * topK + j] = (start + j) % (experts - idle);
    }
    const dispatchDims = { ...given, tokensPerGroup: tokens, rowTile: 4 };
    const maxRows = moeMaxRows(dispatchDims);
    const { rowOfAssignment, sourceOfRow } = moeDispatchReference(expertIds, { ...dispatchDims, maxRows });
    // Padding rows hold NaN: whatever a matmul leaves there must not reach a token.
    const rows = uniform(maxRows * width, 1, random).map((x, i) =>
      sourceOfRow[Math.floor(i / width)] === 0xffffffff ? Number.NaN : x,
    );
    const gates = uniform(tokens * topK, 1, random);
    const dOut = uniform(tokens * width, 1, random);
    const out = await runTwice({
      buffers: {
        rows,
        gates,
        dOut,
        rowOfAssignment,
        sourceOfRow,
        gated: floatOutput(tokens * width),
        plain: floatOutput(tokens * width),
        dRows: floatOutput(maxRows * width),
        dGates: floatOutput(tokens * topK),
      },
      commands: (b) => [
        ...moeCombine({ rows: b.rows, gates: b.gates, rowOfAssignment: b.rowOfAssignment, out: b.gated }, given),
        ...moeCombine({ rows: b.rows, rowOfAssignment: b.rowOfAssignment, out: b.plain }, given),
        ...moeCombineRowsGradient(b, { ...given, maxRows }),
        ...moeCombineGatesGradient(b, given),
      ],
    });
    const gradients = moeCombineGradientsReference(dOut, rows, gates, rowOfAssignment, { ...given, maxRows });
    // Sums of `terms` products of numbers below 1, each addition rounding a partial sum below `terms`.
    const check = (name: "gated" | "plain" | "dRows" | "dGates", expected: Float64Array, terms: number) => {
      const tolerance = (i: number) => (i < expected.length && expected[i] !== 0 ? (terms + 1) * terms * EPSILON : 0);
      compareWithTolerance(out[name], withGuard(expected, out[name]), tolerance, name);
    };
    check("gated", moeCombineReference(rows, gates, rowOfAssignment, given), topK);
    check("plain", moeCombineReference(rows, undefined, rowOfAssignment, given), topK);
    check("dRows", gradients.dRows, 1);
    check("dGates", gradients.dGates, width);
  });
}

test.run();
