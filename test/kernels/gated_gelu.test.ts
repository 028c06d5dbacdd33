import { test } from "uvu";
import {
  gatedGelu,
  gatedGeluGateGradient,
  gatedGeluReference,
  gatedGeluUpGradient,
} from "../../src/kernels/gated_gelu.ts";
import { compareWithTolerance } from "../support/gpu.ts";
import { randomValues, runTwice, unwritten } from "./run_twice.ts";

const ULP = 2 ** -23;

for (const count of [1, 63, 64, 1025])
  test(`GEGLU and its gradients agree with float64: ${count} elements`, async () => {
    // Gates in [-6, 6), and where they are large, so that the sigmoid is 0 or 1.
    const gate = randomValues(count, 1).map((x, i) => (i % 9 === 8 ? 1000 * x : 6 * x));
    const up = randomValues(count, 2).map((x) => 3 * x);
    const dOut = randomValues(count, 3);
    const output = () => unwritten(count);
    const got = await runTwice({
      buffers: { gate, up, dOut, out: output(), dGate: output(), dUp: output() },
      commands: (b) => [
        ...gatedGelu({ gate: b.gate, up: b.up, out: b.out }, { count }),
        ...gatedGeluGateGradient({ gate: b.gate, up: b.up, dOut: b.dOut, out: b.dGate }, { count }),
        ...gatedGeluUpGradient({ gate: b.gate, dOut: b.dOut, out: b.dUp }, { count }),
      ],
    });
    const expected = Array.from(gate, (x, i) => gatedGeluReference(x, up[i], dOut[i]));
    // Of the sigmoid, relative: exp's argument z = -2u carries 6 roundings, so |z| · 6 units, and exp itself 3 + 2|z|; a
    // sum and a quotient add 4. Its complement 1 - s has the same absolute error. Beyond |z| = 80 both sides are at
    // most e^-80 from 0 or 1.
    const sigmoid = (x: number) => {
      const z = Math.min(80, Math.abs(1.6 * x * (1 + 0.045 * x * x)));
      return ULP * (8 * z + 7);
    };
    const bend = (x: number) => 1 + Math.abs(1.6 * x * (1 + 0.135 * x * x));
    for (const name of ["out", "dGate", "dUp"] as const)
      compareWithTolerance(
        got[name],
        [...expected.map((e) => e[name]), ...unwritten(0)],
        (i) => {
          if (i >= count) return 0;
          const factor = Math.abs(name === "out" ? up[i] : name === "dUp" ? dOut[i] : up[i] * dOut[i]);
          const s = expected[i].dUp / dOut[i] / gate[i];
          // s + s(1 - s)·bend: every term is at most s·bend, with the error of s in two factors and 8 more roundings.
          const size = name === "dGate" ? s * bend(gate[i]) : Math.abs(gate[i]) * s;
          return factor * size * (2 * sigmoid(gate[i]) + 8 * ULP) + 1e-25;
        },
        name,
      );
  });

test.run();
