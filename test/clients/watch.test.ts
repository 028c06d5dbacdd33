// watchRun and startRun against servers that go away: every event once, in order, whatever happened to the connection.

import { create } from "@bufbuild/protobuf";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { status } from "@grpc/grpc-js";
import { test } from "uvu";
import * as assert from "uvu/assert";
import { RpcError, startRun, watchRun } from "../../clients/typescript/index.ts";
import { RetryInfoSchema } from "../../proto/gen/google/rpc/error_details_pb.ts";
import { withDetail } from "../../proto/rpc/status.ts";
import { fakeServer, stopFakes } from "./support/fake_server.ts";

const LAST = 10n;

const events = (first: bigint, last: bigint) => ({
  reply: {
    case: "events" as const,
    value: { events: Array.from({ length: Number(last - first) + 1 }, (_, i) => ({ revision: first + BigInt(i) })) },
  },
});

/** What a reader has seen. A failing call may drop messages that were sent but not read, so fakes fail after that. */
const reader = { revision: 0n };
async function readUpTo(revision: bigint): Promise<void> {
  while (reader.revision < revision) await new Promise((resolve) => setTimeout(resolve, 5));
}
test.before.each(() => {
  reader.revision = 0n;
});

async function revisions(log: AsyncIterable<{ readonly revision: bigint }>): Promise<bigint[]> {
  const seen: bigint[] = [];
  for await (const { revision } of log) {
    reader.revision = revision;
    seen.push(revision);
  }
  return seen;
}

async function failure(promise: Promise<unknown>): Promise<RpcError> {
  try {
    await promise;
  } catch (error) {
    assert.instance(error, RpcError);
    return error as RpcError;
  }
  throw new Error("expected a failure");
}

const oneTo = (last: number) => Array.from({ length: last }, (_, i) => BigInt(i + 1));

/** A server whose n-th watch sends some events after the asked revision, then fails with the n-th error; later ones end. */
async function breakingServer(perWatch: bigint, failures: readonly RpcError[]) {
  const asked: bigint[] = [];
  const server = await fakeServer({
    runs: {
      async *watchRun({ afterRevision }) {
        const fault = failures[asked.length];
        asked.push(afterRevision);
        const last = fault ? afterRevision + perWatch : LAST;
        if (last > afterRevision) yield events(afterRevision + 1n, last);
        if (fault) {
          await readUpTo(last);
          throw fault;
        }
      },
    },
  });
  return { server, asked };
}

const away = new RpcError(status.UNAVAILABLE, "the server is stopping");
const cut = new RpcError(status.INTERNAL, "Received RST_STREAM with code 0");

test.after.each(stopFakes);

test("a watch goes on from its last revision after UNAVAILABLE and after RST_STREAM code 0", async () => {
  const { server, asked } = await breakingServer(3n, [away, cut]);
  const lost: string[] = [];
  const watch = watchRun(server.thaw, "runs/a", { onReconnect: (error) => lost.push(error.message) });
  assert.equal(await revisions(watch), oneTo(10));
  assert.equal(asked, [0n, 3n, 6n]);
  assert.equal(lost, [away.message, cut.message]);
});

test("a watch waits as long as the server asks for", async () => {
  const later = withDetail(away, RetryInfoSchema, create(RetryInfoSchema, { retryDelay: durationFromMs(350) }));
  const { server } = await breakingServer(1n, [later]);
  const waits: number[] = [];
  await revisions(watchRun(server.thaw, "runs/a", { onReconnect: (_, wait) => waits.push(wait) }));
  assert.equal(waits, [350]);
});

test("events that were seen already are not repeated", async () => {
  const server = await fakeServer({
    runs: {
      async *watchRun() {
        yield events(1n, 4n);
        yield events(3n, 6n);
      },
    },
  });
  assert.equal(await revisions(watchRun(server.thaw, "runs/a")), oneTo(6));
});

test("errors that waiting cannot cure end the watch at once", async () => {
  const codes = [status.NOT_FOUND, status.OUT_OF_RANGE, status.PERMISSION_DENIED, status.INTERNAL];
  for (const code of codes) {
    const { server, asked } = await breakingServer(0n, [new RpcError(code, "no")]);
    assert.is((await failure(revisions(watchRun(server.thaw, "runs/a")))).code, code);
    assert.is(asked.length, 1, status[code]);
  }
});

test("a gap in the log is an error, not a silent loss", async () => {
  const server = await fakeServer({
    runs: {
      async *watchRun() {
        yield events(1n, 2n);
        yield events(4n, 5n);
      },
    },
  });
  const lost = await failure(revisions(watchRun(server.thaw, "runs/a")));
  assert.is(lost.code, status.DATA_LOSS);
  assert.match(lost.message, /from revision 2 to 4/);
});

test("a watch gives up when the server stays away longer than its patience", async () => {
  const { server, asked } = await breakingServer(0n, Array<RpcError>(50).fill(away));
  const watch = watchRun(server.thaw, "runs/a", { patienceMs: 500 });
  assert.is((await failure(revisions(watch))).code, status.UNAVAILABLE);
  assert.ok(asked.length > 1 && asked.length < 50, `${asked.length} tries`);
});

test("aborting ends a watch in the middle of a stream and in the middle of a wait", async () => {
  let cancelled = false;
  const idle = await fakeServer({
    runs: {
      async *watchRun(_, { signal }) {
        signal.addEventListener("abort", () => (cancelled = true));
        yield events(1n, 1n);
        await new Promise((resolve) => signal.addEventListener("abort", resolve));
      },
    },
  });
  const stop = new AbortController();
  const seen: bigint[] = [];
  const reading = (async () => {
    for await (const { revision } of watchRun(idle.thaw, "runs/a", { signal: stop.signal })) {
      seen.push(revision);
      stop.abort();
    }
  })();
  assert.is((await failure(reading)).code, status.CANCELLED);
  assert.equal(seen, [1n]);
  await new Promise((resolve) => setTimeout(resolve, 100));
  assert.ok(cancelled, "the server's handler was told");

  const { server } = await breakingServer(0n, Array<RpcError>(50).fill(away));
  const waiting = new AbortController();
  const onReconnect = () => setTimeout(() => waiting.abort(), 10);
  const watch = watchRun(server.thaw, "runs/a", { signal: waiting.signal, onReconnect });
  assert.is((await failure(revisions(watch))).code, status.CANCELLED);
});

test("startRun goes on through WatchRun when its own stream breaks", async () => {
  const asked: bigint[] = [];
  const server = await fakeServer({
    runs: {
      async *startRun({ create }) {
        yield { reply: { case: "created", value: { run: { name: `runs/${create?.runId}` } } } };
        yield events(1n, 4n);
        await readUpTo(4n);
        throw away;
      },
      async *watchRun({ name, afterRevision }) {
        assert.is(name, "runs/b");
        asked.push(afterRevision);
        yield events(afterRevision + 1n, LAST);
      },
    },
  });
  const { created, events: log } = await startRun(server.thaw, { runId: "b" });
  assert.is(created.run?.name, "runs/b");
  assert.equal(await revisions(log), oneTo(10));
  assert.equal(asked, [4n]);
});

test("startRun throws what CreateRun refuses", async () => {
  const server = await fakeServer({
    runs: {
      // biome-ignore lint/correctness/useYield: it is refused before the first message
      async *startRun() {
        throw new RpcError(status.RESOURCE_EXHAUSTED, "64 runs are queued");
      },
    },
  });
  assert.is((await failure(startRun(server.thaw, {}))).code, status.RESOURCE_EXHAUSTED);
});

test.run();
