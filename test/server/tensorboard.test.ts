// TensorBoard event files, read by a reader of this test's own: framing, checksums, and which values are under which tag.

import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { create } from "@bufbuild/protobuf";
import { BinaryReader } from "@bufbuild/protobuf/wire";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { type RunEvent, RunEventSchema } from "../../proto/gen/thaw/v1/event_pb.ts";
import { Stack } from "../../proto/gen/thaw/v1/group_pb.ts";
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import { createTensorBoard } from "../../src/server/observe/tensorboard.ts";
import { eventsUntil, reaches, testServer, withInputs } from "../support/thaw_server.ts";

const test = suite("tensorboard");
let folder: string;
test.before.each(async () => {
  folder = await mkdtemp(join(tmpdir(), "thaw-tensorboard-"));
});
test.after.each(() => rm(folder, { recursive: true }));

/** CRC-32C, a bit at a time as the polynomial is written: 0x1edc6f41, input and output reflected. */
function crc32c(bytes: Uint8Array): number {
  let crc = 0xffffffffn;
  const reflect = (value: bigint, bits: number): bigint => {
    let out = 0n;
    for (let i = 0; i < bits; i++) if ((value >> BigInt(i)) & 1n) out |= 1n << BigInt(bits - 1 - i);
    return out;
  };
  for (const byte of bytes) {
    crc ^= reflect(BigInt(byte), 8) << 24n;
    for (let bit = 0; bit < 8; bit++) crc = crc & 0x80000000n ? ((crc << 1n) ^ 0x1edc6f41n) & 0xffffffffn : crc << 1n;
  }
  return Number(reflect(crc, 32) ^ 0xffffffffn);
}

/** What TensorFlow stores in place of a checksum: rotated right by 15 bits, plus a constant. */
const masked = (crc: number): number =>
  Number(((BigInt(crc) >> 15n) | (BigInt(crc) << 17n)) & 0xffffffffn) + 0xa282ead8;

interface Entry {
  step: bigint;
  wallTime: number;
  version?: string;
  restart?: boolean;
  readonly scalars: Record<string, number>;
}

/** Fields of a message: number, wire type, and a reader that stands at the value. */
function fields(bytes: Uint8Array, read: (number: number, reader: BinaryReader) => boolean): void {
  const reader = new BinaryReader(bytes);
  while (reader.pos < reader.len) {
    const [number, type] = reader.tag();
    if (!read(number, reader)) reader.skip(type, number);
  }
}

function entryOf(message: Uint8Array): Entry {
  const entry: Entry = { step: 0n, wallTime: 0, scalars: {} };
  fields(message, (number, reader) => {
    if (number === 1) entry.wallTime = reader.double();
    else if (number === 2) entry.step = BigInt(reader.int64());
    else if (number === 3) entry.version = reader.string();
    else if (number === 7) {
      fields(reader.bytes(), (inner, at) => {
        entry.restart = inner === 1 && at.int32() === 1;
        return true;
      });
    } else if (number === 5) {
      fields(reader.bytes(), (_, at) => {
        let tag = "";
        fields(at.bytes(), (inner, value) => {
          if (inner === 1) tag = value.string();
          else if (inner === 2) entry.scalars[tag] = value.float();
          else return false;
          return true;
        });
        return true;
      });
    } else return false;
    return true;
  });
  return entry;
}

/** Every record of a run's files, oldest file first; wrong checksums fail the test. */
async function entries(directory: string): Promise<Entry[]> {
  const all: Entry[] = [];
  for (const name of (await readdir(directory)).sort()) {
    assert.match(name, /tfevents/);
    const bytes = await readFile(join(directory, name));
    let at = 0;
    while (at < bytes.length) {
      const length = Number(bytes.readBigUInt64LE(at));
      assert.is(bytes.readUInt32LE(at + 8), masked(crc32c(bytes.subarray(at, at + 8))) % 2 ** 32);
      const message = new Uint8Array(bytes.subarray(at + 12, at + 12 + length));
      assert.is(bytes.readUInt32LE(at + 12 + length), masked(crc32c(message)) % 2 ** 32);
      all.push(entryOf(message));
      at += 12 + length + 4;
    }
    assert.is(at, bytes.length);
  }
  return all;
}

