// Cross-entropy of rows of logits, with the gradient written over the logits, and the arg max of rows.
//
//   loss = logsumexp(x) − x[label]        d(loss)/dx = softmax(x) − onehot(label)
//
// One workgroup per row: each lane walks every WORKGROUP-th column, partial results meet in workgroup memory in a fixed
// tree, so a row's bits do not depend on timing. The logits of a chunk of rows are the only copy of them there is:
// the gradient replaces them in place.

import { type Command, call, defineKernel, LINEAR_INDEX, read, spread, write } from "./kernel.ts";
import { STEP_SCALARS } from "./step_scalars.ts";

const WORKGROUP = 128;

/** A label that counts in no loss. */
const IGNORED = -100;

// Lanes' maxima with the lowest column that holds each; after `reduce_maximum` entry 0 is the row's.
const ROW_MAXIMUM = /* wgsl */ `
const WORKGROUP = ${WORKGROUP}u;
const NOTHING = -3.4e38;
var<workgroup> maxima: array<f32, WORKGROUP>;
var<workgroup> columns: array<u32, WORKGROUP>;

fn reduce_maximum(lane: u32) {
  for (var half = WORKGROUP / 2u; half > 0u; half >>= 1u) {
    workgroupBarrier();
    if (lane < half) {
      let other = lane + half;
      if (maxima[other] > maxima[lane] || (maxima[other] == maxima[lane] && columns[other] < columns[lane])) {
        maxima[lane] = maxima[other];
        columns[lane] = columns[other];
      }
    }
  }
  workgroupBarrier();
}

fn find_maximum(lane: u32, start: u32, vocabulary: u32) {
  var best = NOTHING;
  var column = 0xffffffffu;
  for (var v = lane; v < vocabulary; v += WORKGROUP) {
    let x = logits[start + v];
    if (x > best || column == 0xffffffffu) { best = x; column = v; }
  }
  maxima[lane] = best;
  columns[lane] = column;
  reduce_maximum(lane);
}
`;

function crossEntropyKernel(gradient: boolean) {
  return defineKernel({
    name: gradient ? "cross_entropy_gradient" : "cross_entropy",
    params: { rows: "u32", vocabulary: "u32", row_offset: "u32" },
    buffers: {
      logits: gradient ? write("f32") : read("f32"), // [rows, vocabulary]
      labels: read("i32"), //       [row_offset + rows]
      row_loss: write("f32"), //    [row_offset + rows]
      row_correct: write("u32"), // [row_offset + rows]
      step: { access: "read", type: "StepScalars" },
    },
    wgsl: /* wgsl */ `${LINEAR_INDEX}${STEP_SCALARS}${ROW_MAXIMUM}
var<workgroup> sums: array<f32, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lane: u32) {
  let row = linear_index(wid, num);
  if (row >= params.rows) { return; }
  let start = row * params.vocabulary;
  let label = labels[params.row_offset + row];
  let counts = label != ${IGNORED};

  find_maximum(lane, start, params.vocabulary);
  let maximum = maxima[0];
  var sum = 0.0;
  for (var v = lane; v < params.vocabulary; v += WORKGROUP) { sum += exp(logits[start + v] - maximum); }
  sums[lane] = sum;
  for (var half = WORKGROUP / 2u; half > 0u; half >>= 1u) {
    workgroupBarrier();
    if (lane < half) { sums[lane] += sums[lane + half]; }
  }
  workgroupBarrier();
  let total = sums[0];

  if (lane == 0u) {
    row_loss[params.row_offset + row] = select(0.0, maximum - logits[start + u32(max(label, 0))] + log(total), counts);
    row_correct[params.row_offset + row] = select(0u, 1u, counts && columns[0] == u32(max(label, 0)));
  }
${gradient ? GRADIENT : ""}
}
`,
  });
}

