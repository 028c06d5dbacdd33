// Batches of fixed shape. The training order is a function of (seed, step) alone: batch `step` holds positions
// step·size … of an endless sequence of epochs, each epoch its own permutation. A resumed run needs the step and nothing
// else, and no example is skipped or repeated at an epoch's end: the batch there reaches into the next epoch.

import type { EncodedExample } from "./dataset.ts";
import { randomPermutation } from "./random.ts";

/** A label that counts in no loss. */
export const IGNORED_LABEL = -100;
/** Example id of a row that only fills up a batch. */
export const NO_EXAMPLE = 0xffffffff;

/** B = size, S = inputLength, T = targetLength; row-major. */
export interface Batch {
  readonly size: number;
  readonly inputLength: number;
  readonly targetLength: number;
  /** [B, S], the pad id after the end. */
  readonly inputIds: Uint32Array<ArrayBuffer>;
  /** [B, S], 1 at tokens, 0 at padding. */
  readonly inputMask: Uint32Array<ArrayBuffer>;
  /** [B, T], -100 at padding and wherever no loss is taken. */
  readonly labels: Int32Array<ArrayBuffer>;
  /** [B, T], labels shifted right behind the decoder's start token, -100 turned into the pad id. */
  readonly decoderInputIds: Uint32Array<ArrayBuffer>;
  /** [B, T], 1 where there is a label. */
  readonly decoderMask: Uint32Array<ArrayBuffer>;
  /** [B], index of each row's example in its file, or NO_EXAMPLE. */
  readonly exampleIds: Uint32Array<ArrayBuffer>;
  /** Labels that count. */
  readonly targetTokens: number;
}

export interface BatchShape {
  readonly size: number;
  readonly inputLength: number;
  readonly targetLength: number;
  readonly padTokenId: number;
  readonly decoderStartTokenId: number;
}

/** The part of a batch the rest follows from. */
export type BatchContent = Pick<Batch, "inputIds" | "inputMask" | "labels" | "exampleIds">;

/** Derives what the decoder reads from the labels. */
export function completeBatch(content: BatchContent, shape: BatchShape): Batch {
  const { size, inputLength, targetLength, padTokenId, decoderStartTokenId } = shape;
  const { labels } = content;
  const decoderInputIds = new Uint32Array(size * targetLength);
  const decoderMask = new Uint32Array(size * targetLength);
  let targetTokens = 0;
  for (let i = 0; i < labels.length; i++) {
    const previous = labels[i - 1];
    if (i % targetLength === 0) decoderInputIds[i] = decoderStartTokenId;
    else decoderInputIds[i] = previous === IGNORED_LABEL ? padTokenId : previous;
    decoderMask[i] = labels[i] === IGNORED_LABEL ? 0 : 1;
    targetTokens += decoderMask[i];
  }
  return { size, inputLength, targetLength, ...content, decoderInputIds, decoderMask, targetTokens };
}

/** The rows `ids` of `examples`, at most `shape.size`, then empty rows. Longer examples are a programming error. */
export function collate(examples: readonly EncodedExample[], ids: readonly number[], shape: BatchShape): Batch {
  const { size, inputLength, targetLength } = shape;
  const inputIds = new Uint32Array(size * inputLength).fill(shape.padTokenId);
  const inputMask = new Uint32Array(size * inputLength);
  const labels = new Int32Array(size * targetLength).fill(IGNORED_LABEL);
  const exampleIds = new Uint32Array(size).fill(NO_EXAMPLE);
  ids.forEach((id, row) => {
    const example = examples[id];
    if (example.inputIds.length > inputLength || example.labels.length > targetLength) {
      throw new RangeError(`example ${id} is longer than ${inputLength} input or ${targetLength} target tokens`);
    }
    inputIds.set(example.inputIds, row * inputLength);
    inputMask.fill(1, row * inputLength, row * inputLength + example.inputIds.length);
    labels.set(example.labels, row * targetLength);
    exampleIds[row] = id;
  });
  return completeBatch({ inputIds, inputMask, labels, exampleIds }, shape);
}

export interface TrainingBatches {
  /** The batch of optimizer step `step` (0-based); equal steps give equal batches, in any order of asking. */
  batchAt(step: number): Batch;
}

/** Shuffled batches without end; `examples` must not be empty. */
export function trainingBatches(examples: readonly EncodedExample[], shape: BatchShape, seed: number): TrainingBatches {
  let cached = { epoch: -1, order: new Uint32Array(0) };
  const orderOf = (epoch: number): Uint32Array => {
    if (cached.epoch !== epoch) cached = { epoch, order: randomPermutation(examples.length, seed, epoch) };
    return cached.order;
  };
  return {
    batchAt(step) {
      const ids = Array.from({ length: shape.size }, (_, row) => {
        const position = step * shape.size + row;
        return orderOf(Math.floor(position / examples.length))[position % examples.length];
      });
      return collate(examples, ids, shape);
    },
  };
}

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
