// Whole numbers and times: the contract counts in int64 and google.protobuf.Duration, the trainer in plain numbers.

import { create } from "@bufbuild/protobuf";
import { type Duration, DurationSchema } from "@bufbuild/protobuf/wkt";

const NANOSECONDS = 1_000_000_000;

/** A count; planned figures that are not whole are rounded. */
export const count = (value: number): bigint => BigInt(Math.round(value));

/** `seconds` ≥ 0, to the nanosecond. */
export function durationOf(seconds: number): Duration {
  const whole = Math.floor(seconds);
  const nanos = Math.round((seconds - whole) * NANOSECONDS);
  const carry = nanos === NANOSECONDS;
  return create(DurationSchema, { seconds: BigInt(carry ? whole + 1 : whole), nanos: carry ? 0 : nanos });
}
