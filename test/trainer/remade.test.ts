// What the backward pass keeps of a norm: not its input, and not its output, which is made anew where it is read.

import { test } from "uvu";
import * as assert from "uvu/assert";
import { differentiate } from "../../src/trainer/graph/autodiff.ts";
import { Graph, type Tensor } from "../../src/trainer/graph/graph.ts";
import { linear, rmsNorm } from "../../src/trainer/graph/ops/dense.ts";

/** Two projections of a norm, `trained` of their parameters with gradients. */
function projections(trained: readonly string[]): Graph {
  const g = new Graph("software");
  const parameter = (name: string, shape: readonly number[]): Tensor => {
    const t = g.tensor({ name, shape, role: "parameter", requiresGradient: trained.includes(name) });
    g.parameters.set(name, t);
    return t;
  };
  const x = g.activation("x", [6, 8]);
  g.add({ name: "source", reads: [], writes: [x], lower: () => [] });
  const y = rmsNorm(g, "norm", x, parameter("scale", [8]), 1e-6);
  const outputs = ["a", "b"].map((name) => linear(g, name, y, parameter(`${name}.weight`, [4, 8])));
  g.add({
    name: "loss",
    reads: outputs,
    writes: [],
    startsGradient: true,
    lower: () => [],
    backward: (gradients) => {
      for (const output of outputs) gradients.addTensor(output, g.activation(`d_${output.name}`, output.shape), true);
    },
  });
  differentiate(g);
  return g;
}

const readBackward = (g: Graph): Set<string> =>
  new Set(g.nodes.flatMap(({ phase, reads }) => (phase === "backward" ? reads.map(({ name }) => name) : [])));

test("a norm's output is made anew once for all who read it, from what the norm keeps", () => {
  const g = projections(["scale", "a.weight", "b.weight"]);
  assert.is(g.nodes.filter(({ name }) => name === "rms_norm_output").length, 1);
  const read = readBackward(g);
  assert.ok(read.has("norm_again") && read.has("norm_normalized"));
  assert.not.ok(read.has("x") || read.has("norm"));
});

test("it is not made anew for nobody", () => {
  const g = projections(["scale"]);
  assert.is(g.nodes.filter(({ name }) => name === "rms_norm_output").length, 0);
});

test("a norm that no gradient reaches keeps its output for the weights above it, and nothing else", () => {
  const g = projections(["b.weight"]);
  const read = readBackward(g);
  assert.ok(read.has("norm"));
  assert.not.ok(g.tensors.some(({ name }) => name === "norm_normalized"));
});

test.run();
