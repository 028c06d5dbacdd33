// Where the gradient of a ReLU is made: in the product that writes it, and in a node of its own only where something else
// adds to it.

import { test } from "uvu";
import * as assert from "uvu/assert";
import { differentiate } from "../../src/trainer/graph/autodiff.ts";
import { Graph, type Tensor } from "../../src/trainer/graph/graph.ts";
import { dropout, linear, residual } from "../../src/trainer/graph/ops/dense.ts";

/** The backward pass of what `above` makes of a hidden layer. */
function backwardOf(above: (g: Graph, hidden: Tensor, weight: Tensor, step: Tensor) => Tensor): Graph {
  const g = new Graph("software");
  const parameter = (name: string): Tensor => {
    const t = g.tensor({ name, shape: [8, 8], role: "parameter", requiresGradient: true });
    g.parameters.set(name, t);
    return t;
  };
  const step = g.input("step_scalars", [8], "f32");
  const hidden = linear(g, "hidden", g.input("x", [4, 8], "f32"), parameter("in"), { relu: true });
  const out = above(g, hidden, parameter("out"), step);
  g.add({
    name: "loss",
    reads: [out],
    writes: [],
    startsGradient: true,
    lower: () => [],
    backward: (gradients) => gradients.addTensor(out, g.activation("d_out", out.shape), true),
  });
  differentiate(g);
  return g;
}

const masks = (g: Graph): number => g.nodes.filter(({ name }) => name === "relu_gradient").length;
const product = (g: Graph) => g.nodes.find(({ name }) => name === "linear_input_gradient")!;

test("a product masks what it writes", () => {
  const g = backwardOf((g, hidden, weight) => linear(g, "out", hidden, weight));
  assert.is(masks(g), 0);
  assert.ok(product(g).reads.some(({ name }) => name === "hidden"));
});

test("what comes through dropout, or is added by something else, is masked by itself", () => {
  const dropped = backwardOf((g, hidden, weight, step) =>
    linear(g, "out", dropout(g, hidden, { rate: 0.5, step }), weight),
  );
  assert.is(masks(dropped), 1);
  const added = backwardOf((g, hidden, weight, step) =>
    residual(g, "sum", hidden, linear(g, "out", hidden, weight), { rate: 0, step }),
  );
  assert.is(masks(added), 1);
});

test.run();
