// Reverse-mode differentiation of a graph, for the parameters the freeze plan trains and for nothing else.
//
// Walks the forward nodes backwards. A node is asked for its backward part only when a gradient reaches one of its
// outputs (or it starts one, as a loss does) and one of its inputs requires a gradient. The walk therefore ends by
// itself at the lowest trainable parameter: below it nothing requires a gradient.

import { add } from "../../kernels/elementwise.ts";
import { elements, type Gradients, type Graph, halvesOf, type Tensor } from "./graph.ts";

interface Entry {
  tensor: Tensor;
  /** False when the tensor is also somebody else's gradient: it must not be added to in place. */
  owned: boolean;
}

/**
 * Appends the backward pass. Returns the gradient of every trainable parameter, by parameter name: shape of the
 * parameter, or `[slots, …]` where only some experts train. A trainable parameter that no loss depends on has gradient 0
 * and is stepped like any other.
 */
export function differentiate(graph: Graph): Map<string, Tensor> {
  const entries = new Map<Tensor, Entry>();
  const remade = new Map<Tensor, Tensor>();
  const forward = graph.nodes.slice();
  graph.phase = "backward";

  const gradients: Gradients = {
    of: (output) => entries.get(output)?.tensor,
    saved: (t) => {
      if (!t.remake) return t;
      const known = remade.get(t);
      if (known) return known;
      const again = graph.tensor({ name: `${t.name}_again`, shape: t.shape, role: "activation", dtype: t.dtype });
      t.remake(again);
      remade.set(t, again);
      return again;
    },
    add: (input, canAccumulate, emit) => {
      if (!input.requiresGradient) return;
      const entry = entries.get(input);
      if (entry?.owned && canAccumulate) return emit(entry.tensor, true);
      const out = gradientTensor(graph, input);
      emit(out, false);
      merge(input, out, true);
    },
    sum: (input, emit) => {
      if (!input.requiresGradient) return;
      const out = gradientTensor(graph, input);
      emit(out, entries.get(input)?.tensor);
      entries.set(input, { tensor: out, owned: true });
    },
    addTensor: (input, gradient, owned) => {
      if (input.requiresGradient) merge(input, gradient, owned);
    },
  };

  function merge(input: Tensor, gradient: Tensor, owned: boolean): void {
    const entry = entries.get(input);
    if (!entry) {
      entries.set(input, { tensor: gradient, owned });
      return;
    }
    const out = gradientTensor(graph, input);
    graph.add({
      name: "gradient_sum",
      reads: [entry.tensor, gradient],
      writes: [out],
      parameter: input.parameter,
      lower: () => {
        const sum = { a: entry.tensor, b: gradient, out };
        return add(sum, { count: elements(out.shape), halves: halvesOf(sum) });
      },
    });
    entries.set(input, { tensor: out, owned: true });
  }

  for (const node of forward.reverse()) {
    if (!node.backward || !node.reads.some((t) => t.requiresGradient)) continue;
    if (node.startsGradient || node.writes.some((t) => entries.has(t))) node.backward(gradients);
  }

  const result = new Map<string, Tensor>();
  for (const [name, parameter] of graph.parameters) {
    if (!parameter.requiresGradient) continue;
    const gradient = entries.get(parameter)?.tensor ?? zeroGradient(graph, parameter);
    gradient.role = "gradient";
    result.set(name, gradient);
  }
  return result;
}

function zeroGradient(graph: Graph, parameter: Tensor): Tensor {
  const out = gradientTensor(graph, parameter);
  graph.add({
    name: "zero_gradient",
    reads: [],
    writes: [out],
    parameter: parameter.parameter,
    lower: () => [{ clear: out }],
  });
  return out;
}

/**
 * A tensor for the gradient of `of`, kept as it is; compact over the trainable experts where only some train, and f32 then.
 */
export function gradientTensor(graph: Graph, of: Tensor): Tensor {
  const shape = of.slots ? [of.slots.length, ...of.shape.slice(1)] : of.shape;
  const dtype = of.role === "parameter" ? "f32" : of.dtype;
  return graph.tensor({
    name: `d_${of.name}`,
    shape,
    role: "activation",
    dtype,
    parameter: of.parameter,
    slots: of.slots,
  });
}
