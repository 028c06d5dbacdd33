// The worker's end of the pipe to the server. Writing never waits: messages queue in the stream, and whoever sends what may
// be lost looks at `backlogBytes` first. A reader that has stopped reading therefore costs memory for a few metrics a
// step, and never a step.

import { Socket } from "node:net";
import type { Writable } from "node:stream";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { FromWorkerSchema, type LogLevel } from "../../../proto/gen/thaw/worker/v1/worker_pb.ts";
import { encodeFrame } from "./frames.ts";

export type OutgoingMessage = NonNullable<MessageInitShape<typeof FromWorkerSchema>["message"]>;

export interface Outbox {
  /** Encodes now, so that the message may share memory that changes later. */
  send(message: OutgoingMessage): void;
  log(level: LogLevel, message: string): void;
  /** Bytes that the reader has not taken yet. */
  readonly backlogBytes: number;
  /** Ends the stream; resolves when everything sent is written, or the reader is gone. */
  end(): Promise<void>;
}

/** This process's standard output, a pipe. Not `process.stdout`: under Deno its writes block until the reader reads. */
export const standardOutput = (): Writable => new Socket({ fd: 1, readable: false, writable: true });

export function openOutbox(stream: Writable): Outbox {
  let gone = false;
  // EPIPE: the reader has died. The end of the worker's input says the same and ends the worker.
  stream.on("error", () => {
    gone = true;
  });
  function send(message: OutgoingMessage): void {
    if (!gone) stream.write(encodeFrame(FromWorkerSchema, { message }));
  }
  return {
    send,
    log: (level, message) => send({ case: "log", value: { level, message } }),
    get backlogBytes() {
      return stream.writableLength;
    },
    end: () =>
      new Promise((resolve) => {
        if (gone) return resolve();
        stream.once("close", resolve);
        stream.end(resolve);
      }),
  };
}
