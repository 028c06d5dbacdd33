// Cross-entropy over a chunk of vocabulary rows, and greedy decoding's argmax.
//
// The caller never holds the logits of a whole batch: it computes a chunk of rows, calls `crossEntropy`, and uses the
// gradient, which takes the logits' place or is kept as f16 for products, before the next chunk. One workgroup per row: lanes stride over the
// vocabulary, their partial results are put together in lane order.
//
// Two terms can be added to what the gradient is taken of (t5x's label smoothing and z_loss). Neither changes rowLoss:
// they are reported beside it, and cost nothing while both are off.

import {
  type Command,
  call,
  defineKernel,
  type Kernel,
  kernelCache,
  LINEAR_INDEX,
  read,
  spread,
  write,
} from "./kernel.ts";
import { STEP_SCALARS } from "./step_scalars.ts";
import { floats, type Value, valuesOf } from "./storage.ts";

/** The label of a position that does not count (Hugging Face's convention). */
export const IGNORED_LABEL = -100;

const LANES = 64;

/** WGSL of each number in `value`, a {@link Value}: `text(number, its place)`. */
const eachNumber = (type: Value, value: string, text: (number: string, place: number) => string): string =>
  type === "f32" ? text(value, 0) : ["x", "y", "z", "w"].map((c, i) => text(`${value}.${c}`, i)).join("\n    ");

const widthOf = (type: Value): number => (type === "f32" ? 1 : 4);

// The largest logit of a row and its lowest index, known to every lane afterwards; `first` counts values.
const rowArgmax = (type: Value): string => /* wgsl */ `${LINEAR_INDEX}
const LANES = ${LANES}u;
alias Value = ${type};
var<workgroup> lane_value: array<f32, LANES>;
var<workgroup> lane_index: array<u32, LANES>;

fn row_argmax(first: u32, lane: u32) {
  var best = -3.4e38;
  var best_index = params.vocabulary; // no index yet
  for (var v = lane; v < params.vocabulary / ${widthOf(type)}; v += LANES) {
    let value = load_logits(first + v);
    ${eachNumber(
      type,
      "value",
      (x, i) =>
        `if (best_index == params.vocabulary || ${x} > best) { best = ${x}; best_index = v * ${widthOf(type)} + ${i}; }`,
    )}
  }
  lane_value[lane] = best;
  lane_index[lane] = best_index;
  workgroupBarrier();
  if (lane == 0u) {
    for (var other = 1u; other < min(LANES, params.vocabulary / ${widthOf(type)}); other++) {
      let x = lane_value[other];
      if (x > best || (x == best && lane_index[other] < best_index)) {
        best = x;
        best_index = lane_index[other];
      }
    }
    lane_value[0] = best;
    lane_index[0] = best_index;
  }
  workgroupBarrier();
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lane: u32) {
  let row = linear_index(wid, num);
  if (row >= params.rows) { return; }
  let values = params.vocabulary / ${widthOf(type)};
  let first = row * values;
  row_argmax(first, lane);
`;

/** Where the gradient goes: nowhere, into the place of the logits, or as f16 into a buffer of its own. */
type Gradient = "none" | "in_place" | "f16";

interface Variant {
  readonly type: Value;
  readonly gradient: Gradient;
  /** Label smoothing or the z-loss is on. */
  readonly regularized: boolean;
}

const cached = kernelCache<Kernel>();

