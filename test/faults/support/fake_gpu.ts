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

/** Experts of each of 24 layers whose loads every step tells: an event has about 200 bytes for each of them. */
const EXPERTS = Number(process.env.FAKE_EXPERTS ?? 0);
/** Examples of a batch whose routes are told: a slice has about 20 bytes for each. */
const EXAMPLES = Number(process.env.FAKE_EXAMPLES ?? 1);
const layers = Array.from({ length: EXPERTS && 24 }, (_, layer) => {
  const load = Array<number>(EXPERTS).fill(1 / EXPERTS);
  return { stack: "encoder" as const, layer, balanceLoss: 0, zLoss: 0, load, dropped: 0, assignments: 8 };
});

/** Batches that no run of it gets over, `3,5`. */
const POISONED = (process.env.FAKE_POISONED ?? "").split(",").map(Number);

const loss = (_step: number, batch: number, learnt: number) =>
  POISONED.includes(batch) ? Number.NaN : learnt / 2 ** 32;
const engine = fakeEngine({ loss, layers, examples: EXAMPLES, beforeStep: () => delay(STEP_MS) });
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
