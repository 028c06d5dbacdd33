// A GPU process without a GPU: the worker loop on its own pipes, with the trainer that computes nothing but remembers every
// batch, so that a lost or repeated one shows in the losses.

import process from "node:process";
import { setTimeout as delay } from "node:timers/promises";
import { ToWorkerSchema } from "../../../proto/gen/thaw/worker/v1/worker_pb.ts";
import { decodeFrames } from "../../../src/server/worker/frames.ts";
import { openOutbox, standardOutput } from "../../../src/server/worker/outbox.ts";
import { createWorker } from "../../../src/server/worker/worker.ts";
import { describeModel } from "../../../src/trainer/model/open.ts";
import { FAKE_COST, FAKE_TENSOR, fakeEngine } from "../../support/fake_engine.ts";

const STEP_MS = Number(process.env.FAKE_STEP_MS ?? 3);

const engine = fakeEngine({ loss: (_step, _batch, learnt) => learnt / 2 ** 32, beforeStep: () => delay(STEP_MS) });
const report = {
  matched: [FAKE_TENSOR],
  before: FAKE_COST,
  after: FAKE_COST,
  state: { restored: [], fresh: [], kept: [], dropped: [] },
  effectiveStep: 0,
};
const outbox = openOutbox(standardOutput());
const worker = createWorker(engine, { describe: describeModel, plan: async () => report }, outbox);
const adapter = { line: "adapter of the fault suite", software: true };
const processId = BigInt(process.pid);
const memoryBytes = 1n << 40n; // room for as many runs as the server lets on
outbox.send({ case: "hello", value: { protocolVersion: 1, adapter, processId, memoryBytes } });
void (async () => {
  for await (const message of decodeFrames(ToWorkerSchema, process.stdin)) worker.receive(message);
  worker.stop();
})();
await worker.run();
await outbox.end();
process.exit(0);
