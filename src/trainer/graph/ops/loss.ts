// The vocabulary projection and its cross-entropy as one operation, so that the logits of a large batch never exist at
// once: rows are processed in chunks of bounded size. The loss is the root of every gradient, so its scale is known
// when the forward pass runs; gradients are therefore taken chunk by chunk in the forward pass, while a chunk's logits
// are at hand, and the backward pass only hands them over (as in Liger Kernel's fused linear cross-entropy).

import { crossEntropy, type LossTerms, regularizes } from "../../../kernels/cross_entropy.ts";
import type { Command } from "../../../kernels/kernel.ts";
import { type MatmulDims, matmul, matmulScratch } from "../../../kernels/matmul.ts";
import { gradientTensor } from "../autodiff.ts";
import { type Graph, halvesOf, type Tensor } from "../graph.ts";
import { weightOperand } from "./weights.ts";

/** The most bytes of logits held at a time. */
const LOGITS_CHUNK_BYTES = 64 * 2 ** 20;
/** Chunks of at least that many rows are a multiple of it, so that no tile of a product is for a few rows. */
const WHOLE_ROWS = 128;

function rowsOfChunk(rows: number, vocabulary: number): number {
  const most = Math.floor(LOGITS_CHUNK_BYTES / (4 * vocabulary));
  return Math.max(1, Math.min(rows, most < WHOLE_ROWS ? most : most - (most % WHOLE_ROWS)));
}

export interface LossRows {
  /** [rows] f32: cross-entropy of each row, 0 where the label is -100. */
  readonly rowLoss: Tensor;
  /** [rows] u32: 1 where the most probable token is the label. */
  readonly rowCorrect: Tensor;
  /** [rows, 2] f32: smoothed cross-entropy less rowLoss, squared logsumexp; only with either term on. */
  readonly rowTerms?: Tensor;
}

/**
 * Cross-entropy of softmax(alpha · hidden · weightᵀ) against `labels`, hidden [rows, width] and weight [vocabulary, width]
 * f32, labels [rows] i32 (-100 = ignored). `train` false computes no gradients. Label smoothing and the
 * vocabulary's z-loss (moe-spec section 2, t5x) enter the gradient and `rowTerms`, never `rowLoss`.
 */
export function linearCrossEntropy(
  g: Graph,
  hidden: Tensor,
  weight: Tensor,
  labels: Tensor,
  step: Tensor,
  options: { alpha: number; train: boolean } & LossTerms,
): LossRows {
  const [rows, width] = hidden.shape;
  const vocabulary = weight.shape[0];
  const { alpha, train, labelSmoothing, vocabularyZ } = options;
  const chunkRows = rowsOfChunk(rows, vocabulary);
  const rowLoss = g.activation("row_loss", [rows]);
  const rowCorrect = g.indices("row_correct", [rows]);
  const rowTerms = regularizes(options) ? g.activation("row_terms", [rows, 2]) : undefined;
  const logits = g.activation("logits_chunk", [chunkRows, vocabulary]);
  const dHidden = train && hidden.requiresGradient ? g.activation("d_decoder_output", hidden.shape) : undefined;
  const dWeight = train && weight.requiresGradient ? gradientTensor(g, weight) : undefined;
  const gradient = dHidden !== undefined || dWeight !== undefined;
  const product = 2 * rows * vocabulary * width;
  const { products } = g;
  const multiplied = weightOperand(g, weight, rows);
  // What products read of the gradient; the logits' place otherwise.
  const halves = g.operands === "f16" && vocabulary % 8 === 0;
  const dLogits =
    gradient && halves
      ? g.tensor({ name: "d_logits_chunk", shape: logits.shape, role: "activation", dtype: "f16" })
      : undefined;
  const taken = dLogits ?? logits;
  const hiddenGradient = (start: number, count: number): MatmulDims => ({
    m: count,
    n: width,
    k: vocabulary,
    transposeA: false,
    transposeB: false,
    alpha,
    outOffset: start * width,
    products,
    halves: halvesOf({ a: taken, b: multiplied }),
  });
  // A chunk's gradient has few rows and a sum over the whole vocabulary.
  const chunkSizes = [chunkRows, rows % chunkRows];
  const room = Math.max(...chunkSizes.map((count) => matmulScratch(hiddenGradient(0, count), g.target)));
  const scratch = dHidden && room > 0 ? g.activation("d_decoder_output_scratch", [room]) : undefined;

  g.add({
    name: "linear_cross_entropy",
    reads: [hidden, multiplied, labels, step],
    writes: [rowLoss, rowCorrect, rowTerms, dHidden, dWeight],
    scratch: [logits, dLogits, scratch].filter((t) => t !== undefined),
    flops: product * (1 + (dHidden ? 1 : 0) + (dWeight ? 1 : 0)),
    startsGradient: gradient,
    lower: (target) => {
      const commands: Command<Tensor>[] = [];
      for (let start = 0; start < rows; start += chunkRows) {
        const count = Math.min(chunkRows, rows - start);
        commands.push(
          ...matmul(
            { a: hidden, b: multiplied, out: logits },
            {
              m: count,
              n: vocabulary,
              k: width,
              transposeA: false,
              transposeB: true,
              alpha,
              aOffset: start * width,
              products,
              halves: halvesOf({ a: hidden, b: multiplied }),
            },
            target,
          ),
          ...crossEntropy(
            { logits, labels, rowLoss, rowCorrect, step, rowTerms, dLogits },
            { rows: count, vocabulary, rowOffset: start, gradient, labelSmoothing, vocabularyZ },
          ),
        );
        if (dHidden)
          commands.push(
            ...matmul({ a: taken, b: multiplied, out: dHidden, scratch }, hiddenGradient(start, count), target),
          );
        if (dWeight)
          commands.push(
            ...matmul(
              { a: taken, b: hidden, out: dWeight },
              {
                m: vocabulary,
                n: width,
                k: count,
                transposeA: true,
                transposeB: false,
                alpha,
                bOffset: start * width,
                accumulate: start > 0,
                products,
                halves: halvesOf({ a: taken, b: hidden }),
              },
              target,
            ),
          );
      }
      return commands;
    },
    backward: (gradients) => {
      if (dHidden) gradients.addTensor(hidden, dHidden, true);
      if (dWeight) gradients.addTensor(weight, dWeight, true);
    },
  });
  g.keep(rowLoss, rowCorrect, rowTerms);
  return { rowLoss, rowCorrect, rowTerms };
}
