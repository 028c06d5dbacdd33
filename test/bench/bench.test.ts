// What the figures of the bench rest on: known values in filled buffers, and the two sides joined by name.

import { test } from "uvu";
import * as assert from "uvu/assert";
import type { PartResult } from "../../bench/bench.ts";
import { clockOf } from "../../bench/clocks.ts";
import { fillWithNoise, noiseAt } from "../../bench/noise.ts";
import { roofline } from "../../bench/part.ts";
import { figure, type Row } from "../../bench/rows.ts";
import { summaryTable } from "../../bench/summary.ts";
import { testDevice } from "../support/gpu.ts";

test("a buffer longer than the stretch of noise holds what the host says", async () => {
  const device = await testDevice();
  const count = 9_000_000;
  const noise = { start: 4_194_000, scale: 0.5, offset: 0.25 };
  const buffer = await device.createBuffer({ label: "noise", bytes: 4 * count });
  await fillWithNoise(device, buffer, noise);
  const values = new Float32Array(await device.read(buffer));
  for (let i = 0; i < count; i += 997) assert.is(values[i], noiseAt(noise, i), `element ${i}`);
  assert.is(values[count - 1], noiseAt(noise, count - 1));
  assert.is.not(values[0], values[1]);
  device.destroyBuffer(buffer);
});

const part = (side: PartResult["side"], rows: PartResult["rows"], outcome = "done"): PartResult => ({
  name: "p",
  title: "",
  side,
  outcome,
  seconds: 1,
  rows,
});

test("a row stands beside the better of its twins, and what is not whole is named", () => {
  const row = (name: string, rate: number) => ({ name, figures: { "GB/s": rate, ms: 5 }, rate: "GB/s" });
  const ours: Row[] = [row("a", 30), { ...row("b", 1), wrong: true }, { name: "c", figures: { ms: 1 } }];
  const memory = { name: "d", figures: { "GB/s": 2, "peak GiB": 3 }, rate: "GB/s" };
  ours.push({ ...memory, figures: { ...memory.figures, "peak GiB": 1.5 } });
  const slower = { ...memory, figures: { "GB/s": 1, "peak GiB": 1 } };
  const twins = [
    part("reference", [row("a", 10), memory]),
    part("reference", [row("a", 20), row("z", 1), slower], "cut off"),
  ];
  assert.equal(summaryTable([part("thaw", ours), ...twins]).split("\n"), [
    "           thaw            PyTorch  ratio",
    "p a          30      GB/s       20  1.50×",
    "p b WRONG     1      GB/s",
    "p d           2      GB/s        2  1.00×",
    "p d        1.50  peak GiB        3  0.50×",
    "p (PyTorch): cut off",
  ]);
});

test("a clock is that of the only GPU, or none is said", () => {
  assert.equal(["1980\n", "345\n1980\n", "[N/A]\n", "0\n", ""].map(clockOf), [1980, ...Array(4)]);
});

test("an operation is bound by the longer of its two times", () => {
  const bench = { scale: "gpu", ceilings: { copy: 2000, matrix: 100 } } as const;
  const of = (flops: number, bytes: number) => roofline(bench, "matrix", { flops, bytes, seconds: 2 });
  assert.equal(of(1e14, 1e12), { bound: "work", "of bound, %": 50 });
  assert.equal(of(1e13, 1e12), { bound: "bytes", "of bound, %": 25 });
  assert.equal(of(1, 4e12).bound, "bytes");
  assert.equal(roofline({ scale: "gpu", ceilings: {} }, "matrix", { flops: 1, bytes: 1, seconds: 1 }), {});
});

test("figures have three digits", () => {
  assert.equal([0.012345, 12.345, 1234.5, 7, 0.0000123].map(figure), ["0.0123", "12.3", "1235", "7", "1.2e-5"]);
});

test.run();
