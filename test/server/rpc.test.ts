// The gRPC bridge on loopback: all four kinds of method, errors, cancellation, deadlines and back-pressure.

import { setTimeout as delay } from "node:timers/promises";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { Client, credentials, status } from "@grpc/grpc-js";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { connect } from "../../clients/typescript/rpc/connect.ts";
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "../../proto/gen/google/rpc/error_details_pb.ts";
import { DatasetService, type UploadDatasetRequestSchema } from "../../proto/gen/thaw/v1/dataset_service_pb.ts";
import { ModelService } from "../../proto/gen/thaw/v1/model_service_pb.ts";
import { RunService } from "../../proto/gen/thaw/v1/run_service_pb.ts";
import { findDetail, fromStatus, RpcError, toStatus } from "../../proto/rpc/status.ts";
import { invalidArgument, MAX_FIELD_VIOLATIONS, refusal } from "../../src/server/rpc/errors.ts";
import { type CallContext, type Handlers, serve } from "../../src/server/rpc/serve.ts";
import { collect, loopback, noFault, partly, rejection } from "./rpc_support.ts";

const MIB = 2 ** 20;

/** Runs `body` with clients of a server that has these handlers. */
async function withServer(
  handlers: {
    run?: Partial<Handlers<typeof RunService>>;
    dataset?: Partial<Handlers<typeof DatasetService>>;
    model?: Partial<Handlers<typeof ModelService>>;
    onFault?: (thrown: unknown) => void;
  },
  body: (clients: {
    run: ReturnType<typeof connect<typeof RunService>>;
    dataset: ReturnType<typeof connect<typeof DatasetService>>;
    model: ReturnType<typeof connect<typeof ModelService>>;
  }) => Promise<void>,
): Promise<void> {
  const onFault = handlers.onFault ?? noFault;
  const { channel, close } = await loopback((server) => {
    serve(server, RunService, partly(RunService, handlers.run ?? {}), onFault);
    serve(server, DatasetService, partly(DatasetService, handlers.dataset ?? {}), onFault);
    serve(server, ModelService, partly(ModelService, handlers.model ?? {}), onFault);
  });
  try {
    await body({
      run: connect(RunService, channel),
      dataset: connect(DatasetService, channel),
      model: connect(ModelService, channel),
    });
  } finally {
    await close();
  }
}

async function rpcError(promise: Promise<unknown>): Promise<RpcError> {
  const error = await rejection(promise);
  assert.instance(error, RpcError);
  return error as RpcError;
}

const test = suite("gRPC bridge");

test("a unary call carries int64 and nested messages both ways", async () => {
  const getRun: Handlers<typeof RunService>["getRun"] = ({ name }) => ({
    run: { name, step: 2n ** 53n + 1n, spec: { optimizer: { algorithm: { case: "adamw", value: { beta2: 0.98 } } } } },
  });
  await withServer({ run: { getRun } }, async ({ run }) => {
    const reply = await run.getRun({ name: "runs/a" });
    assert.is(reply.run?.name, "runs/a");
    assert.is(reply.run?.step, 9007199254740993n);
    const algorithm = reply.run?.spec?.optimizer?.algorithm;
    assert.is(algorithm?.case === "adamw" && algorithm.value.beta2, 0.98);
    assert.is(algorithm?.case === "adamw" && algorithm.value.beta1, undefined);
  });
});

test("a server stream arrives whole and in order", async () => {
  async function* watchRun() {
    for (let revision = 1n; revision <= 2000n; revision++) {
      yield { reply: { case: "progress" as const, value: { revision } } };
    }
  }
  await withServer({ run: { watchRun } }, async ({ run }) => {
    const replies = await collect(run.watchRun({ name: "runs/a" }));
    const revisions = replies.map(({ reply }) => (reply.case === "progress" ? reply.value.revision : -1n));
    assert.equal(
      revisions,
      Array.from({ length: 2000 }, (_, i) => BigInt(i + 1)),
    );
  });
});

test("a client stream is read to its end, and bytes are plain Uint8Arrays", async () => {
  const prototypes = new Set<unknown>();
  const uploadDataset: Handlers<typeof DatasetService>["uploadDataset"] = async (requests) => {
    let sizeBytes = 0n;
    for await (const { part } of requests) {
      if (part.case !== "data") continue;
      prototypes.add(Object.getPrototypeOf(part.value));
      sizeBytes += BigInt(part.value.length);
    }
    return { dataset: { sizeBytes } };
  };
  async function* upload() {
    yield { part: { case: "dataset" as const, value: { datasetId: "d" } } };
    for (let i = 0; i < 5; i++) yield { part: { case: "data" as const, value: new Uint8Array(MIB) } };
  }
  await withServer({ dataset: { uploadDataset } }, async ({ dataset }) => {
    const reply = await dataset.uploadDataset(upload());
    assert.is(reply.dataset?.sizeBytes, BigInt(5 * MIB));
    assert.equal([...prototypes], [Uint8Array.prototype]);
  });
});