const GRADIENT = /* wgsl */ `
  // Lane 0 has read its logit before any lane overwrites it.
  workgroupBarrier();
  storageBarrier();
  let scale = select(0.0, step.inverse_target_count * step.loss_scale, counts);
  for (var v = lane; v < params.vocabulary; v += WORKGROUP) {
    let probability = exp(logits[start + v] - maximum) / total;
    let target_share = select(0.0, 1.0, i32(v) == label);
    logits[start + v] = (probability - target_share) * scale;
  }`;

const KERNELS = { plain: crossEntropyKernel(false), gradient: crossEntropyKernel(true) };

/**
 * Loss of `rows` rows of logits [rows, vocabulary] f32. labels i32, rowLoss f32 and rowCorrect u32 are indexed from
 * `rowOffset`. Label -100: loss 0, correct 0, gradient 0. rowCorrect is 1 where the arg max (the lower id among equals)
 * is the label. With `gradient`, logits become (softmax − onehot) · step.inverse_target_count · step.loss_scale.
 */
export function crossEntropy<T>(
  buffers: { logits: T; labels: T; rowLoss: T; rowCorrect: T; step: T },
  dims: { rows: number; vocabulary: number; rowOffset: number; gradient: boolean },
): Command<T>[] {
  const { rows, vocabulary, rowOffset, gradient } = dims;
  const { logits, labels, rowLoss, rowCorrect, step } = buffers;
  return [
    call(
      gradient ? KERNELS.gradient : KERNELS.plain,
      { rows, vocabulary, row_offset: rowOffset },
      { logits, labels, row_loss: rowLoss, row_correct: rowCorrect, step },
      spread(rows),
    ),
  ];
}

const argmaxKernel = defineKernel({
  name: "argmax_rows",
  params: { rows: "u32", vocabulary: "u32", row_offset: "u32" },
  buffers: {
    logits: read("f32"), // [rows, vocabulary]
    out: write("u32"), //   [row_offset + rows]
  },
  wgsl: /* wgsl */ `${LINEAR_INDEX}${ROW_MAXIMUM}
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) num: vec3u, @builtin(local_invocation_index) lane: u32) {
  let row = linear_index(wid, num);
  if (row >= params.rows) { return; }
  find_maximum(lane, row * params.vocabulary, params.vocabulary);
  if (lane == 0u) { out[params.row_offset + row] = columns[0]; }
}
`,
});

/** Column of the largest logit of each row, the lower one among equals; `out` u32 is indexed from `rowOffset`. */
export function argmaxRows<T>(
  buffers: { logits: T; out: T },
  dims: { rows: number; vocabulary: number; rowOffset: number },
): Command<T>[] {
  const { rows, vocabulary, rowOffset } = dims;
  return [call(argmaxKernel, { rows, vocabulary, row_offset: rowOffset }, buffers, spread(rows))];
}

/** The loss, the arg max and (softmax − onehot) of rows of logits, in float64. */
export function crossEntropyReference(
  logits: ArrayLike<number>,
  labels: ArrayLike<number>,
  dims: { rows: number; vocabulary: number },
): { rowLoss: Float64Array; rowArgmax: Uint32Array; gradient: Float64Array } {
  const { rows, vocabulary } = dims;
  const rowLoss = new Float64Array(rows);
  const rowArgmax = new Uint32Array(rows);
  const gradient = new Float64Array(rows * vocabulary);
  for (let r = 0; r < rows; r++) {
    const x = Array.from({ length: vocabulary }, (_, v) => logits[r * vocabulary + v]);
    const maximum = x.reduce((a, b) => Math.max(a, b));
    const total = x.reduce((sum, value) => sum + Math.exp(value - maximum), 0);
    rowArgmax[r] = x.indexOf(maximum);
    if (labels[r] === IGNORED) continue;
    rowLoss[r] = maximum + Math.log(total) - x[labels[r]];
    for (let v = 0; v < vocabulary; v++)
      gradient[r * vocabulary + v] = Math.exp(x[v] - maximum) / total - (v === labels[r] ? 1 : 0);
  }
  return { rowLoss, rowArgmax, gradient };
}