function crossEntropyKernel({ type, gradient, regularized }: Variant): Kernel {
  const name = `cross_entropy${gradient === "none" ? "" : "_gradient"}${gradient === "f16" ? "_f16" : ""}${regularized ? "_regularized" : ""}_${type}`;
  return cached(name, () => {
    const own = gradient === "f16";
    const stored = floats<string>(
      type,
      { logits: gradient === "in_place" ? "write" : "read", ...(own ? { d_logits: "write" } : {}) },
      own ? ["d_logits"] : [],
    );
    const total = (value: string): string => (type === "f32" ? value : `dot(${value}, vec4f(1))`);
    const places = type === "f32" ? "v" : "vec4u(4 * v) + vec4u(0, 1, 2, 3)";
    return defineKernel<string, string>({
      name,
      params: {
        rows: "u32",
        vocabulary: "u32",
        row_offset: "u32",
        ...(regularized ? { label_smoothing: "f32", vocabulary_z: "f32" } : {}),
      },
      buffers: {
        ...stored.buffers, // [rows, vocabulary]
        labels: read("i32"),
        row_loss: write("f32"),
        row_correct: write("u32"),
        ...(regularized ? { row_terms: write("vec2f") } : {}),
        ...(gradient === "none" ? {} : { step: { access: "read", type: "StepScalars" } }),
      },
      wgsl: /* wgsl */ `${gradient === "none" ? "" : STEP_SCALARS}${stored.functions}
var<workgroup> lane_sum: array<f32, LANES>;
${regularized ? "var<workgroup> lane_distance: array<f32, LANES>;" : ""}
${rowArgmax(type)}
  let largest = lane_value[0];
  let predicted = lane_index[0];
  let label = labels[params.row_offset + row];
  let counts = label != ${IGNORED_LABEL};

  // Sum of exp(logit - largest)${regularized ? ", and of largest - logit" : ""}.
  var sums = Value();
  ${regularized ? "var distances = Value();" : ""}
  for (var v = lane; v < values; v += LANES) {
    let below = load_logits(first + v) - Value(largest);
    sums += exp(below);
    ${regularized ? "distances -= below;" : ""}
  }
  var sum = ${total("sums")};
  lane_sum[lane] = sum;
  ${regularized ? `var distance = ${total("distances")};\n  lane_distance[lane] = distance;` : ""}
  workgroupBarrier();
  if (lane == 0u) {
    for (var other = 1u; other < LANES; other++) { sum += lane_sum[other]; }
    lane_sum[0] = sum;
    let at_target = select(0u, u32(label), counts);
    let label_logit = load_logits(first + at_target / ${widthOf(type)})${type === "f32" ? "" : "[at_target % 4]"};
    row_loss[params.row_offset + row] = select(0.0, largest - label_logit + log(sum), counts);
    row_correct[params.row_offset + row] = u32(counts && u32(label) == predicted);
${
  regularized
    ? /* wgsl */ `
    for (var other = 1u; other < LANES; other++) { distance += lane_distance[other]; }
    let log_sum_exp = largest + log(sum);
    // Smoothed cross-entropy less the plain one: epsilon · (logit of the label - mean logit).
    let surplus = params.label_smoothing * (distance / f32(params.vocabulary) - (largest - label_logit));
    row_terms[params.row_offset + row] = select(vec2f(), vec2f(surplus, log_sum_exp * log_sum_exp), counts);`
    : ""
}
  }
${
  gradient === "none"
    ? ""
    : /* wgsl */ `
  storageBarrier(); // lane 0 has read the label's logit before any lane overwrites it
  workgroupBarrier();
  let scale = select(0.0, step.inverse_target_count * step.loss_scale, counts);
  let inverse_sum = 1.0 / lane_sum[0];
${
  regularized
    ? /* wgsl */ `
  let softmax_factor = 1.0 + 2.0 * params.vocabulary_z * (largest + log(lane_sum[0]));
  let elsewhere = params.label_smoothing / f32(params.vocabulary);
  let at_label = elsewhere + (1.0 - params.label_smoothing);`
    : ""
}
  for (var v = lane; v < values; v += LANES) {
    let target_value = select(${regularized ? "Value(elsewhere), Value(at_label)" : "Value(0.0), Value(1.0)"}, ${places} == ${type === "f32" ? "u32(label)" : "vec4u(u32(label))"});
    let softmax = exp(load_logits(first + v) - Value(largest)) * inverse_sum;
    store_${own ? "d_logits" : "logits"}(first + v, (softmax${regularized ? " * softmax_factor" : ""} - target_value) * scale);
  }`
}
}
`,
    });
  });
}

/** Terms beside the cross-entropy; both 0 by default. */
export interface LossTerms {
  /** Probability mass ε of the target spread evenly over the vocabulary, in [0, 1). */
  readonly labelSmoothing?: number;
  /** Coefficient of the squared logsumexp of each row's logits. */
  readonly vocabularyZ?: number;
}

/** Whether any of the terms is on. */
export const regularizes = ({ labelSmoothing = 0, vocabularyZ = 0 }: LossTerms): boolean =>
  labelSmoothing > 0 || vocabularyZ > 0;

/**
 * rowLoss = logsumexp(logits) − logits[label] and rowCorrect (u32) = 1 where the largest logit, ties to the lower id,
 * is the label; both 0 where the label is -100. logits [rows, vocabulary] f32 is the chunk of rows that starts at
 * `rowOffset` in labels (i32, otherwise in [0, vocabulary)), rowLoss and rowCorrect. With `gradient`, logits become
 * (softmax − onehot) · inverse_target_count · loss_scale, 0 where ignored; both factors come from the step scalars. Given
 * dLogits, f16 and shaped like logits, with a vocabulary that is a multiple of 4, the gradient goes there.
 *
 * With label smoothing ε or a z coefficient c, the gradient is that of
 * (1−ε) · CE + ε · mean over the vocabulary of −log softmax + c · logsumexp², and rowTerms [rows, 2] f32 becomes the
 * smoothed cross-entropy less rowLoss, and logsumexp² without c; both 0 where ignored. rowTerms is needed only then.
 */
