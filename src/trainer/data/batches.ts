// Batches of fixed shape. A row holds one example, or several one after another (packing.ts): segments say which tokens
// belong together. Here is what a batch is and how it is made of examples; which examples make a batch is decided in
// order.ts, packing.ts and bucketing.ts.

import type { EncodedExample } from "./dataset.ts";

/** A label that counts in no loss. */
export const IGNORED_LABEL = -100;
/** Example id of a row, or of a place in a row, without an example. */
export const NO_EXAMPLE = 0xffffffff;

/** B = size, S = inputLength, T = targetLength, N = examplesPerRow; row-major. */
export interface Batch {
  readonly size: number;
  readonly inputLength: number;
  readonly targetLength: number;
  /** Most examples of a row; 1 where examples are padded. */
  readonly examplesPerRow: number;
  /** [B, S], the pad id after the end. */
  readonly inputIds: Uint32Array<ArrayBuffer>;
  /** [B, S], n at tokens of the row's n-th example, 0 at padding. */
  readonly inputSegments: Uint32Array<ArrayBuffer>;
  /** [B, T], -100 at padding and wherever no loss is taken. */
  readonly labels: Int32Array<ArrayBuffer>;
  /** [B, T], each example's labels shifted right behind the decoder's start token, -100 turned into the pad id. */
  readonly decoderInputIds: Uint32Array<ArrayBuffer>;
  /** [B, T], like inputSegments. */
  readonly decoderSegments: Uint32Array<ArrayBuffer>;
  /** [B, T], 1 where there is a label. */
  readonly decoderMask: Uint32Array<ArrayBuffer>;
  /** [B, N], index of each example in its file, or NO_EXAMPLE. */
  readonly exampleIds: Uint32Array<ArrayBuffer>;
  /** Labels that count. */
  readonly targetTokens: number;
}

/** Lengths are multiples of this where they can be, so that nearly equal data shares programs. */
export const LENGTH_STEP = 4;

/** Lengths of a batch's rows. */
export interface Lengths {
  readonly input: number;
  readonly target: number;
}

export interface BatchShape {
  readonly size: number;
  readonly inputLength: number;
  readonly targetLength: number;
  readonly padTokenId: number;
  readonly decoderStartTokenId: number;
}

/** The part of a batch the rest follows from. Without segments of the decoder, a row is one example. */
export type BatchContent = Pick<Batch, "inputIds" | "inputSegments" | "labels" | "exampleIds"> &
  Partial<Pick<Batch, "decoderSegments">>;

/** Derives what the decoder reads from the labels. */
export function completeBatch(content: BatchContent, shape: BatchShape): Batch {
  const { size, inputLength, targetLength, padTokenId, decoderStartTokenId } = shape;
  const { labels, decoderSegments = new Uint32Array(labels.length).fill(1) } = content;
  const decoderInputIds = new Uint32Array(size * targetLength);
  const decoderMask = new Uint32Array(size * targetLength);
  let targetTokens = 0;
  for (let i = 0; i < labels.length; i++) {
    const previous = labels[i - 1];
    const begins = decoderSegments[i] !== 0 && decoderSegments[i] !== decoderSegments[i - 1];
    if (i % targetLength === 0 || begins) decoderInputIds[i] = decoderStartTokenId;
    else decoderInputIds[i] = previous === IGNORED_LABEL ? padTokenId : previous;
    decoderMask[i] = labels[i] === IGNORED_LABEL ? 0 : 1;
    targetTokens += decoderMask[i];
  }
  const examplesPerRow = content.exampleIds.length / size;
  return {
    size,
    inputLength,
    targetLength,
    examplesPerRow,
    ...content,
    decoderInputIds,
    decoderSegments,
    decoderMask,
    targetTokens,
  };
}

/** One row for each list of ids, at most `shape.size`, then empty rows. What does not fit is a programming error. */
export function collateRows(
  examples: readonly EncodedExample[],
  rows: readonly (readonly number[])[],
  shape: BatchShape,
): Batch {
  const { size, inputLength, targetLength } = shape;
  const examplesPerRow = rows.reduce((most, ids) => Math.max(most, ids.length), 1);
  const inputIds = new Uint32Array(size * inputLength).fill(shape.padTokenId);
  const inputSegments = new Uint32Array(size * inputLength);
  const labels = new Int32Array(size * targetLength).fill(IGNORED_LABEL);
  const decoderSegments = new Uint32Array(size * targetLength);
  const exampleIds = new Uint32Array(size * examplesPerRow).fill(NO_EXAMPLE);
  rows.forEach((ids, row) => {
    let [input, target] = [0, 0]; // used of the row
    ids.forEach((id, place) => {
      const example = examples[id];
      const [inputEnd, targetEnd] = [input + example.inputIds.length, target + example.labels.length];
      if (inputEnd > inputLength || targetEnd > targetLength) {
        throw new RangeError(`example ${id} is longer than ${inputLength} input or ${targetLength} target tokens`);
      }
      inputIds.set(example.inputIds, row * inputLength + input);
      inputSegments.fill(place + 1, row * inputLength + input, row * inputLength + inputEnd);
      labels.set(example.labels, row * targetLength + target);
      decoderSegments.fill(place + 1, row * targetLength + target, row * targetLength + targetEnd);
      exampleIds[row * examplesPerRow + place] = id;
      [input, target] = [inputEnd, targetEnd];
    });
  });
  return completeBatch({ inputIds, inputSegments, labels, decoderSegments, exampleIds }, shape);
}

/** The rows `ids` of `examples`, at most `shape.size`, then empty rows. Longer examples are a programming error. */
export const collate = (examples: readonly EncodedExample[], ids: readonly number[], shape: BatchShape): Batch =>
  collateRows(
    examples,
    ids.map((id) => [id]),
    shape,
  );

/** Every example once, in file order; the last batch is filled up with empty rows. */
export function* sequentialBatches(examples: readonly EncodedExample[], shape: BatchShape): Generator<Batch> {
  for (let first = 0; first < examples.length; first += shape.size) {
    const rows = Math.min(shape.size, examples.length - first);
    yield collate(
      examples,
      Array.from({ length: rows }, (_, row) => first + row),
      shape,
    );
  }
}
