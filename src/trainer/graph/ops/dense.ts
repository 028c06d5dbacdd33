// Dense operations: linear maps, embedding, RMSNorm, ReLU, dropout, residual sums.

import { dropout as dropoutKernel, residualDropout as residualDropoutKernel } from "../../../kernels/dropout.ts";
import { add as addKernel, reluGradient } from "../../../kernels/elementwise.ts";
import { embeddingForward, embeddingGradient } from "../../../kernels/embedding.ts";
import { matmul, matmulScratch } from "../../../kernels/matmul.ts";
import {
  rmsNormInputGradient,
  rmsNorm as rmsNormKernel,
  rmsNormOutput,
  rmsNormWeightGradient,
  rmsNormWeightGradientScratch,
} from "../../../kernels/rms_norm.ts";
import { elements, type Graph, halvesOf, type Tensor } from "../graph.ts";
import { weightOperand } from "./weights.ts";

/**
 * x [tokens, k] · weightᵀ, weight [n, k] as Hugging Face stores it; returns [tokens, n], after ReLU when `relu`. Written
 * into `into` when given; kept as f32 in any precision when `precise`, and multiplied in f32 when `exact`.
 */
export function linear(
  g: Graph,
  name: string,
  x: Tensor,
  weight: Tensor,
  options: { relu?: boolean; into?: Tensor; precise?: boolean; exact?: boolean } = {},
): Tensor {
  const [m, k] = x.shape;
  const n = weight.shape[0];
  const multiplied = options.exact ? weight : weightOperand(g, weight, m);
  const y = options.into ?? g.operand(name, [m, n], [x, weight], options.precise);
  const flops = 2 * m * n * k;
  const { products } = g;
  const relu = options.relu ?? false;
  if (relu) y.rectified = true;
  g.add({
    name: "linear",
    reads: [x, multiplied],
    writes: [y],
    flops,
    lower: (target) => {
      const bound = { a: x, b: multiplied, out: y };
      const dims = { m, n, k, transposeA: false, transposeB: true, relu, halves: halvesOf(bound) };
      return matmul(bound, { ...dims, products: options.exact ? "f32" : products }, target);
    },
    backward: (gradients) => {
      let dy = gradients.of(y)!;
      if (relu) dy = reluBackward(g, y, dy);
      gradients.add(x, true, (out, accumulate) => {
        const mask = reluMask(x, out);
        g.add({
          name: "linear_input_gradient",
          reads: [dy, multiplied, mask, accumulate ? out : undefined],
          writes: [out],
          flops,
          lower: (target) => {
            const bound = { a: dy, b: multiplied, out, mask };
            const dims = { m, n: k, k: n, transposeA: false, transposeB: false, accumulate, products };
            return matmul(bound, { ...dims, halves: halvesOf(bound) }, target);
          },
        });
      });
      gradients.add(weight, true, (out, accumulate) => {
        const saved = gradients.saved(x);
        const halves = halvesOf({ a: dy, b: saved, out });
        const dims = { m: n, n: k, k: m, transposeA: true, transposeB: false, accumulate, products, halves };
        const room = matmulScratch(dims, g.target);
        const scratch = room > 0 ? g.activation("linear_scratch", [room]) : undefined;
        g.add({
          name: "linear_weight_gradient",
          reads: accumulate ? [dy, saved, out] : [dy, saved],
          writes: [out],
          scratch: scratch && [scratch],
          parameter: weight.parameter,
          flops,
          lower: (target) => matmul({ a: dy, b: saved, out, scratch }, dims, target),
        });
      });
    },
  });
  return y;
}

/** What masks the gradient `out` of x in the product that writes it: x itself where a ReLU made it. */
export function reluMask(x: Tensor, out: Tensor): Tensor | undefined {
  if (!x.rectified) return undefined;
  out.maskedBy = x;
  return x;
}

/** dOut · (y > 0), y being the ReLU's output: dOut itself where whoever wrote it has masked it so. */
export function reluBackward(g: Graph, y: Tensor, dOut: Tensor): Tensor {
  if (dOut.maskedBy === y) return dOut;
  const dX = g.operand(`d_${y.name}_pre`, y.shape);
  const bound = { y, dOut, out: dX };
  g.add({
    name: "relu_gradient",
    reads: [y, dOut],
    writes: [dX],
    lower: () => reluGradient(bound, { count: elements(y.shape), halves: halvesOf(bound) }),
  });
  return dX;
}

/** Where each token id occurs, uploaded with the batch so that the gradient is an ordered sum. */
export interface TokenLookup {
  /** [tokens] u32 */
  readonly ids: Tensor;
  /** [tokens] u32: positions sorted stably by id. */
  readonly order: Tensor;
  /** [vocabulary + 1] u32: where each id's positions begin in `order`. */
  readonly rowStart: Tensor;
}

/** Rows of `table` [vocabulary, width]; returns [tokens, width]. */
export function embedding(g: Graph, name: string, table: Tensor, lookup: TokenLookup): Tensor {
  const [vocabulary, width] = table.shape;
  const tokens = elements(lookup.ids.shape);
  const out = g.activation(name, [tokens, width], [table]);
  g.add({
    name: "embedding",
    reads: [table, lookup.ids],
    writes: [out],
    lower: () => {
      const bound = { table, ids: lookup.ids, out };
      return embeddingForward(bound, { tokens, width, vocabulary, halves: halvesOf(bound) });
    },
    backward: (gradients) => {
      const dOut = gradients.of(out)!;
      gradients.add(table, true, (grad, accumulate) =>
        g.add({
          name: "embedding_weight_gradient",
          reads: [dOut, lookup.order, lookup.rowStart, ...(accumulate ? [grad] : [])],
          writes: [grad],
          parameter: table.parameter,
          lower: () =>
            embeddingGradient(
              { dOut, tokenOrder: lookup.order, rowStart: lookup.rowStart, out: grad },
              { vocabulary, width, accumulate },
            ),
        }),
      );
    },
  });
  return out;
}

