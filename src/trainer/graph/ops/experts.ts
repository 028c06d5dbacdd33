// The experts of a sparse layer: grouped matmuls over the sorted rows, and the sum that gives each token its output. The
// grouped matmuls over-dispatch a constant bound of row blocks that return early.

import { groupedMatmul, groupedWeightGradient } from "../../../kernels/grouped_matmul.ts";
import { moeCombine, moeCombineGatesGradient, moeCombineRowsGradient } from "../../../kernels/moe_combine.ts";
import { type Graph, halvesOf, type Tensor, trainableSlots } from "../graph.ts";
import { reluBackward, reluMask } from "./dense.ts";
import type { Routing } from "./routing.ts";
import { weightOperand } from "./weights.ts";

/**
 * One linear map per expert over sorted rows: weight [experts, n, k]. `gather` reads x [tokens, k] through the routing;
 * otherwise x is [maxRows, k]. Returns [maxRows, n], after ReLU when `relu`; kept as f32 in any precision when `precise`.
 */
export function expertLinear(
  g: Graph,
  name: string,
  x: Tensor,
  weight: Tensor,
  r: Routing,
  options: { gather: boolean; relu: boolean; precise?: boolean },
): Tensor {
  const [, n, k] = weight.shape;
  const { maxRows, rowTile, topK, expertOfBlock, expertOffset, expertCount } = r;
  const tokens = r.expertIds.shape[0];
  const gatherTopK = options.gather ? topK : undefined;
  const sourceOfRow = options.gather ? r.sourceOfRow : undefined;
  const out = g.operand(name, [maxRows, n], [x, weight], options.precise);
  if (options.relu) out.rectified = true;
  const flops = 2 * r.assignments * n * k;
  const { products } = g;
  const multiplied = weightOperand(g, weight, maxRows / r.experts);
  g.add({
    name: "expert_linear",
    reads: [x, multiplied, expertOfBlock, sourceOfRow],
    writes: [out],
    flops,
    lower: (target) => {
      const bound = { x, weight: multiplied, out, expertOfBlock, sourceOfRow };
      const dims = { maxRows, rowTile, n, k, transposeWeight: true, gatherTopK, relu: options.relu, products };
      return groupedMatmul(bound, { ...dims, halves: halvesOf(bound) }, target);
    },
    backward: (gradients) => {
      let dy = gradients.of(out)!;
      if (options.relu) dy = reluBackward(g, out, dy);
      gradients.add(x, false, (dX) => {
        const rows = options.gather ? g.operand(`d_${name}_rows`, [maxRows, k]) : dX;
        const mask = options.gather ? undefined : reluMask(x, rows);
        g.add({
          name: "expert_input_gradient",
          reads: [dy, multiplied, expertOfBlock, mask],
          writes: [rows],
          flops,
          lower: (target) => {
            const bound = { x: dy, weight: multiplied, out: rows, expertOfBlock, mask };
            const dims = { maxRows, rowTile, n: k, k: n, transposeWeight: false, products };
            return groupedMatmul(bound, { ...dims, halves: halvesOf(bound) }, target);
          },
        });
        if (options.gather)
          g.add({
            name: "moe_gather_gradient",
            reads: [rows, r.rowOfAssignment],
            writes: [dX],
            flops: r.assignments * k,
            lower: () => {
              const bound = { rows, rowOfAssignment: r.rowOfAssignment, out: dX };
              return moeCombine(bound, { tokens, topK, width: k, halves: halvesOf(bound) });
            },
          });
      });
      gradients.add(weight, false, (dWeight) => {
        const saved = gradients.saved(x);
        const slots = trainableSlots(weight);
        const trainableExperts = g.constant("trainable_experts", Uint32Array.from(slots));
        g.add({
          name: "expert_weight_gradient",
          reads: [saved, dy, expertOffset, expertCount, trainableExperts, sourceOfRow],
          writes: [dWeight],
          parameter: weight.parameter,
          flops: (flops * slots.length) / r.experts,
          lower: (target) => {
            const bound = { x: saved, dy, out: dWeight, expertOffset, expertCount, trainableExperts, sourceOfRow };
            const dims = { slots: slots.length, n, k, gatherTopK, products };
            return groupedWeightGradient(bound, { ...dims, halves: halvesOf(bound) }, target);
          },
        });
      });
    },
  });
  return out;
}

/** Each token's gate-weighted sum of its experts' rows; a dropped choice contributes exactly 0. */
export function combine(g: Graph, name: string, rows: Tensor, r: Routing): Tensor {
  const width = rows.shape[1];
  const { gates, rowOfAssignment, sourceOfRow, topK, maxRows } = r;
  const tokens = r.expertIds.shape[0];
  const out = g.activation(name, [tokens, width], [rows, gates]);
  g.add({
    name: "moe_combine",
    reads: [rows, gates, rowOfAssignment],
    writes: [out],
    flops: 2 * r.assignments * width,
    lower: () => {
      const bound = { rows, gates, rowOfAssignment, out };
      return moeCombine(bound, { tokens, topK, width, halves: halvesOf(bound) });
    },
    backward: (gradients) => {
      const dOut = gradients.of(out)!;
      gradients.add(gates, false, (dGates) =>
        g.add({
          name: "moe_combine_gates_gradient",
          reads: [dOut, rows, rowOfAssignment],
          writes: [dGates],
          flops: 2 * r.assignments * width,
          lower: () => {
            const bound = { dOut, rows, rowOfAssignment, dGates };
            return moeCombineGatesGradient(bound, { tokens, topK, width, halves: halvesOf(bound) });
          },
        }),
      );
      if (rows.requiresGradient) {
        // For products, whatever the rows are kept as.
        const dRows = g.operand(`d_${rows.name}`, rows.shape);
        g.add({
          name: "moe_combine_rows_gradient",
          reads: [dOut, gates, sourceOfRow],
          writes: [dRows],
          flops: maxRows * width,
          lower: () => {
            const bound = { dOut, gates, sourceOfRow, dRows };
            return moeCombineRowsGradient(bound, { maxRows, topK, width, halves: halvesOf(bound) });
          },
        });
        gradients.addTensor(rows, dRows, true);
      }
    },
  });
  return out;
}
