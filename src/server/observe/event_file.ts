// TensorBoard's event files: records of a length, its checksum, an Event message and its checksum, after each other. Two
// messages of a handful of fields are written by hand rather than generated from TensorFlow's protos.
//
//   record   u64 length · u32 masked crc32c of the length · Event · u32 masked crc32c of the Event     (little-endian)
//
// Source: tensorflow/core/lib/io/record_writer.h and tensorflow/core/util/event.proto.

import { Buffer } from "node:buffer";
import { BinaryWriter } from "@bufbuild/protobuf/wire";

/** Values by tag. */
export type Scalars = readonly (readonly [tag: string, value: number])[];

export type LogEvent =
  | { readonly case: "version" }
  | { readonly case: "scalars"; readonly step: bigint; readonly scalars: Scalars }
  /** A reader forgets what it has of this step and later: they come again. */
  | { readonly case: "restart"; readonly step: bigint };

const VERSION = "brain.Event:2";
const SESSION_START = 1;

/** CRC-32C (Castagnoli), reflected polynomial 0x82f63b78. */
const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
  return crc;
});

function maskedChecksum(bytes: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = TABLE[(crc ^ byte) & 0xff] ^ (crc >>> 8);
  crc = (crc ^ 0xffffffff) >>> 0;
  return (((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0;
}

/** @param wallTime seconds since 1970 */
export function encodeRecord(event: LogEvent, wallTime: number): Uint8Array {
  const message = encodeEvent(event, wallTime);
  const record = Buffer.alloc(12 + message.length + 4);
  record.writeBigUInt64LE(BigInt(message.length), 0);
  record.writeUInt32LE(maskedChecksum(record.subarray(0, 8)), 8);
  record.set(message, 12);
  record.writeUInt32LE(maskedChecksum(message), 12 + message.length);
  return record;
}

const I32 = 5;
const I64 = 1;
const LENGTH = 2;
const VARINT = 0;

function encodeEvent(event: LogEvent, wallTime: number): Uint8Array {
  const writer = new BinaryWriter().tag(1, I64).double(wallTime);
  switch (event.case) {
    case "version":
      return writer.tag(3, LENGTH).string(VERSION).finish();
    case "restart":
      return writer
        .tag(2, VARINT)
        .int64(event.step)
        .tag(7, LENGTH)
        .fork()
        .tag(1, VARINT)
        .int32(SESSION_START)
        .join()
        .finish();
    case "scalars":
      writer.tag(2, VARINT).int64(event.step).tag(5, LENGTH).fork();
      for (const [tag, value] of event.scalars) {
        writer.tag(1, LENGTH).fork().tag(1, LENGTH).string(tag).tag(2, I32).float(Math.fround(value)).join();
      }
      return writer.join().finish();
  }
}
