// What the front process and the server process say to each other over the front's stdin and stdout: a small JSON header
// and, for messages, the protobuf bytes as they came. Frames: u32 length of the rest, u32 length of the header (both
// little-endian), header, payload.

import { Buffer } from "node:buffer";

export type Note =
  /** Front: a call has come in. */
  | {
      readonly kind: "call";
      readonly call: number;
      readonly path: string;
      readonly peer: string;
      readonly metadata: [string, string][];
    }
  /** Either: the payload is a message of the call. */
  | { readonly kind: "message"; readonly call: number }
  /** Either: one message of the call was taken, another may come. */
  | { readonly kind: "taken"; readonly call: number }
  /** Front: no more requests. Server: the call is over; the payload, if any, is its google.rpc.Status. */
  | { readonly kind: "end"; readonly call: number }
  /** Front: the caller is gone. */
  | { readonly kind: "cancel"; readonly call: number }
  /** Front: the gate turned a call away. */
  | { readonly kind: "refused"; readonly code: string }
  /** Front: it listens. */
  | { readonly kind: "listening"; readonly port: number }
  /** Server: answer NOT_SERVING. */
  | { readonly kind: "drain" }
  /** Server: let calls end, then exit. */
  | { readonly kind: "stop"; readonly deadlineMs: number };

export interface Frame {
  readonly note: Note;
  readonly payload: Uint8Array;
}

const NOTHING = new Uint8Array(0);

export function encodeNote(note: Note, payload: Uint8Array = NOTHING): Uint8Array {
  const header = Buffer.from(JSON.stringify(note));
  const lengths = Buffer.alloc(8);
  lengths.writeUInt32LE(4 + header.length + payload.length, 0);
  lengths.writeUInt32LE(header.length, 4);
  return Buffer.concat([lengths, header, payload]);
}

/** The frames of a stream, until it ends. */
export async function* decodeNotes(stream: AsyncIterable<Uint8Array>): AsyncGenerator<Frame> {
  let chunks: Uint8Array[] = [];
  let have = 0;
  let need = 4; // bytes until the next frame is complete, or until its length is known
  for await (const chunk of stream) {
    chunks.push(chunk);
    have += chunk.length;
    if (have < need) continue;
    const bytes = Buffer.concat(chunks);
    let at = 0;
    need = 4;
    while (bytes.length - at >= 4) {
      const length = bytes.readUInt32LE(at);
      need = 4 + length;
      if (bytes.length - at < need) break;
      const headerEnd = at + 8 + bytes.readUInt32LE(at + 4);
      const note = JSON.parse(bytes.toString("utf8", at + 8, headerEnd)) as Note;
      // A copy: decoded `bytes` fields may outlive the chunk.
      yield { note, payload: new Uint8Array(bytes.subarray(headerEnd, at + need)) };
      at += need;
      need = 4;
    }
    chunks = [bytes.subarray(at)];
    have = bytes.length - at;
  }
}

/** Messages of one direction of a call on their way out: a few at a time, so that a slow reader holds the writer back. */
const WINDOW = 8;

export interface Outgoing {
  send(payload: Uint8Array): Promise<void>;
  taken(): void;
  /** Lets a waiting sender go. */
  close(): void;
}

export function outgoing(write: (payload: Uint8Array) => void): Outgoing {
  let room = WINDOW;
  let closed = false;
  let wake = (): void => {};
  return {
    async send(payload) {
      while (room === 0 && !closed) {
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
      }
      if (closed) return;
      room--;
      write(payload);
    },
    taken() {
      room++;
      wake();
    },
    close() {
      closed = true;
      wake();
    },
  };
}

export interface Incoming extends AsyncIterable<Uint8Array> {
  push(payload: Uint8Array): void;
  /** No more; with `thrown`, because of it. */
  end(thrown?: unknown): void;
}

/** Messages of one direction of a call on their way in. @param taken called when one was taken */
export function incoming(taken: () => void): Incoming {
  const queue: Uint8Array[] = [];
  let over: { readonly thrown: unknown } | undefined;
  let wake = (): void => {};
  return {
    push(payload) {
      queue.push(payload);
      wake();
    },
    end(thrown) {
      over ??= { thrown };
      wake();
    },
    async *[Symbol.asyncIterator]() {
      while (true) {
        const payload = queue.shift();
        if (payload) {
          taken();
          yield payload;
        } else if (over) {
          if (over.thrown !== undefined) throw over.thrown;
          return;
        } else {
          await new Promise<void>((resolve) => {
            wake = resolve;
          });
        }
      }
    },
  };
}