test("a bidirectional stream goes on after the client's half-close and ends with its status", async () => {
  const steerRun: Handlers<typeof RunService>["steerRun"] = async function* (requests) {
    let commandNumber = 0n;
    for await (const { command } of requests) {
      commandNumber++;
      yield { reply: { case: "acknowledgement", value: { commandNumber, requestId: command.case } } };
    }
    yield { reply: { case: "progress", value: { revision: 7n } } };
    yield { reply: { case: "progress", value: { revision: 8n } } };
  };
  async function* commands() {
    yield { command: { case: "watch" as const, value: {} } };
    yield { command: { case: "pause" as const, value: {} } };
  }
  await withServer({ run: { steerRun } }, async ({ run }) => {
    const replies = await collect(run.steerRun(commands()));
    const seen = replies.map(({ reply }) => (reply.case === "acknowledgement" ? reply.value.requestId : reply.case));
    assert.equal(seen, ["watch", "pause", "progress", "progress"]);
  });
});

test("an error keeps its code, message and google.rpc details", async () => {
  const problems = Array.from({ length: 60 }, (_, i) => ({ field: `spec.steps[${i}]`, message: "must be positive" }));
  const getRun = () => {
    throw invalidArgument(problems);
  };
  const pauseRun = () => {
    throw refusal(status.RESOURCE_EXHAUSTED, "QUEUE_FULL", "64 runs are queued", { limit: "64" }, 1.5);
  };
  const steerRun: Handlers<typeof RunService>["steerRun"] = async function* (requests) {
    for await (const _ of requests) yield { reply: { case: "progress", value: {} } };
    throw refusal(status.OUT_OF_RANGE, "COMPACTED", "revision 7 is the oldest", { oldest: "7" });
  };
  async function* watch() {
    yield { command: { case: "watch" as const, value: {} } };
  }
  await withServer({ run: { getRun, pauseRun, steerRun } }, async ({ run }) => {
    const invalid = await rpcError(run.getRun({}));
    assert.is(invalid.code, status.INVALID_ARGUMENT);
    assert.match(invalid.message, "spec.steps[0]: must be positive");
    assert.match(invalid.message, "and 55 more");
    const violations = findDetail(invalid, BadRequestSchema)?.fieldViolations ?? [];
    assert.is(violations.length, MAX_FIELD_VIOLATIONS);
    assert.is(violations[49].field, "spec.steps[49]");
    assert.is(findDetail(invalid, RetryInfoSchema), undefined);

    const full = await rpcError(run.pauseRun({}));
    const info = findDetail(full, ErrorInfoSchema);
    assert.equal([info?.domain, info?.reason, info?.metadata], ["thaw", "QUEUE_FULL", { limit: "64" }]);
    const wait = findDetail(full, RetryInfoSchema)?.retryDelay;
    assert.equal([wait?.seconds, wait?.nanos], [1n, 500_000_000]);

    const compacted = await rpcError(collect(run.steerRun(watch())));
    assert.equal(
      [compacted.code, findDetail(compacted, ErrorInfoSchema)?.metadata],
      [status.OUT_OF_RANGE, { oldest: "7" }],
    );
  });
});

test("an error survives being a message", () => {
  const error = refusal(status.ABORTED, "ETAG", "changed meanwhile", { etag: "x" });
  const copy = fromStatus(toStatus(error));
  assert.equal([copy.code, copy.message], [status.ABORTED, "changed meanwhile"]);
  assert.equal(findDetail(copy, ErrorInfoSchema)?.metadata, { etag: "x" });
});

test("what a handler throws by mistake reaches the listener and not the client", async () => {
  const faults: unknown[] = [];
  const secret = new Error("ENOENT: /srv/secret");
  const getRun = () => {
    throw secret;
  };
  // biome-ignore lint/correctness/useYield: it fails before its first message.
  async function* watchRun() {
    throw secret;
  }
  await withServer({ run: { getRun, watchRun }, onFault: (thrown) => faults.push(thrown) }, async ({ run }) => {
    const errors = [await rpcError(run.getRun({})), await rpcError(collect(run.watchRun({})))];
    for (const { code, message } of errors) assert.equal([code, message], [status.INTERNAL, "internal error"]);
    assert.equal(faults, [secret, secret]);
  });
});

// How a caller leaves a stream whose handler is parked, and what the caller then sees.
const departures: {
  title: string;
  options: () => { signal?: AbortSignal; deadline?: number };
  leave: boolean;
  code: status | undefined;
}[] = [
  { title: "leaving the loop", options: () => ({}), leave: true, code: undefined },
  { title: "its signal", options: () => ({ signal: AbortSignal.timeout(150) }), leave: false, code: status.CANCELLED },
  {
    title: "its deadline",
    options: () => ({ deadline: Date.now() + 150 }),
    leave: false,
    code: status.DEADLINE_EXCEEDED,
  },
];

