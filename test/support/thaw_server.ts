// A whole server for tests: registry, services and gRPC on a free port, with the real worker loop on a trainer that computes
// nothing (or on a real one, where a test brings it), inside the test's process. Its worker can be killed and its server
// restarted over the same data.

import { cpSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { create } from "@bufbuild/protobuf";
import * as assert from "uvu/assert";
import { connectThaw, RpcError, type Thaw, uploadDataset, uploadModel } from "../../clients/typescript/index.ts";
import type { RunEvent } from "../../proto/gen/thaw/v1/event_pb.ts";
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import { type FromWorker, FromWorkerSchema } from "../../proto/gen/thaw/worker/v1/worker_pb.ts";
import { type Front, startFront } from "../../src/server/front/front.ts";
import type { StartWorker } from "../../src/server/gpu/connection.ts";
import type { Log } from "../../src/server/log.ts";
import { startServer, type ThawServer } from "../../src/server/server.ts";
import { readSettings } from "../../src/server/settings.ts";
import { createWorker, type GpuWorker } from "../../src/server/worker/worker.ts";
import { describeModel } from "../../src/trainer/model/open.ts";
import type { Engine } from "../../src/trainer/types.ts";
import { FAKE_COST, FAKE_TENSOR, type FakeEngine, type FakeEngineOptions, fakeEngine } from "./fake_engine.ts";
import { tinyModel } from "./tiny_model.ts";

/** A GPU process on a busy CPU takes most of a minute to compile its kernels; what never comes fails all the same. */
const PATIENCE_MS = 120_000;

export interface FakeWorkers {
  readonly start: StartWorker;
  /** Engines of all processes so far, oldest first. */
  readonly engines: FakeEngine[];
  /** Ends the process as an abort of the driver would. */
  kill(): void;
}

/**
 * GPU processes that are none. `options` is read for each one that starts; `trainer` takes the fake one's place.
 * @param memoryBytes device memory they say there is
 */
export function fakeWorkers(options: () => FakeEngineOptions, trainer?: Engine, memoryBytes = 0n): FakeWorkers {
  const engines: FakeEngine[] = [];
  let kill = (): void => {};
  const start: StartWorker = () => {
    const queue: FromWorker[] = [];
    let over = false;
    let wake = (): void => {};
    let end: (how: string) => void = () => {};
    const ended = new Promise<string>((resolve) => {
      end = resolve;
    });
    const engine = fakeEngine(options());
    engines.push(engine);
    const say = (message: FromWorker["message"]): void => {
      queue.push(create(FromWorkerSchema, { message }));
      wake();
    };
    const plan = async () => ({
      matched: [FAKE_TENSOR],
      before: FAKE_COST,
      after: FAKE_COST,
      state: { restored: [], fresh: [], kept: [], dropped: [] },
      effectiveStep: 0,
    });
    const worker: GpuWorker = createWorker(
      trainer ?? engine,
      { describe: describeModel, plan },
      {
        send: (message) => void (over || say(create(FromWorkerSchema, { message }).message)),
        log: () => undefined,
        backlogBytes: 0,
        end: () => Promise.resolve(),
      },
    );
    const finish = (how: string): void => {
      if (over) return;
      over = true;
      worker.stop();
      wake();
      end(how);
    };
    kill = () => finish("signal SIGKILL");
    void worker.run().then(() => finish("exit code 0"));
    const hello = {
      protocolVersion: 1,
      adapter: { line: "adapter of the tests", software: true },
      processId: 1n,
      memoryBytes,
    };
    queue.push(create(FromWorkerSchema, { message: { case: "hello", value: hello } }));
    async function* messages(): AsyncGenerator<FromWorker> {
      while (true) {
        const next = over ? undefined : queue.shift();
        if (next) yield next;
        else if (over) return;
        else {
          await new Promise<void>((resolve) => {
            wake = resolve;
          });
        }
      }
    }
    return { send: (message) => void (over || worker.receive(message)), messages: messages(), ended, kill };
  };
  return { start, engines, kill: () => kill() };
}

export interface TestServer {
  readonly thaw: Thaw;
  readonly workers: FakeWorkers;
  readonly address: string;
  readonly dataDirectory: string;
  /** Its metrics in Prometheus' text format. */
  scrape(): Promise<string>;
  /** Stops it as SIGTERM does, and starts another over the same data. */
  restart(): Promise<TestServer>;
  /** Starts another over what a power cut at this moment would have left on the disk. */
  crash(): Promise<TestServer>;
  stop(): Promise<void>;
}

export interface TestServerOptions {
  readonly engine?: () => FakeEngineOptions;
  /** A real trainer. */
  readonly trainer?: Engine;
  /** Device memory that the GPU process says there is; a step of a run takes 300 bytes of it. Default: it does not know. */
  readonly memoryBytes?: bigint;
  readonly flags?: readonly string[];
  readonly dataDirectory?: string;
  readonly log?: Log;
}

export async function testServer(options: TestServerOptions = {}): Promise<TestServer> {
  const dataDirectory = options.dataDirectory ?? (await mkdtemp(join(tmpdir(), "thaw-server-")));
  const settings = readSettings(["--port", "0", "--data-dir", dataDirectory, ...(options.flags ?? [])], {});
  const workers = fakeWorkers(options.engine ?? (() => ({})), options.trainer, options.memoryBytes);
  const { log = () => undefined } = options;
  const server: ThawServer = await startServer(settings, { log, retryMs: 5, startWorker: workers.start });
  const front: Front = await startFront(settings, server.handlersFor, log, server.metrics.refused);
  const address = `127.0.0.1:${front.port}`;
  const thaw = connectThaw(address);
  const end = async (): Promise<void> => {
    front.draining();
    await server.stop();
    await front.stop(500);
    thaw.close();
    await server.close();
  };
  return {
    thaw,
    workers,
    address,
    dataDirectory,
    scrape: server.metrics.scrape,
    async restart() {
      await end();
      return testServer({ ...options, dataDirectory });
    },
    async crash() {
      const left = `${dataDirectory}-left`;
      cpSync(dataDirectory, left, { recursive: true });
      await end();
      await rm(dataDirectory, { recursive: true });
      return testServer({ ...options, dataDirectory: left });
    },
    async stop() {
      await end();
      await rm(dataDirectory, { recursive: true });
    },
  };
}

/** A model and a dataset of token ids, `models/m` and `datasets/d`, with splits `train` and `validation`. */
export async function withInputs(thaw: Thaw): Promise<void> {
  const directory = await tinyModel();
  await uploadModel(thaw, directory, { modelId: "m" });
  await rm(directory, { recursive: true });
  const line = (i: number): string => `${JSON.stringify({ input_ids: [5 + i, 9], target_ids: [3 + i] })}\n`;
  const lines = Array.from({ length: 8 }, (_, i) => line(i));
  await uploadDataset(thaw, { datasetId: "d" }, { train: lines, validation: lines.slice(0, 2) });
}

/** Collects events until one of them satisfies `last`. */
export async function eventsUntil(thaw: Thaw, name: string, last: (event: RunEvent) => boolean, afterRevision = 0n) {
  const events: RunEvent[] = [];
  const over = new AbortController();
  const timer = setTimeout(() => over.abort(), PATIENCE_MS);
  try {
    for await (const { reply } of thaw.runs.watchRun({ name, afterRevision }, { signal: over.signal })) {
      if (reply.case !== "events") continue;
      for (const event of reply.value.events) {
        events.push(event);
        if (last(event)) return events;
      }
    }
  } catch (error) {
    if (!over.signal.aborted) throw error;
  } finally {
    clearTimeout(timer);
    over.abort();
  }
  throw new Error(`${name} did not do what was waited for: ${events.map(describeEvent).join(", ")}`);
}

export const reaches =
  (state: RunState) =>
  (event: RunEvent): boolean =>
    event.event.case === "state" && event.event.value.to === state;

const STATES = Object.fromEntries(Object.entries(RunState).map(([name, value]) => [value, name]));

/** `RUNNING`, `step 3`, `checkpoint 4`, `GPU_PROCESS_RESTARTED`, … */
export function describeEvent({ step, event }: RunEvent): string {
  if (event.case === "state") return STATES[event.value.to];
  if (event.case === "metrics") return `step ${event.value.step}`;
  if (event.case === "warning") return event.value.reason;
  return `${event.case} ${step}`;
}

/** What a call is refused with; a call that succeeds fails the test. */
export async function refused(call: Promise<unknown>): Promise<RpcError> {
  try {
    await call;
  } catch (error) {
    if (error instanceof RpcError) return error;
    throw error;
  }
  return assert.unreachable("the call succeeded") as never;
}
