// Frames between server and GPU process: whatever the chunks, messages come out whole; what is no frame says so.

import { PassThrough, Readable } from "node:stream";
import * as fc from "fast-check";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { FromWorkerSchema, LogLevel } from "../../proto/gen/thaw/worker/v1/worker_pb.ts";
import { decodeFrames, encodeFrame, FrameError } from "../../src/server/worker/frames.ts";

const test = suite("worker frames");

const frame = (message: string) =>
  encodeFrame(FromWorkerSchema, { message: { case: "log", value: { level: LogLevel.INFO, message } } });

async function decode(chunks: Iterable<Uint8Array>, maxBytes?: number): Promise<string[]> {
  const lines: string[] = [];
  for await (const { message } of decodeFrames(FromWorkerSchema, Readable.from(chunks), maxBytes))
    lines.push(message.case === "log" ? message.value.message : `${message.case}`);
  return lines;
}

test("messages survive any chunking", async () => {
  const texts = fc.array(fc.string({ maxLength: 300 }), { maxLength: 6 });
  await fc.assert(
    fc.asyncProperty(texts, fc.integer({ min: 1, max: 64 }), async (lines, size) => {
      const bytes = new Uint8Array(lines.flatMap((line) => [...frame(line)]));
      const chunks = Array.from({ length: Math.ceil(bytes.length / size) }, (_, i) =>
        bytes.subarray(i * size, (i + 1) * size),
      );
      assert.equal(await decode(chunks), lines);
    }),
    { numRuns: 60 },
  );
});

const whole = frame("hello");
const bad: readonly { what: string; bytes: readonly number[]; maxBytes?: number; says: RegExp }[] = [
  { what: "a frame cut off", bytes: [...whole.subarray(0, whole.length - 1)], says: /incomplete/ },
  { what: "a length cut off", bytes: [0xff, 0x80], says: /incomplete/ },
  { what: "a length over the limit, before its bytes", bytes: [0x81, 0x01], maxBytes: 128, says: /129 is larger/ },
  { what: "a length over the standard limit", bytes: [0xff, 0xff, 0xff, 0xff, 0x0f], says: /larger/ },
  { what: "a length that never ends", bytes: Array(11).fill(0xff), says: /varint/ },
  { what: "a message that is none", bytes: [3, 0xff, 0xff, 0xff], says: /./ },
  { what: "text", bytes: [...new TextEncoder().encode("Warning: loader found no driver\n")], says: /./ },
];
for (const { what, bytes, maxBytes, says } of bad) {
  test(`${what} is a FrameError`, async () => {
    const error = await decode([Uint8Array.from(bytes)], maxBytes).then(
      () => undefined,
      (thrown: unknown) => thrown,
    );
    assert.instance(error, FrameError);
    assert.match((error as Error).message, /thaw\.worker\.v1\.FromWorker/);
    assert.match((error as Error).message, says);
  });
}

test("an error of the stream passes through unchanged", async () => {
  const stream = new PassThrough();
  const failure = new Error("read failed");
  stream.write(whole);
  const messages = decodeFrames(FromWorkerSchema, stream);
  assert.is((await messages.next()).done, false);
  const next = messages.next();
  stream.destroy(failure);
  assert.is(await next.catch((error: unknown) => error), failure);
});

test("a consumer that stops reading stops the stream", async () => {
  let produced = 0;
  function* endless(): Generator<Uint8Array> {
    while (true) {
      produced++;
      yield frame("x".repeat(1000));
    }
  }
  const stream = Readable.from(endless(), { objectMode: false, highWaterMark: 16_384 });
  const messages = decodeFrames(FromWorkerSchema, stream);
  for (let i = 0; i < 50; i++) await messages.next();
  const before = produced;
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.ok(produced - before <= 20, `${produced - before} more frames were produced for nobody`);
  await messages.return(undefined);
});

test.run();