for (const { title, options, leave, code } of departures) {
  test(`a caller ends a stream by ${title}: handlers parked in reading or waiting wake up and clean up`, async () => {
    const ended: string[] = [];
    const parked = (context: CallContext, what: string) =>
      new Promise<never>((_, reject) => {
        context.signal.addEventListener("abort", () => {
          ended.push(what);
          reject(context.signal.reason);
        });
      });
    const first = { reply: { case: "progress" as const, value: { revision: 1n } } };
    const watchRun: Handlers<typeof RunService>["watchRun"] = async function* (_, context) {
      yield first;
      await parked(context, "waiting");
    };
    const steerRun: Handlers<typeof RunService>["steerRun"] = async function* (requests) {
      yield first;
      try {
        await collect(requests);
      } finally {
        ended.push("reading");
      }
    };
    async function* never() {
      await new Promise(() => {});
    }
    await withServer({ run: { watchRun, steerRun } }, async ({ run }) => {
      const streams = [() => run.watchRun({}, options()), () => run.steerRun(never(), options())];
      for (const open of streams) {
        const reading = (async () => {
          for await (const _ of open()) if (leave) break;
        })();
        if (code === undefined) await reading;
        else assert.is((await rpcError(reading)).code, code);
      }
      for (let i = 0; i < 100 && ended.length < 2; i++) await delay(10);
      assert.equal(ended, ["waiting", "reading"]);
    });
  });
}

test("an upload whose source fails never shows its end to the handler, and the caller gets the source's error", async () => {
  const parts: (string | undefined)[] = [];
  let over = false;
  const uploadDataset: Handlers<typeof DatasetService>["uploadDataset"] = async (requests) => {
    try {
      for await (const { part } of requests) parts.push(part.case);
    } finally {
      over = true;
    }
    return {};
  };
  const broken = new Error("the disk is gone");
  async function* upload(fails: boolean): AsyncGenerator<MessageInitShape<typeof UploadDatasetRequestSchema>> {
    yield { part: { case: "split", value: { name: "train" } } };
    await delay(50); // Lets the call begin; a call cancelled before that never reaches the handler.
    if (fails) throw broken;
    yield { part: { case: "end", value: {} } };
  }
  await withServer({ dataset: { uploadDataset } }, async ({ dataset }) => {
    await dataset.uploadDataset(upload(false));
    assert.equal(parts.splice(0), ["split", "end"]);
    over = false;
    assert.is(await rejection(dataset.uploadDataset(upload(true))), broken);
    for (let i = 0; i < 100 && !over; i++) await delay(10);
    assert.equal([over, parts], [true, ["split"]]);
  });
});

test("a call to a server that is not there is UNAVAILABLE", async () => {
  const { channel, close } = await loopback(() => {});
  const target = channel.getChannel().getTarget();
  await close();
  const orphan = new Client(target, credentials.createInsecure());
  assert.is((await rpcError(connect(RunService, orphan).getRun({}))).code, status.UNAVAILABLE);
  assert.is((await rpcError(collect(connect(RunService, orphan).watchRun({})))).code, status.UNAVAILABLE);
  orphan.close();
});

test("a stream begins when it is first read, so that an error cannot happen unheard", async () => {
  let calls = 0;
  // biome-ignore lint/correctness/useYield: it fails before its first message.
  async function* watchRun() {
    calls++;
    throw new RpcError(status.NOT_FOUND, "no such run");
  }
  await withServer({ run: { watchRun } }, async ({ run }) => {
    const replies = run.watchRun({ name: "runs/a" });
    await delay(50);
    assert.is(calls, 0);
    assert.is((await rpcError(collect(replies))).code, status.NOT_FOUND);
    assert.is(calls, 1);
  });
});

// 8 MiB of HTTP/2 window, and what both ends' streams hold: 16 messages each at their high-water marks.
const MOST_IN_FLIGHT = 8 + 2 * 16 * 0.25;

test("a slow reader holds the server's generator back and still gets everything", async () => {
  let made = 0;
  async function* downloadModel() {
    for (; made < 200; made++) yield { part: { case: "data" as const, value: new Uint8Array(MIB / 4) } };
  }
  await withServer({ model: { downloadModel } }, async ({ model }) => {
    let read = 0;
    for await (const _ of model.downloadModel({})) {
      if (read++ > 0) continue;
      await delay(400);
      assert.ok(made > 4, `the server waits too early: ${made} messages`);
      assert.ok(made / 4 <= MOST_IN_FLIGHT, `${made / 4} MiB are in flight`);
    }
    assert.is(read, 200);
  });
});

test("a slow handler holds the client's upload back and still gets everything", async () => {
  let made = 0;
  let madeWhileParked = 0;
  const uploadModel: Handlers<typeof ModelService>["uploadModel"] = async (requests) => {
    await delay(400);
    madeWhileParked = made;
    const received = await collect(requests);
    return { model: { sizeBytes: BigInt(received.length) } };
  };
  async function* upload() {
    for (; made < 200; made++) yield { part: { case: "data" as const, value: new Uint8Array(MIB / 4) } };
  }
  await withServer({ model: { uploadModel } }, async ({ model }) => {
    const reply = await model.uploadModel(upload());
    assert.is(reply.model?.sizeBytes, 200n);
    assert.ok(madeWhileParked / 4 <= MOST_IN_FLIGHT, `${madeWhileParked / 4} MiB were in flight`);
  });
});

test.run();