export function crossEntropy<T>(
  buffers: { logits: T; labels: T; rowLoss: T; rowCorrect: T; step: T; rowTerms?: T; dLogits?: T },
  dims: { rows: number; vocabulary: number; rowOffset: number; gradient: boolean } & LossTerms,
): Command<T>[] {
  const { logits, labels, rowLoss, rowCorrect, step, rowTerms, dLogits } = buffers;
  const { rows, vocabulary, rowOffset, gradient, labelSmoothing = 0, vocabularyZ = 0 } = dims;
  const regularized = regularizes(dims);
  if (regularized && rowTerms === undefined) throw new TypeError("label smoothing and the z-loss need rowTerms");
  const bound: Record<string, T> = { logits, labels, row_loss: rowLoss, row_correct: rowCorrect };
  if (regularized) bound.row_terms = rowTerms!;
  if (gradient) bound.step = step;
  if (gradient && dLogits !== undefined) bound.d_logits = dLogits;
  const into = dLogits === undefined ? "in_place" : "f16";
  const terms: Record<string, number> = regularized
    ? { label_smoothing: labelSmoothing, vocabulary_z: vocabularyZ }
    : {};
  return [
    call(
      crossEntropyKernel({ type: valuesOf(vocabulary)[0], gradient: gradient ? into : "none", regularized }),
      { rows, vocabulary, row_offset: rowOffset, ...terms },
      bound,
      spread(rows),
    ),
  ];
}

const argmaxKernel = (type: Value): Kernel =>
  cached(`argmax_rows_${type}`, () => {
    const { buffers, functions } = floats(type, { logits: "read" }, []);
    return defineKernel<string, string>({
      name: `argmax_rows_${type}`,
      params: { rows: "u32", vocabulary: "u32", row_offset: "u32" },
      buffers: { ...buffers, out: write("u32") },
      wgsl: /* wgsl */ `${functions}${rowArgmax(type)}
  if (lane == 0u) { out[params.row_offset + row] = lane_index[0]; }
}
`,
    });
  });

/** out u32, from `rowOffset` on = index of the largest of each row of logits [rows, vocabulary] f32, ties to the lower. */
export function argmaxRows<T>(
  buffers: { logits: T; out: T },
  dims: { rows: number; vocabulary: number; rowOffset: number },
): Command<T>[] {
  const { rows, vocabulary, rowOffset } = dims;
  const { logits, out } = buffers;
  return [
    call(
      argmaxKernel(valuesOf(vocabulary)[0]),
      { rows, vocabulary, row_offset: rowOffset },
      { logits, out },
      spread(rows),
    ),
  ];
}

export interface CrossEntropyRows {
  rowLoss: Float64Array; //    [rows]
  rowCorrect: Uint32Array; //  [rows]
  rowTerms: Float64Array; //   [rows, 2]
  argmax: Uint32Array; //      [rows]
  dLogits: Float64Array; //    [rows, vocabulary]
}

/** Float64 definition; `scale` is inverse_target_count · loss_scale, `labels` those of these rows. */
export function crossEntropyReference(
  logits: ArrayLike<number>,
  labels: ArrayLike<number>,
  dims: { rows: number; vocabulary: number; scale: number } & LossTerms,
): CrossEntropyRows {
  const { rows, vocabulary, scale, labelSmoothing = 0, vocabularyZ = 0 } = dims;
  const rowLoss = new Float64Array(rows);
  const rowTerms = new Float64Array(2 * rows);
  const rowCorrect = new Uint32Array(rows);
  const argmax = new Uint32Array(rows);
  const dLogits = new Float64Array(rows * vocabulary);
  for (let r = 0; r < rows; r++) {
    const row = Array.from({ length: vocabulary }, (_, c) => logits[r * vocabulary + c]);
    const largest = row.reduce((a, b) => Math.max(a, b));
    const sum = row.reduce((total, x) => total + Math.exp(x - largest), 0);
    argmax[r] = row.indexOf(largest);
    const label = labels[r];
    if (label === IGNORED_LABEL) continue;
    rowLoss[r] = largest + Math.log(sum) - row[label];
    rowCorrect[r] = Number(argmax[r] === label);
    const logSumExp = largest + Math.log(sum);
    const uniform = row.reduce((total, x) => total + logSumExp - x, 0) / vocabulary;
    rowTerms[2 * r] = labelSmoothing * (uniform - rowLoss[r]);
    rowTerms[2 * r + 1] = logSumExp ** 2;
    row.forEach((x, c) => {
      const target = (1 - labelSmoothing) * Number(c === label) + labelSmoothing / vocabulary;
      const softmax = Math.exp(x - largest) / sum;
      dLogits[r * vocabulary + c] = (softmax * (1 + 2 * vocabularyZ * logSumExp) - target) * scale;
    });
  }
  return { rowLoss, rowCorrect, rowTerms, argmax, dLogits };
}