const stepEvent = (step: bigint, loss: number): RunEvent =>
  create(RunEventSchema, {
    step,
    time: { seconds: 1000n, nanos: 500_000_000 },
    event: {
      case: "metrics",
      value: {
        step,
        loss,
        learningRate: 0.5,
        gradientNorm: 2,
        tokensPerSecond: 64,
        layers: [{ stack: Stack.DECODER, layer: 3, load: [0.5, 0.25, 0.25, 0] }],
      },
    },
  });

test("the reader's checksum is the one of the standard", () => {
  assert.is(crc32c(new TextEncoder().encode("123456789")), 0xe3069283);
});

test("steps and evaluations are scalars under their tags; repeated steps replace the earlier ones", async () => {
  const board = createTensorBoard(folder, () => assert.unreachable());
  board.written("runs/r", stepEvent(1n, 4));
  board.written("runs/r", stepEvent(2n, 1e300));
  board.written(
    "runs/r",
    create(RunEventSchema, {
      step: 2n,
      event: {
        case: "evaluation",
        value: { split: "validation", loss: 1.5, accuracy: 0.5, metrics: { f1_macro: 0.25 } },
      },
    }),
  );
  board.written("runs/r", stepEvent(2n, 3));
  await board.stop();
  const [version, first, overflow, scores, restart, again, ...rest] = await entries(join(folder, "r"));
  assert.is(version.version, "brain.Event:2");
  assert.equal([first.step, first.wallTime], [1n, 1000.5]);
  assert.equal(first.scalars, {
    "train/loss": 4,
    "train/total_loss": 0,
    "train/learning_rate": 0.5,
    "train/gradient_norm": 2,
    "train/tokens_per_second": 64,
    "routing/decoder_3/load_imbalance": 2,
  });
  assert.is(overflow.scalars["train/loss"], Number.POSITIVE_INFINITY, "values are f32");
  assert.is(scores.step, 2n);
  assert.equal(scores.scalars, {
    "evaluation/validation/loss": 1.5,
    "evaluation/validation/token_accuracy": 0,
    "evaluation/validation/exact_match": 0,
    "evaluation/validation/accuracy": 0.5,
    "evaluation/validation/f1_macro": 0.25,
  });
  assert.equal(
    [restart.restart, restart.step, again.step, again.scalars["train/loss"], rest.length],
    [true, 2n, 2n, 3, 0],
  );
});

test("a run that goes on in another server has another file, which begins where it goes on", async () => {
  for (const step of [1n, 2n]) {
    const board = createTensorBoard(folder, () => assert.unreachable());
    board.written("runs/r", stepEvent(step, 1));
    await board.stop();
    await delay(2); // File names have milliseconds.
  }
  assert.is((await readdir(join(folder, "r"))).length, 2);
  const seen = (await entries(join(folder, "r"))).map((entry) =>
    entry.version ? "version" : `${entry.restart ? "restart" : "step"} ${entry.step}`,
  );
  assert.equal(seen, ["version", "step 1", "version", "restart 2", "step 2"]);
});

test("a folder that cannot be written costs the files and says so once", async () => {
  const said: string[] = [];
  const file = join(folder, "file");
  await writeFile(file, "");
  const board = createTensorBoard(file, (level, message) => void said.push(`${level} ${message}`));
  board.written("runs/r", stepEvent(1n, 1));
  await delay(50);
  board.written("runs/r", stepEvent(2n, 1));
  await board.stop();
  assert.is(said.length, 1);
  assert.match(said[0], /^warning the TensorBoard file cannot be written \(ENOTDIR\)/);
});

test("a server told to writes them for its runs", async () => {
  const server = await testServer({ flags: ["--tensorboard-dir", folder] });
  try {
    await withInputs(server.thaw);
    const evaluation = { everySteps: 2n, splits: ["validation"] };
    const spec = { model: "models/m", dataset: "datasets/d", steps: 4n, evaluation };
    await server.thaw.runs.createRun({ runId: "r", spec });
    await eventsUntil(server.thaw, "runs/r", reaches(RunState.SUCCEEDED));
  } finally {
    await server.stop();
  }
  const all = await entries(join(folder, "r"));
  const losses = all.flatMap(({ scalars }) => scalars["train/loss"] ?? []);
  assert.equal(losses, [1, 1 / 2, Math.fround(1 / 3), 1 / 4]);
  assert.ok(all.some(({ scalars }) => scalars["evaluation/validation/f1_macro"] === 0.25));
});

test.run();
