// Frames: protobuf messages on a byte stream, each a varint byte count and then the message. Both ends of the pipe between
// server and GPU process use this file. What is read is bounded: a frame over the limit is refused when its length
// arrives, before any of it is kept. Reading takes a chunk from the stream only when the messages of the last one have
// been consumed, so a slow consumer holds back the writer.

import type { DescMessage, MessageInitShape, MessageShape } from "@bufbuild/protobuf";
import { create } from "@bufbuild/protobuf";
import { sizeDelimitedDecodeStream, sizeDelimitedEncode } from "@bufbuild/protobuf/wire";
import "../../../proto/rpc/text.ts";

/** Largest frame in bytes. Far above what a batch of routes needs; a garbled length is nearly always above it. */
const MAX_FRAME_BYTES = 64 * 1024 * 1024;

/** The stream does not hold frames of the expected message; nothing after this point can be read. */
export class FrameError extends Error {
  override readonly name = "FrameError";
}

/** One frame, ready to be written. */
export function encodeFrame<D extends DescMessage>(schema: D, message: MessageInitShape<D>): Uint8Array {
  return sizeDelimitedEncode(schema, create(schema, message));
}

/**
 * The messages of a stream, until it ends between two frames.
 * @throws FrameError when a frame is longer than `maxBytes`, is no message of `schema`, or is cut off by the end; errors
 * of the stream itself pass through.
 */
export async function* decodeFrames<D extends DescMessage>(
  schema: D,
  stream: AsyncIterable<Uint8Array>,
  maxBytes: number = MAX_FRAME_BYTES,
): AsyncGenerator<MessageShape<D>, void, undefined> {
  let fromStream: unknown;
  async function* chunks(): AsyncGenerator<Uint8Array> {
    try {
      yield* stream;
    } catch (error) {
      fromStream = error;
      throw error;
    }
  }
  const messages = sizeDelimitedDecodeStream(schema, chunks(), { readMaxBytes: maxBytes });
  while (true) {
    let next: IteratorResult<MessageShape<D>>;
    try {
      next = await messages.next();
    } catch (error) {
      if (error === fromStream) throw error;
      throw new FrameError(`not a stream of ${schema.typeName} frames: ${(error as Error).message}`, { cause: error });
    }
    if (next.done) return;
    yield next.value;
  }
}