/**
 * weight · x / rms(x) over the last axis (T5 layer norm: no mean, no bias); x [rows, columns], weight [columns].
 * Written into `into` when given; kept as f32 in any precision when `precise`.
 */
export function rmsNorm(
  g: Graph,
  name: string,
  x: Tensor,
  weight: Tensor,
  epsilon: number,
  { into, precise = false }: { into?: Tensor; precise?: boolean } = {},
): Tensor {
  const [rows, columns] = x.shape;
  const out = into ?? g.operand(name, x.shape, [x, weight], precise);
  const inverseRms = g.activation(`${name}_inverse_rms`, [rows]);
  const normalized = out.requiresGradient ? g.operand(`${name}_normalized`, x.shape, [], precise) : undefined;
  g.add({
    name: "rms_norm",
    reads: [x, weight],
    writes: [out, inverseRms, normalized],
    flops: 4 * rows * columns,
    lower: (target) => {
      const bound = { x, weight, out, inverseRms, normalized };
      return rmsNormKernel(bound, { rows, columns, epsilon, halves: halvesOf(bound) }, target);
    },
    backward: (gradients) => {
      const dOut = gradients.of(out)!;
      // What x has besides is the residual stream's gradient, as large as this one.
      gradients.sum(x, (dX, base) =>
        g.add({
          name: "rms_norm_input_gradient",
          reads: [normalized, weight, inverseRms, dOut, base],
          writes: [dX],
          flops: 7 * rows * columns,
          lower: (target) => {
            const bound = { normalized: normalized!, weight, inverseRms, dOut, base, dX };
            return rmsNormInputGradient(bound, { rows, columns, halves: halvesOf(bound) }, target);
          },
        }),
      );
      gradients.add(weight, false, (dWeight) => {
        const scratch = g.activation("rms_norm_scratch", [rmsNormWeightGradientScratch(rows, columns)]);
        g.add({
          name: "rms_norm_weight_gradient",
          reads: [normalized, dOut],
          writes: [dWeight],
          scratch: [scratch],
          parameter: weight.parameter,
          flops: 2 * rows * columns,
          lower: (target) => {
            const bound = { normalized: normalized!, dOut, scratch, dWeight };
            return rmsNormWeightGradient(bound, { rows, columns, halves: halvesOf(bound) }, target);
          },
        });
      });
    },
  });
  if (normalized)
    out.remake = (again) =>
      g.add({
        name: "rms_norm_output",
        reads: [normalized, weight],
        writes: [again],
        flops: rows * columns,
        lower: () => {
          const bound = { normalized, weight, out: again };
          return rmsNormOutput(bound, { rows, columns, halves: halvesOf(bound) });
        },
      });
  return out;
}

/** How an operation drops: nothing at rate 0, else by random numbers of the step, recomputed in the backward pass. */
export interface Dropout {
  readonly rate: number;
  /** The step scalars, which hold step and seed. */
  readonly step: Tensor;
}

/** x with a share of its elements zeroed and the others scaled by 1 / (1 - rate). */
export function dropout(g: Graph, x: Tensor, { rate, step }: Dropout): Tensor {
  if (rate === 0) return x;
  const count = elements(x.shape);
  const use = g.nextUse();
  const apply = (from: Tensor, out: Tensor, name: string, backward?: Parameters<Graph["add"]>[0]["backward"]) =>
    g.add({
      name,
      reads: [from, step],
      writes: [out],
      lower: () => {
        const bound = { x: from, step, out };
        return dropoutKernel(bound, { count, rate, use, halves: halvesOf(bound) });
      },
      backward,
    });
  const { requiresGradient, dtype } = x;
  const out = g.tensor({ name: `${x.name}_dropped`, shape: x.shape, role: "activation", dtype, requiresGradient });
  apply(x, out, "dropout", (gradients) =>
    gradients.add(x, false, (dX) => apply(gradients.of(out)!, dX, "dropout_gradient")),
  );
  return out;
}

/** residual + dropout(x): the end of every pre-norm sublayer. */
export function residual(g: Graph, name: string, base: Tensor, x: Tensor, { rate, step }: Dropout): Tensor {
  const out = g.activation(name, base.shape, [base, x]);
  const count = elements(base.shape);
  const use = g.nextUse();
  g.add({
    name: "residual",
    reads: [base, x, rate > 0 ? step : undefined],
    writes: [out],
    lower: () => {
      if (rate > 0) {
        const bound = { residual: base, x, step, out };
        return residualDropoutKernel(bound, { count, rate, use, halves: halvesOf(bound) });
      }
      const bound = { a: base, b: x, out };
      return addKernel(bound, { count, halves: halvesOf(bound) });
    },
    backward: (gradients) => {
      const dOut = gradients.of(out)!;
      gradients.addTensor(base, dOut, false);
      if (rate === 0) return gradients.addTensor(x, dOut, false);
      gradients.add(x, false, (dX) =>
        g.add({
          name: "dropout_gradient",
          reads: [dOut, step],
          writes: [dX],
          lower: () => {
            const bound = { x: dOut, step, out: dX };
            return dropoutKernel(bound, { count, rate, use, halves: halvesOf(bound) });
          },
        }),
      );
    },
  });
  return out;
}
